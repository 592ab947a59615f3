// The agent's thread in the target: it makes system calls for us and turns every site back, without anybody being held; the latter
// also by itself when the tracer dies. It sleeps on a robust futex that the tracer owns, has every signal blocked, uses no
// C library and no thread block, and touches nothing of the program's.
//
// Turning a site back takes no hold, because `jmp` is one instruction: a thread is before it or behind it. All that is needed
// is that nobody sees half of a change. The text pages that hold sites are the target's private copies of the file's pages.
// mremap(MREMAP_DONTUNMAP) takes the copies away, with the old translations flushed on all processors before anybody can get a
// new one; the next fetch faults the file's own page in. So the text is afterwards what it was, and so is its mapping.
import { CannotError, ending, isSafepokeError } from '../errors/index.js';
import {
  FUTEX,
  FUTEX_OWNER_DIED,
  MADV,
  MREMAP,
  OwnerWord,
  PAGE,
  SYS,
  addressOf,
  faultPoint,
  preferThread,
  readStatus,
  readThreads,
  systemCall,
  type OwnMapping,
} from '../linux/index.js';
import { type PlannedCall, type RemoteCall } from '../target/index.js';
import { SITE_LENGTH, assemble } from '../x86/index.js';
import { confine, separateFiles } from './confinement.js';
import { AGENT, CALL, CALLS_MAX, CONTROL, TEXT_RUN, WRITE } from './layout.js';
import { SHUT_LISTING } from './open-text.js';
import { RIGHTS_LISTING, type GivenUp } from './rights.js';

/** What to do. */
const ACTION = {
  restoreText: 1,
  leave: 2,
  makeCalls: 3,
  writeWhole: 4,
} as const;

/** Something more that the thread can do: `label` stands in the listing around it, keeps rbx and r14, and jumps to `served`. */
export interface AgentAction {
  readonly action: number;
  readonly label: string;
}
/** Numbers of further actions begin here. */
export const FURTHER_ACTION = 16;

/** include/uapi/linux/sched.h: VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | SETTLS */
const CLONE_FILES = 0x400;
export const AGENT_THREAD_FLAGS = 0x100 | 0x200 | CLONE_FILES | 0x800 | 0x10000 | 0x40000 | 0x80000;
/** The same for a thread with descriptors of its own, which the program can neither close nor see. */
export const AGENT_THREAD_FLAGS_APART = AGENT_THREAD_FLAGS & ~CLONE_FILES;
const MREMAP_AWAY = MREMAP.mayMove | MREMAP.dontUnmap;
const PR_SET_NAME = 15;

/** System calls of the thread, and the one that makes it, with arguments of the kind that they will have. */
export const AGENT_THREAD_CALLS: readonly PlannedCall[] = [
  { name: 'clone', number: SYS.clone, arguments: [AGENT_THREAD_FLAGS, PAGE, 0, 0, PAGE] },
  { name: 'prctl', number: SYS.prctl, arguments: [PR_SET_NAME, PAGE] },
  { name: 'futex', number: SYS.futex, arguments: [PAGE, FUTEX.wait, 0, 0] },
  { name: 'futex', number: SYS.futex, arguments: [PAGE, FUTEX.wait | FUTEX.privateFlag, 0, PAGE] },
  { name: 'mremap', number: SYS.mremap, arguments: [PAGE, PAGE, PAGE, MREMAP_AWAY, 0] },
  { name: 'munmap', number: SYS.munmap, arguments: [PAGE, PAGE] },
  { name: 'nanosleep', number: SYS.nanosleep, arguments: [PAGE, 0] },
  { name: 'madvise', number: SYS.madvise, arguments: [PAGE, PAGE, MADV.remove] },
  { name: 'exit', number: SYS.exit, arguments: [0] },
];
/** What futex says of a wait that was in vain; whatever else it says, it cannot be waited with it. */
const EAGAIN = -11;
const EFAULT = -14;
const EINTR = -4;
/** How long it sleeps between two looks then. */
const NAP_NS = 1_000_000;
/** Between two tries, as mappings or memory were wanting: first and most. */
const FIRST_NAP_NS = 1_000_000;
const MAX_NAP_NS = 256_000_000;
/** About a minute. */
const RETRIES = 240;

const NAME = 'safepoke';
/** -1 */
const NO_FILE = 0xffff_ffff;
/** Its own: another user's is not to be opened by it. */
const MEMORY_PATH = '/proc/thread-self/mem';
/** The thread gets the processor when the target lets it: a group of processes may be out of its share for a while. */
const PATIENCE_MS = 5000;
/** So long, once it has not answered: a program that keeps it from that must not hold us up at each command. */
const SILENT_PATIENCE_MS = 100;
/** And so long where the session is to end soon. */
const HURRIED_PATIENCE_MS = 500;
/** On a processor of its own it answers within this time; else it may be ours that it waits for. */
const SPIN_MS = 0.02;
/** It wakes us when it has done; but a filter of the program's may forbid it to. */
const POLL_NS = 100_000n;
const pollTime = new BigInt64Array([0n, POLL_NS]);
/** A look at the list of threads takes longer than a poll. */
const POLLS_PER_LOOK = 16;

/** The id of no thread. */
export const NO_THREAD = 0;

/** A site to be written, and what is to stand there: five bytes. */
export interface WholeSite {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** What the thread does when we die. Addresses in the target; all 0: nothing. */
export interface OrphanPlaces {
  readonly control: number;
  readonly rings: number;
  readonly ringBytes: number;
}

export const NO_PLACES: OrphanPlaces = { control: 0, rings: 0, ringBytes: 0 };

/** Where the thread finds things, in the target. */
export interface AgentThreadPlaces {
  readonly page: number;
  readonly code: number;
}

/**
 * The thread's code, for any place. It begins with the address of the agent's pages in r9, and ends by exit(2). `onOrphaned` is
 * called when the tracer has died, with those in rbx, which it keeps. `idle` stands before it sleeps: it may wait there for a command
 * other than eax, and keeps all registers but rcx.
 */
export function agentThreadListing(
  more: readonly AgentAction[] = [],
  onOrphaned?: string,
  idle = '',
): string {
  return `
    mov rbx, r9
    lea rdi, [rbx+${AGENT.name}]
    mov rsi, rdi
    mov edi, ${PR_SET_NAME}
    mov eax, ${SYS.prctl}
    syscall
    call give_rights_up
next:
    mov eax, [rbx+${AGENT.command}]
    cmp eax, [rbx+${AGENT.done}]
    jne serve
    mov edx, [rbx+${AGENT.owner}]
    test edx, ${FUTEX_OWNER_DIED}
    jne orphaned
${idle}
    lea rdi, [rbx+${AGENT.owner}]
    xor esi, esi                     ; FUTEX_WAIT, shared
    xor r10d, r10d                   ; for ever
    mov eax, ${SYS.futex}
    syscall
    test eax, eax
    jns next
    cmp eax, ${EAGAIN}
    je next
    cmp eax, ${EINTR}
    je next
    mov qword [rbx+${AGENT.pause}], 0 ; forbidden, by a filter of the program's
    mov qword [rbx+${AGENT.pause + 8}], ${NAP_NS}
    call nap
    jmp next

serve:
    mov r14d, eax
    cmp dword [rbx+${AGENT.action}], ${ACTION.leave}
    je leave_shut
    cmp dword [rbx+${AGENT.action}], ${ACTION.makeCalls}
    je make_calls
    cmp dword [rbx+${AGENT.action}], ${ACTION.writeWhole}
    je write_whole
${more.map(({ action, label }) => `    cmp dword [rbx+${AGENT.action}], ${action}\n    je ${label}`).join('\n')}
    mov r12, [rbx+${AGENT.runs}]
    mov r13, [rbx+${AGENT.runCount}]
    call restore
    mov [rbx+${AGENT.failed}], eax
served:
    mov [rbx+${AGENT.done}], r14d
    lea rdi, [rbx+${AGENT.done}]
    mov esi, ${FUTEX.wake}
    mov edx, 1
    mov eax, ${SYS.futex}
    syscall
    jmp next

make_calls:
    lea r12, [rbx+${AGENT.calls}]
    mov r13d, [rbx+${AGENT.callCount}]
make_next:
    test r13, r13
    je served
    mov rax, [r12+${CALL.number}]
    mov rdi, [r12+${CALL.arguments}]
    mov rsi, [r12+${CALL.arguments + 8}]
    mov rdx, [r12+${CALL.arguments + 16}]
    mov r10, [r12+${CALL.arguments + 24}]
    mov r8, [r12+${CALL.arguments + 32}]
    mov r9, [r12+${CALL.arguments + 40}]
    syscall
    mov [r12+${CALL.result}], rax
    add r12, ${CALL.size}
    sub r13, 1
    jmp make_next

; Writes sites one by one. Where the memory could not be opened, none.
write_whole:
    mov ebp, [rbx+${AGENT.memoryFile}]
    test ebp, ebp
    js served
    lea r12, [rbx+${AGENT.calls}]
    mov r13d, [rbx+${AGENT.callCount}]
write_next:
    mov edi, ebp
    lea rsi, [r12+${WRITE.bytes}]
    mov edx, ${SITE_LENGTH}
    mov r10, [r12+${WRITE.address}]
    mov eax, ${SYS.pwrite64}
    syscall
    add r12, ${CALL.size}
    sub r13, 1
    jne write_next
    jmp served

; The tracer is gone. Stop recording, turn the text back, make it read-only again, free the rings; what fails is tried again. The code
; stays: threads may be in it. A session that comes meanwhile does the rest, and says so.
orphaned:
${onOrphaned === undefined ? '' : `    call ${onOrphaned}`}
    mov rax, [rbx+${AGENT.control}]
    test rax, rax
    je leave_now
    mov qword [rax+${CONTROL.enabled}], 0
    mov qword [rbx+${AGENT.pause}], 0
    mov qword [rbx+${AGENT.pause + 8}], ${FIRST_NAP_NS}
    mov r14d, ${RETRIES}
orphaned_again:
    cmp qword [rbx+${AGENT.control}], 0
    je leave_now
    mov r12, [rbx+${AGENT.runs}]
    mov r13, [rbx+${AGENT.runCount}]
    call restore
    test eax, eax
    je orphaned_shut
    sub r14d, 1
    je orphaned_done
    call nap
    cmp qword [rbx+${AGENT.pause + 8}], ${MAX_NAP_NS}
    jae orphaned_again
    shl qword [rbx+${AGENT.pause + 8}], 1
    jmp orphaned_again
orphaned_shut:
    call shut_text
orphaned_done:
    mov rdi, [rbx+${AGENT.rings}]
    mov rsi, [rbx+${AGENT.ringBytes}]
    mov edx, ${MADV.remove}
    mov eax, ${SYS.madvise}
    syscall
    jmp leave_now
leave_shut:
    call shut_text                   ; the session may not have been able to, as this thread stood still
leave_now:
    xor edi, edi
    mov eax, ${SYS.exit}
    syscall
    ud2

; Sleeps for as long as the page says.
nap:
    lea rdi, [rbx+${AGENT.pause}]
    xor esi, esi
    mov eax, ${SYS.nanosleep}
    syscall
    ret

; Takes the private copies of r13 runs from r12 on away. eax: how many could not be. What is not text of ours any more, as its file was
; unmapped, is passed over: one of two words must be as we left it or as it was. The kernel reads them for us, as nothing may be there.
restore:
    xor ebp, ebp
restore_next:
    test r13, r13
    je restore_done
    lea r15, [r12+${TEXT_RUN.witnesses}]
    call witness
    je restore_take
    add r15, ${TEXT_RUN.witness}
    call witness
    jne restore_on
restore_take:
    mov rdi, [r12]
    mov rsi, [r12+8]
    mov rdx, rsi
    mov r10d, ${MREMAP_AWAY}
    xor r8d, r8d
    mov eax, ${SYS.mremap}
    syscall
    test rax, rax
    js restore_failed
    mov rdi, rax
    mov rsi, [r12+8]
    mov eax, ${SYS.munmap}
    syscall
    jmp restore_on
restore_failed:
    add ebp, 1
restore_on:
    add r12, ${TEXT_RUN.size}
    sub r13, 1
    jmp restore_next
restore_done:
    mov eax, ebp
    ret

; r15: {address, as we left it, as it was}. Equal if it is one of these, or if that cannot be known.
witness:
    mov edx, [r15+8]
    call compare_word
    je witnessed
    mov edx, [r15+12]
    call compare_word
witnessed:
    ret
compare_word:
    mov rdi, [r15]
    mov esi, ${FUTEX.wait | FUTEX.privateFlag}
    lea r10, [rbx+${AGENT.threadBlock}] ; no time at all
    mov eax, ${SYS.futex}
    syscall
    cmp eax, ${EAGAIN}
    je compared_other
    cmp eax, ${EFAULT}
    je compared_other
    cmp eax, eax
    ret
compared_other:
    test rbx, rbx                    ; never 0
    ret
${SHUT_LISTING}
${RIGHTS_LISTING}`;
}

/** The tracer's side of the thread. */
export class AgentThread {
  readonly #ownTid: number;
  #tid: number | undefined;
  readonly #pid: number;
  readonly #owner: OwnerWord;
  readonly #words: Uint32Array;
  readonly #longs: BigInt64Array;
  readonly #bytes: Uint8Array;
  /** Address of the number of the command that was done last. */
  readonly #done: bigint;
  #isForgotten = false;
  #isConfined = false;
  /** Of the newest command: in the page anybody could change it. */
  #number = 0;
  #patience = PATIENCE_MS;
  /** It has not answered the last time: it is not to keep us waiting again. */
  #isSilent = false;

  /** `ownTid` is its id as the process knows it. */
  private constructor(ownTid: number, pid: number, owner: OwnerWord, mapping: OwnMapping) {
    this.#ownTid = ownTid;
    this.#pid = pid;
    this.#owner = owner;
    this.#words = new Uint32Array(mapping.bytes);
    this.#longs = new BigInt64Array(mapping.bytes);
    this.#bytes = new Uint8Array(mapping.bytes);
    this.#done = mapping.address + BigInt(AGENT.done);
  }

  /**
   * Starts the thread, by a held thread that makes `call`. `mapping` is the agent's page; the code is in place already. The first
   * that it does is to give up these rights. Undefined if the process may have no further thread.
   */
  static start(
    pid: number,
    call: RemoteCall,
    mapping: OwnMapping,
    places: AgentThreadPlaces,
    givenUp: GivenUp,
  ): AgentThread | undefined {
    const owner = AgentThread.prepare(mapping, givenUp);
    new BigInt64Array(mapping.bytes)[AGENT.stack / 8] = BigInt(places.code);
    const { page } = places;
    const stack = page + AGENT.stack;
    // It begins with the registers of the thread that clones it, so that the sixth argument, of which there is none, gets there too.
    let own: number;
    try {
      own = call(SYS.clone, AGENT_THREAD_FLAGS, stack, 0, 0, page + AGENT.threadBlock, page);
    } catch (error) {
      // Should it be there all the same, it is to leave. The word is ours no more: its mapping may go.
      new Uint32Array(mapping.bytes)[AGENT.owner / 4] |= FUTEX_OWNER_DIED;
      owner.release();
      throw error;
    }
    if (own < 0) {
      owner.release();
      return undefined;
    }
    return new AgentThread(own, pid, owner, mapping);
  }

  /** Makes the agent's pages ready for a thread, which looks at the owner's word as soon as it runs. */
  static prepare(mapping: OwnMapping, { what, user, group }: GivenUp): OwnerWord {
    const owner = new OwnerWord(mapping, AGENT.entry);
    const page = new Uint8Array(mapping.bytes);
    page.set(new TextEncoder().encode(NAME), AGENT.name);
    page.set(new TextEncoder().encode(MEMORY_PATH), AGENT.memoryPath);
    const words = new Uint32Array(mapping.bytes);
    words[AGENT.memoryFile / 4] = NO_FILE;
    words[AGENT.giveUp / 4] = what;
    words[AGENT.user / 4] = user;
    words[AGENT.group / 4] = group;
    return owner;
  }

  /** A thread that has started by itself, with pages that were made ready. */
  static adopt(ownTid: number, pid: number, owner: OwnerWord, mapping: OwnMapping): AgentThread {
    return new AgentThread(ownTid, pid, owner, mapping);
  }

  /** From now on it is not waited for as patiently. */
  hurry(): void {
    this.#patience = HURRIED_PATIENCE_MS;
  }

  /** Gets it the processor sooner: among hundreds of busy threads it would wait for seconds. */
  prefer(): void {
    if (this.tid !== NO_THREAD) preferThread(this.tid);
  }

  /** Its id as we know it; NO_THREAD if the process has none that it might be. */
  get tid(): number {
    this.#tid ??= tidOf(this.#pid, this.#ownTid);
    return this.#tid ?? NO_THREAD;
  }

  /** Tells it where the runs of text are that it is to turn back, by command or when we die: `count` of them from `address` on. */
  setTextRuns(address: number, count: number): void {
    this.#longs[AGENT.runs / 8] = BigInt(address);
    this.#longs[AGENT.runCount / 8] = BigInt(count);
  }

  /** Tells it where the mappings of text are that are writable, and that it is to shut when we die, or dismiss it, and all is turned back. */
  setOpenedText(address: number, count: number): void {
    this.#longs[AGENT.openedCount / 8] = 0n;
    this.#longs[AGENT.opened / 8] = BigInt(address);
    this.#longs[AGENT.openedCount / 8] = BigInt(count);
  }

  /** There are none, or none yet: the table may be written. Returns what takes that back. */
  clearTextRuns(): () => void {
    const count = this.#longs[AGENT.runCount / 8];
    this.#longs[AGENT.runCount / 8] = 0n;
    return () => {
      this.#longs[AGENT.runCount / 8] = count;
    };
  }

  /** Tells it what to turn off, to put right and to free should we die. From then on it is of use. */
  setMemory({ control, rings, ringBytes }: OrphanPlaces): void {
    // Without it the rest is not looked at.
    this.#longs[AGENT.control / 8] = 0n;
    this.#longs[AGENT.ringBytes / 8] = BigInt(ringBytes);
    this.#longs[AGENT.rings / 8] = BigInt(rings);
    this.#longs[AGENT.control / 8] = BigInt(control);
  }

  /**
   * Keeps it in: no file, no port, and a table of descriptors of its own unless it has one. `page` is where its pages are in the target.
   *
   * @throws CannotError AGENT_LOST
   */
  confine(page: number, hasOwnFiles: boolean): void {
    if (this.#isConfined) return;
    this.#isConfined = true;
    if (!hasOwnFiles) this.#words[AGENT.memoryFile / 4] = separateFiles(this.call, page);
    confine(this.call, page, this.#bytes);
  }

  /** Has it make one system call. Returns the result, or -errno. @throws CannotError AGENT_LOST */
  readonly call: RemoteCall = (n, ...args) => this.calls([[n, ...args]])[0];

  /** Has it make system calls one after the other, whatever each returns: {number, arguments...}. @throws CannotError AGENT_LOST */
  calls(list: readonly (readonly (number | bigint)[])[]): number[] {
    const results: number[] = [];
    for (let from = 0; from < list.length; from += CALLS_MAX) {
      const some = list.slice(from, from + CALLS_MAX);
      this.#plan(some);
      this.#perform(ACTION.makeCalls);
      some.forEach((_, i) => {
        results.push(Number(this.#longs[(AGENT.calls + i * CALL.size + CALL.result) / 8]));
      });
    }
    return results;
  }

  /**
   * Has it write whole sites, in ascending indices from `from` on: each in one system call, which ends even if we are killed. Where it
   * could not open its memory, or has left, nothing is written. @throws CannotError AGENT_LOST
   */
  writeWhole(sites: readonly WholeSite[]): void {
    // It may have had to leave.
    if (this.#isForgotten) return;
    for (let from = 0; from < sites.length; from += CALLS_MAX) {
      const some = sites.slice(from, from + CALLS_MAX);
      some.forEach(({ address, bytes }, i) => {
        const at = AGENT.calls + i * CALL.size;
        this.#longs[(at + WRITE.address) / 8] = BigInt(address);
        this.#bytes.set(bytes, at + WRITE.bytes);
      });
      this.#words[AGENT.callCount / 4] = some.length;
      this.#perform(ACTION.writeWhole);
    }
  }

  /**
   * Turns the text runs back to what the file has. Returns the number of those that could not be.
   *
   * @throws CannotError AGENT_LOST
   */
  restoreText(): number {
    this.#perform(ACTION.restoreText);
    return this.#words[AGENT.failed / 4];
  }

  /** Ends the thread, and waits until it has gone. */
  leave(): void {
    this.#end(ACTION.leave);
  }

  /** Ends the thread as the last of its process, which ends with this status: since Linux 5.18 that of the last thread counts. */
  leaveLast(status: number): void {
    if (this.#isForgotten) return;
    this.#plan([[SYS.exit, status]]);
    this.#end(ACTION.makeCalls);
  }

  /** By an action after which it is no more. */
  #end(action: number): void {
    if (this.#isForgotten) return;
    this.#command(action);
    this.#await(() => !this.isPresent);
    this.#forget();
  }

  /** Writes down the calls that it is to make: at most `CALLS_MAX`. */
  #plan(list: readonly (readonly (number | bigint)[])[]): void {
    list.forEach((call, i) => {
      const at = (AGENT.calls + i * CALL.size) / 8;
      for (let word = 0; word < CALL.result / 8; word++) this.#longs[at + word] = BigInt(call.at(word) ?? 0);
    });
    this.#words[AGENT.callCount / 4] = list.length;
  }

  /** Lets it do what it does when we die. */
  orphan(): void {
    if (this.#isForgotten) return;
    this.#words[AGENT.owner / 4] |= FUTEX_OWNER_DIED;
    this.#owner.wake();
    this.#forget();
  }

  /** The word is ours no more: the target has gone, or the thread has. */
  #forget(): void {
    if (this.#isForgotten) return;
    this.#isForgotten = true;
    this.#owner.release();
  }

  /** Has it do one of its further actions; `hurry` is called should that take so long. @throws CannotError AGENT_LOST */
  perform(action: number, patienceMs: number, hurry: () => void): void {
    this.#command(action);
    const since = performance.now();
    let isHurried = false;
    this.#await(() => {
      if (!isHurried && performance.now() - since > patienceMs) {
        isHurried = true;
        hurry();
      }
      return this.#isDone;
    });
  }

  #perform(action: number): void {
    this.#command(action);
    this.#await(() => this.#isDone);
  }

  /** True while it is there: it goes with the program, also where the process executes another one. */
  get isPresent(): boolean {
    // A list of threads that is read while others end may not be whole: it is asked for by name first.
    return readStatus(this.#pid, this.tid) !== undefined || (readThreads(this.#pid) ?? []).includes(this.tid);
  }

  get #isDone(): boolean {
    return this.#words[AGENT.done / 4] === this.#number;
  }

  #command(action: number): void {
    faultPoint();
    this.#words[AGENT.action / 4] = action;
    this.#number = (this.#number + 1) >>> 0;
    this.#words[AGENT.command / 4] = this.#number;
    this.#owner.wake();
  }

  #await(isReached: () => boolean): void {
    const since = performance.now();
    const patience = this.#isSilent ? SILENT_PATIENCE_MS : this.#patience;
    for (let polls = 0; ; polls++) {
      const done = this.#words[AGENT.done / 4];
      if (isReached()) {
        this.#isSilent = false;
        return;
      }
      if (performance.now() - since < SPIN_MS) continue;
      const isGone = polls % POLLS_PER_LOOK === 0 && !this.isPresent;
      // What it did last it may have done since.
      if (isGone && isReached()) return;
      if (isGone || performance.now() - since > ending.patience(patience)) {
        this.#isSilent = true;
        throw new CannotError('AGENT_LOST', {
          tried: `have safepoke’s thread in process ${this.#pid} do something`,
          why: isGone ? 'the process has ended, or has executed another program' : 'it does not answer',
          next: 'see whether the process is stopped, by a debugger or job control',
        });
      }
      // It may have looked for a command just before there was one.
      this.#owner.wake();
      systemCall(SYS.futex, this.#done, FUTEX.wait, done, addressOf(new Uint8Array(pollTime.buffer)));
    }
  }
}

/** True if the agent's thread has gone, or does not answer. */
export function isAgentLost(error: unknown): boolean {
  return isSafepokeError(error) && error.code === 'AGENT_LOST';
}

/**
 * The id of a thread as we know it, by that which the process knows: another one in a PID namespace of its own. Undefined: the kernel shows
 * no such thread of the process; what the process says is not to lead us to anybody else's.
 */
function tidOf(pid: number, own: number): number | undefined {
  const isIt = (tid: number): boolean =>
    (readStatus(pid, tid)?.get('NSpid') ?? String(tid)).split(/\s+/).at(-1) === String(own);
  return (readThreads(pid) ?? []).reverse().find(isIt);
}

let assembled: Uint8Array | undefined;

/** The thread's code. The first to ask waits some milliseconds for it. */
export function agentThreadCode(): Uint8Array {
  assembled ??= assemble(agentThreadListing(), 0n).bytes;
  return assembled;
}
