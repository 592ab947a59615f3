// How the agent's thread is kept in: from then on it can reach no file, no TCP port and no abstract socket, and trace nobody (Landlock).
// A program may give up just that, in threads that it knows, and any thread of a process may be made by the others to call what they
// like. A filter of system calls would be tighter; but it would make SECCOMP_FILTER_FLAG_TSYNC fail for the program's own, as our thread would
// have a filter that is not one of theirs.
import { O_CLOEXEC, O_RDWR, SYS, systemCall } from '../linux/index.js';
import type { PlannedCall, RemoteCall } from '../target/index.js';
import { AGENT } from './layout.js';

/** include/uapi/linux/close_range.h: the thread gets a table of its own, without those that are closed: none is flushed. */
const CLOSE_RANGE_UNSHARE = 2;
const ALL_FILES = 0xffff_ffff;

/** include/uapi/linux/landlock.h */
const CREATE_RULESET_VERSION = 1;
const CREATE_RULESET_ERRATA = 2;
/** The erratum that signals between threads of one process were restricted as well. */
const SIGNALS_WITHIN = 1 << 1;
/** struct landlock_ruleset_attr: u64 each. */
const RULESET = { files: 0, network: 8, scope: 16, size: 24 } as const;
const SCOPE_SOCKETS = 1n;
const SCOPE_SIGNALS = 2n;
/** What there is to forbid, and since which version of the interface: all about files, ports; scopes stand below. */
const FILES: readonly { readonly since: number; readonly rights: bigint }[] = [
  { since: 1, rights: 0x1fffn },
  { since: 2, rights: 0x2000n },
  { since: 3, rights: 0x4000n },
  { since: 5, rights: 0x8000n },
];
const PORTS = { since: 4, rights: 3n } as const;
const SCOPES_SINCE = 6;

/** What confining a thread takes, with arguments of the kind that they will have. */
export const CONFINEMENT_CALLS: readonly PlannedCall[] = [
  { name: 'close_range', number: SYS.close_range, arguments: [0, ALL_FILES, CLOSE_RANGE_UNSHARE] },
  { name: 'open', number: SYS.open, arguments: [AGENT.size, O_RDWR | O_CLOEXEC] },
  {
    name: 'landlock_create_ruleset',
    number: SYS.landlock_create_ruleset,
    arguments: [AGENT.size, RULESET.size, 0],
  },
  { name: 'landlock_restrict_self', number: SYS.landlock_restrict_self, arguments: [0, 0] },
  { name: 'close', number: SYS.close, arguments: [0] },
];

/** All that this kernel can forbid, as bytes of struct landlock_ruleset_attr; undefined: it has no such rules. */
function everything(): Uint8Array<ArrayBuffer> | undefined {
  const version = systemCall(SYS.landlock_create_ruleset, 0, 0, CREATE_RULESET_VERSION);
  if (version < 1) return undefined;
  const errata = systemCall(SYS.landlock_create_ruleset, 0, 0, CREATE_RULESET_ERRATA);
  // The thread calls others of its process together by signals.
  const scope = SCOPE_SOCKETS | (errata > 0 && (errata & SIGNALS_WITHIN) !== 0 ? SCOPE_SIGNALS : 0n);
  const view = new DataView(new ArrayBuffer(RULESET.size));
  const files = FILES.filter(({ since }) => since <= version);
  view.setBigUint64(
    RULESET.files,
    files.reduce((all, { rights }) => all | rights, 0n),
    true,
  );
  if (version >= PORTS.since) view.setBigUint64(RULESET.network, PORTS.rights, true);
  if (version >= SCOPES_SINCE) view.setBigUint64(RULESET.scope, scope, true);
  return new Uint8Array(view.buffer);
}

/**
 * Gives the agent's thread, which makes `call`, a table of descriptors of its own with nothing in it but the memory. Returns the descriptor
 * of that, or a negative number. `page` is where its pages are in the target.
 */
export function separateFiles(call: RemoteCall, page: number): number {
  if (call(SYS.close_range, 0, ALL_FILES, CLOSE_RANGE_UNSHARE) < 0) return -1;
  return call(SYS.open, page + AGENT.memoryPath, O_RDWR | O_CLOEXEC);
}

/** Confines the agent's thread, which makes `call`: `bytes` are its pages as we see them. Where the kernel cannot, it stays as it is. */
export function confine(call: RemoteCall, page: number, bytes: Uint8Array): void {
  const rules = everything();
  if (rules === undefined) return;
  bytes.set(rules, AGENT.rules);
  const file = call(SYS.landlock_create_ruleset, page + AGENT.rules, rules.length, 0);
  if (file < 0) return;
  call(SYS.landlock_restrict_self, file, 0);
  call(SYS.close, file);
}
