// What the agent's thread gives up before it does anything else. A thread that we put into a program stays as it was made when the
// program gives up rights: setuid(2) of a C library changes the threads that it knows, and a filter, a rule or a namespace may be one
// thread's alone. All threads share memory, so whoever has taken over the program has that thread as well. So it keeps nothing that the
// program could give up: no capability, no group, and neither the user nor the group of anybody.
//
// Of nobody else either: who has the same user, group and capabilities as a thread may trace it, and by it write to the memory of a
// program that has more. So its ids are two that nobody has, chosen anew each time; and a thread that cannot get them keeps its
// capabilities, as without them it would be a way in for all others of its user.
import { randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { SYS, bitSet, readLink, readStatus, readThreads, showsEnd } from '../linux/index.js';
import type { PlannedCall } from '../target/index.js';
import { AGENT } from './layout.js';

/** include/uapi/linux/capability.h */
const CAP_SETGID = 6n;
const CAP_SETUID = 7n;
const CAP_SYS_PTRACE = 19n;
const CAPABILITY_VERSION_3 = 0x2008_0522;
/** struct __user_cap_header_struct, then two of struct __user_cap_data_struct, for the low capabilities and the high ones. */
const CAPABILITIES = { version: 0, pid: 4, low: 8, high: 20 } as const;
const DATA = { effective: 0, permitted: 4, inheritable: 8 } as const;

/** include/uapi/linux/prctl.h */
const PR_GET_DUMPABLE = 3;
const PR_SET_DUMPABLE = 4;
const PR_CAPBSET_DROP = 24;
const PR_SET_SECUREBITS = 28;
const PR_SET_NO_NEW_PRIVS = 38;
/** include/uapi/linux/securebits.h: root is nobody, ids give no capabilities, none is kept nor handed on; all locked. */
const ALL_SECURE_BITS = 0xef;
/** include/uapi/linux/keyctl.h */
const KEYCTL_JOIN_SESSION_KEYRING = 1;

/** What to give up: bits of a word in the agent's page. */
const GIVE_UP = {
  /** Ids and groups, and with them all capabilities. */
  ids: 1,
  /** Whatever executing a program could give it. */
  newPrivileges: 2,
  /** The keys of the session that the program was started in. */
  keys: 4,
} as const;

/** An id for the calls that are looked at: filters rarely look at it. */
const SOME_ID = 0x8000_0000;

/** The calls that each takes, with arguments of the kind that they will have. */
const CALLS: Readonly<Record<keyof typeof GIVE_UP, readonly PlannedCall[]>> = {
  ids: [
    { name: 'capget', number: SYS.capget, arguments: [AGENT.size, AGENT.size] },
    { name: 'capset', number: SYS.capset, arguments: [AGENT.size, AGENT.size] },
    { name: 'prctl', number: SYS.prctl, arguments: [PR_CAPBSET_DROP, 0, 0, 0, 0] },
    { name: 'prctl', number: SYS.prctl, arguments: [PR_SET_SECUREBITS, ALL_SECURE_BITS, 0, 0, 0] },
    { name: 'prctl', number: SYS.prctl, arguments: [PR_GET_DUMPABLE, 0, 0, 0, 0] },
    { name: 'prctl', number: SYS.prctl, arguments: [PR_SET_DUMPABLE, 1, 0, 0, 0] },
    { name: 'setgroups', number: SYS.setgroups, arguments: [0, 0] },
    { name: 'setresgid', number: SYS.setresgid, arguments: [SOME_ID, SOME_ID, SOME_ID] },
    { name: 'setresuid', number: SYS.setresuid, arguments: [SOME_ID, SOME_ID, SOME_ID] },
  ],
  newPrivileges: [{ name: 'prctl', number: SYS.prctl, arguments: [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0] }],
  keys: [{ name: 'keyctl', number: SYS.keyctl, arguments: [KEYCTL_JOIN_SESSION_KEYRING, 0] }],
};

/** What the agent's thread is to give up, and the ids that it is to have instead: all u32. */
export interface GivenUp {
  readonly what: number;
  readonly user: number;
  readonly group: number;
}

/** A thread of a process that may do nothing of all this. */
export const NOTHING_GIVEN_UP: GivenUp = { what: 0, user: 0, group: 0 };

/** Users that distributions give to nobody: above those of containers, as systemd's documentation on UIDs and GIDs divides them. */
const NOBODYS = { first: 0x8000_0000, end: 0xffff_fffe } as const;
/** Of a namespace that has none of those the upper part of the highest ids, but for `nobody` (65534) and what is reserved. */
const UPPER_PART = 1 / 8;
const LAST_OF_16_BITS = 0xfffe;
/** With fewer there is nobody else whom the program could become. */
const LEAST_IDS = 1024;

/** An id that nobody has, by the text of /proc/PID/uid_map or gid_map; undefined: there is none. */
export function idOfNobody(map: string): number | undefined {
  const ranges = map
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number))
    .map(([first, , count]) => ({ first, end: first + count }));
  const highest = ranges.reduce((a, b) => (b.end > a.end ? b : a), { first: 0, end: 0 });
  const above = { first: Math.max(highest.first, NOBODYS.first), end: Math.min(highest.end, NOBODYS.end) };
  if (above.end - above.first >= LEAST_IDS) return randomInt(above.first, above.end);
  const count = highest.end - highest.first;
  if (count < LEAST_IDS) return undefined;
  const end = highest.end - 1 === LAST_OF_16_BITS + 1 ? LAST_OF_16_BITS : highest.end;
  return randomInt(end - Math.floor(count * UPPER_PART), end);
}

/**
 * What a new thread of a process is to give up, made by thread `tid` of it. `may` says whether no filter minds some calls: what is
 * forbidden to the new thread is forbidden to the program as well, which then cannot give that up either.
 */
export function rightsToGiveUp(
  pid: number,
  tid: number,
  may: (calls: readonly PlannedCall[]) => boolean,
): GivenUp {
  const ids = ['uid_map', 'gid_map'].map((name) => idIn(`/proc/${pid}/${name}`));
  const [user, group] = ids;
  const permitted = bitSet(readStatus(pid, tid), 'CapPrm');
  const canChangeIds = has(permitted, CAP_SETUID) && has(permitted, CAP_SETGID);
  // Without this capability we could not look at a thread of another user's.
  const canLookOn = has(bitSet(readStatus(process.pid), 'CapEff'), CAP_SYS_PTRACE);
  const apart = user !== undefined && group !== undefined && canChangeIds && canLookOn && may(CALLS.ids);
  const what =
    (apart ? GIVE_UP.ids : 0) |
    (may(CALLS.newPrivileges) ? GIVE_UP.newPrivileges : 0) |
    (may(CALLS.keys) ? GIVE_UP.keys : 0);
  return { what, user: user ?? 0, group: group ?? 0 };
}

/** What a thread can have of its own that others of its process have not. */
const NAMESPACES = ['cgroup', 'ipc', 'mnt', 'net', 'user', 'uts'] as const;
const IDS = ['Uid', 'Gid', 'Groups'] as const;

type Status = ReadonlyMap<string, string> | undefined;

/** Compares the rights of the agent's thread with those of the program's: each time with those of the first and of one other. */
export class RightsWatch {
  readonly #pid: number;
  readonly #agent: number;
  /** It has ids of its own. */
  readonly #isApart: boolean;
  #looks = 0;

  /** `agent` is the id of the agent's thread, which has given up what it can. */
  constructor(pid: number, agent: number) {
    this.#pid = pid;
    this.#agent = agent;
    this.#isApart = readStatus(pid, agent)?.get('Uid') !== readStatus(pid)?.get('Uid');
  }

  /** True if the agent's thread may do more than a thread of the program's that was looked at. */
  hasMore(): boolean {
    const own = readStatus(this.#pid, this.#agent);
    // Whoever has ended has no rights, and shows none.
    if (own === undefined) return false;
    const threads = (readThreads(this.#pid) ?? []).filter((tid) => tid !== this.#agent && tid !== this.#pid);
    const others = threads.length === 0 ? [] : [threads[this.#looks++ % threads.length]];
    return [this.#pid, ...others].some((tid) => this.#hasMoreThan(tid, own));
  }

  #hasMoreThan(tid: number, own: Status): boolean {
    const theirs = readStatus(this.#pid, tid);
    if (theirs === undefined || showsEnd(theirs)) return false;
    if (filterCount(theirs) > filterCount(own)) return true;
    if ((bitSet(own, 'CapPrm') & ~bitSet(theirs, 'CapPrm')) !== 0n) return true;
    if (!this.#isApart && IDS.some((name) => theirs.get(name) !== own?.get(name))) return true;
    return NAMESPACES.some((name) => {
      const link = readLink(`/proc/${this.#pid}/task/${tid}/ns/${name}`);
      // Where they may not be looked at nothing is known of them.
      return link !== undefined && link !== readLink(`/proc/${this.#pid}/task/${this.#agent}/ns/${name}`);
    });
  }
}

function filterCount(status: Status): number {
  return Number(status?.get('Seccomp_filters') ?? 0);
}

function has(set: bigint, capability: bigint): boolean {
  return ((set >> capability) & 1n) === 1n;
}

function idIn(path: string): number | undefined {
  try {
    return idOfNobody(readFileSync(path, 'latin1'));
  } catch {
    // It has ended, or the kernel has no such namespaces.
    return undefined;
  }
}

const call = (number: number, ...args: readonly (number | string)[]): string => `
${args.map((value, i) => `    mov ${['edi', 'esi', 'edx', 'r10d', 'r8d'][i]}, ${value}`).join('\n')}
    mov eax, ${number}
    syscall`;

const capabilityCall = (number: number): string => `
    lea rdi, [rbx+${AGENT.capabilities}]
    lea rsi, [rbx+${AGENT.capabilities + CAPABILITIES.low}]
    mov eax, ${number}
    syscall`;

/** For the low capabilities and the high ones. */
const bothHalves = (each: (at: number) => string): string =>
  [CAPABILITIES.low, CAPABILITIES.high].map((half) => each(AGENT.capabilities + half)).join('');

/**
 * give_rights_up: rbx the agent's pages, kept. What fails is passed over: the program may not do it either. Another user's thread makes
 * the kernel take the whole process for one that must not be dumped, which is undone at once.
 */
export const RIGHTS_LISTING = `
give_rights_up:
    mov r15d, [rbx+${AGENT.giveUp}]
    test r15d, ${GIVE_UP.ids}
    je rights_no_ids
    mov dword [rbx+${AGENT.capabilities + CAPABILITIES.version}], ${CAPABILITY_VERSION_3}
    mov dword [rbx+${AGENT.capabilities + CAPABILITIES.pid}], 0
${capabilityCall(SYS.capget)}
    test eax, eax
    js rights_no_ids
${bothHalves(
  (at) => `
    mov eax, [rbx+${at + DATA.permitted}]
    mov [rbx+${at + DATA.effective}], eax`,
)}
${capabilityCall(SYS.capset)}
    xor r12d, r12d
rights_bound:                        ; until there is no such capability
${call(SYS.prctl, PR_CAPBSET_DROP, 'r12d', 0, 0, 0)}
    add r12d, 1
    test eax, eax
    je rights_bound
${call(SYS.prctl, PR_SET_SECUREBITS, ALL_SECURE_BITS, 0, 0, 0)}
${call(SYS.prctl, PR_GET_DUMPABLE, 0, 0, 0, 0)}
    mov r12d, eax
${call(SYS.setgroups, 0, 0)}
    mov r13d, [rbx+${AGENT.group}]
${call(SYS.setresgid, 'r13d', 'r13d', 'r13d')}
    test eax, eax
    js rights_changed
    mov r13d, [rbx+${AGENT.user}]
${call(SYS.setresuid, 'r13d', 'r13d', 'r13d')}
rights_changed:
    mov r13d, eax
    cmp r12d, 1
    jne rights_dumpable
${call(SYS.prctl, PR_SET_DUMPABLE, 1, 0, 0, 0)}
rights_dumpable:
    test r13d, r13d
    js rights_no_ids
${bothHalves(
  (at) => `
    mov dword [rbx+${at + DATA.effective}], 0
    mov dword [rbx+${at + DATA.permitted}], 0
    mov dword [rbx+${at + DATA.inheritable}], 0`,
)}
${capabilityCall(SYS.capset)}
rights_no_ids:
    test r15d, ${GIVE_UP.newPrivileges}
    je rights_keys
${call(SYS.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)}
rights_keys:
    test r15d, ${GIVE_UP.keys}
    je rights_given
${call(SYS.keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0)}
rights_given:
    ret
`;
