// System calls made by a thread of the target for us. The thread is pointed at a `syscall` instruction that is already in
// the process, let into the call and out of it, and put back exactly as it was. All its signals are blocked meanwhile. It is not
// single-stepped: the kernel tells of a step by a SIGTRAP that cannot be blocked, and a thread that has SIGTRAP blocked or ignored
// would lose that, and the process its handler. Should we be killed in the middle, it gets back by itself (return-frame.ts).
import { CannotError, ending } from '../errors/index.js';
import {
  PTRACE_EVENT_STOP,
  SYSTEM_CALL_STOP,
  errnoName,
  faultPoint,
  hasGuard,
  haste,
  mappingAt,
  ptrace,
  ptraceSignalMask,
  readMaps,
  readThreads,
  runnableThreads,
  waitForThread,
  whilePreferred,
  type Registers,
  type WaitResult,
} from '../linux/index.js';
import { Hold } from './hold.js';
import type { TargetMemory } from './memory.js';
import {
  SYSCALL_LENGTH,
  buildReturnFrame,
  findBorrowedCode,
  type BorrowedCode,
  type ReturnFrame,
} from './return-frame.js';
import { pause, type HeldThread, type SessionTimes } from './stops.js';

/** Bytes below the stack pointer that belong to the function that runs (System V ABI, 3.2.2), and then some. */
const BELOW_RED_ZONE = 512;
/** Room for strings below what else is on the stack. */
const STRING_ROOM = 256;
const NO_SYSTEM_CALL = -1n;
const MAX_STOP_REPORTS = 8;
/** A call takes microseconds, seconds where the thread waits long for a processor; and a thread that is told to stop does so at once. */
const CALL_PATIENCE_MS = 10_000;
const STOP_PATIENCE_MS = 500;
/** Polls before the processor is left to the thread, and for how long then. */
const EAGER_POLLS = 64;
const POLL_PAUSE_MS = 0.05;
/** Of so many threads one may wait long for the processor at each of its calls, were it not preferred meanwhile. */
const CROWD = 64;

/** The code of the error that says that a thread has not yet done what a tracer wanted of it that was killed. */
export const STILL_LENT = 'STILL_LENT';

/** Code of the process to make its threads do system calls with. @throws CannotError NO_SYSCALL */
export function borrowCode(pid: number, memory: TargetMemory): BorrowedCode {
  const borrowed = findBorrowedCode(pid, memory);
  if (borrowed !== undefined) return borrowed;
  throw new CannotError('NO_SYSCALL', {
    tried: `find a system call instruction in process ${pid}`,
    why: 'neither the vdso nor any file that it maps has one',
    next: 'report this with /proc/PID/maps',
  });
}

/** Somebody in the target who makes system calls for us. */
export interface CallMaker {
  /** A thread with the descriptors that the calls open. */
  readonly tid: number;
  /** Runs `work`, which may make calls, and pass strings to them. */
  run<T>(work: (call: RemoteCall, string: (text: string) => bigint) => T): T;
}

/** True if a process has so many threads at work that whoever waits for a processor beside them may wait for seconds. */
export function isCrowded(pid: number): boolean {
  return (readThreads(pid) ?? []).length >= CROWD && (runnableThreads() ?? CROWD) >= CROWD;
}

/**
 * Gives safepoke a large share of the processors, if the process is crowded, until the function that it returns is called: what
 * takes milliseconds of a processor would take seconds. Beside few threads there is no need for it, and one that shares a processor
 * with us would get next to nothing of it.
 */
export function hastenBeside(pid: number): () => void {
  if (!isCrowded(pid)) return () => undefined;
  haste.begin();
  return () => {
    haste.end();
  };
}

/**
 * Holds a thread to make calls with. In a crowd it would wait for a processor at each of them, for seconds in all: there all threads are
 * held, but for `except`, so that nobody waits for longer than that takes.
 *
 * @throws CannotError as `Hold.all` does
 */
export function holdCaller(pid: number, tid: number, times: SessionTimes, except?: number): Hold {
  return isCrowded(pid) ? Hold.all(pid, times.held, except) : Hold.one(pid, tid, times.lent);
}

/** A series of remote system calls on one held thread. */
export class RemoteCalls implements CallMaker {
  readonly #pid: number;
  readonly #thread: HeldThread;
  readonly #memory: TargetMemory;
  readonly #borrowed: BorrowedCode;

  constructor(pid: number, thread: HeldThread, memory: TargetMemory, borrowed: BorrowedCode) {
    this.#pid = pid;
    this.#thread = thread;
    this.#memory = memory;
    this.#borrowed = borrowed;
  }

  get tid(): number {
    return this.#thread.tid;
  }

  /** True if a thread that is made by a call comes to where its stack says: the system call is followed by `ret`. */
  get mayMakeThreads(): boolean {
    return this.#borrowed.wayBack !== undefined;
  }

  /**
   * Runs `work`, which may use `call` and `string`; the thread's registers, signal mask and stack are put back whatever
   * happens.
   *
   * @throws CannotError STILL_LENT
   */
  run<T>(work: (call: RemoteCall, string: (text: string) => bigint) => T): T {
    if (this.#isLent()) {
      throw new CannotError(STILL_LENT, {
        tried: `make thread ${this.#thread.tid} run system calls`,
        why: 'it has yet to make one for another safepoke, which was killed',
        next: 'try again in a moment; if the process is stopped, let it go on',
      });
    }
    return isCrowded(this.#pid) ? whilePreferred(this.#thread.tid, () => this.#run(work)) : this.#run(work);
  }

  /**
   * True if the thread was lent to a tracer that has died, and is about to make its last call, or has just made it: what comes of
   * that was not there when somebody looked for what that tracer left.
   */
  #isLent(): boolean {
    const { syscall, wayBack } = this.#borrowed;
    const rip = this.#thread.registers.get('rip');
    if (rip === syscall) return true;
    const returnsTo = wayBack?.at(0);
    const stack = Number(this.#thread.registers.get('rsp'));
    return (
      rip === syscall + SYSCALL_LENGTH &&
      returnsTo !== undefined &&
      this.#memory.readWord(stack) === returnsTo
    );
  }

  #run<T>(work: (call: RemoteCall, string: (text: string) => bigint) => T): T {
    const { tid, registers } = this.#thread;
    const saved = registers.copy();
    const mask = ptraceSignalMask.get(tid);
    const frame = this.#placeFrame(mask);
    const stack = frame?.address ?? Number(registers.get('rsp')) - BELOW_RED_ZONE;
    const strings = stack - STRING_ROOM;
    let overwritten: Uint8Array | undefined;
    // From the first call on. The mask is changed while the frame that holds the true one is in force, not before.
    const state = { isBorrowed: false };
    const call: RemoteCall = (n, ...args) => {
      const lent = this.#prepare(saved, frame?.address, n, args);
      faultPoint();
      ptrace.setRegisters(tid, lent);
      faultPoint();
      if (!state.isBorrowed) ptraceSignalMask.set(tid, ptraceSignalMask.all);
      state.isBorrowed = true;
      return this.#finishCall(n, lent);
    };
    try {
      return work(call, (text) => {
        const bytes = new TextEncoder().encode(`${text}\0`);
        overwritten ??= this.#memory.read(strings, STRING_ROOM);
        this.#memory.write(strings, bytes.subarray(0, STRING_ROOM));
        return BigInt(strings);
      });
    } finally {
      if (overwritten !== undefined) this.#memory.write(strings, overwritten);
      if (state.isBorrowed) ptraceSignalMask.set(tid, mask);
      faultPoint();
      ptrace.setRegisters(tid, saved);
      if (frame !== undefined) this.#memory.write(frame.address, frame.former);
    }
  }

  /** Lays a return frame onto the thread's stack, if that is a stack with room for it. */
  #placeFrame(mask: Uint8Array): (ReturnFrame & { readonly former: Uint8Array }) | undefined {
    const { tid, registers } = this.#thread;
    const { wayBack } = this.#borrowed;
    if (wayBack === undefined) return undefined;
    const frame = buildReturnFrame(tid, registers, mask, wayBack, this.#memory);
    if (frame === undefined || !this.#isStackFrom(frame.address - STRING_ROOM)) return undefined;
    const former = this.#memory.read(frame.address, frame.bytes.length);
    this.#memory.write(frame.address, frame.bytes);
    return { ...frame, former };
  }

  /**
   * True if the memory from `low` up to the stack pointer is surely stack: the main thread's, or one with a guard below. An
   * alternate stack for signal handlers may lie in a heap, with other things below it.
   */
  #isStackFrom(low: number): boolean {
    const maps = readMaps(this.#pid) ?? [];
    const index = mappingAt(maps, low);
    if (index < 0) return false;
    const { path, end } = maps[index];
    const isStack = path === '[stack]' || hasGuard(maps, index);
    return isStack && Number(this.#thread.registers.get('rsp')) <= end;
  }

  #prepare(
    saved: Registers,
    stack: number | undefined,
    n: number,
    args: readonly (number | bigint)[],
  ): Registers {
    const registers = saved.copy();
    const argumentRegisters = ['rdi', 'rsi', 'rdx', 'r10', 'r8', 'r9'] as const;
    args.forEach((value, i) => registers.set(argumentRegisters[i], BigInt(value)));
    if (stack !== undefined) registers.set('rsp', BigInt(stack));
    return registers.set('rax', BigInt(n)).set('orig_rax', NO_SYSTEM_CALL).set('rip', this.#borrowed.syscall);
  }

  /** Lets the thread into the system call and out of it. */
  #finishCall(n: number, registers: Registers): number {
    const { tid } = this.#thread;
    for (let stops = 0, reports = 0; stops < 2;) {
      faultPoint();
      ptrace.contToSystemCall(tid);
      const result = awaitCall(tid);
      // A process that job control has stopped (SIGSTOP) may tell so once more before it goes on.
      const isReport = result.kind === 'stopped' && result.event === PTRACE_EVENT_STOP;
      if (isReport && ++reports < MAX_STOP_REPORTS) continue;
      if (result.kind !== 'stopped' || result.signal !== SYSTEM_CALL_STOP) {
        throw new CannotError('REMOTE_CALL', {
          tried: `make thread ${tid} run system call ${n}`,
          why:
            result.kind === 'none'
              ? 'it does not come back from it'
              : result.kind === 'stopped'
                ? `signal ${result.signal} came instead`
                : 'the thread ended',
          next: 'see whether the process still runs, and attach again if it does',
        });
      }
      stops++;
    }
    ptrace.getRegisters(tid, registers);
    return Number(BigInt.asIntN(64, registers.get('rax')));
  }
}

/**
 * Waits until the thread stops. One whose code another has changed meanwhile may never do so: it is made to stop, and the call is given up
 * (`none`), as nobody ends us while we wait in the kernel.
 */
function awaitCall(tid: number): WaitResult {
  const since = performance.now();
  for (let polls = 0; ; polls++) {
    const result = waitForThread(tid, false);
    if (result.kind !== 'none') return result;
    if (performance.now() - since > ending.patience(CALL_PATIENCE_MS)) break;
    if (polls > EAGER_POLLS) pause(POLL_PAUSE_MS);
  }
  ptrace.interrupt(tid);
  const stopUntil = performance.now() + ending.patience(STOP_PATIENCE_MS);
  while (performance.now() < stopUntil && waitForThread(tid, false).kind === 'none') pause(POLL_PAUSE_MS);
  return { kind: 'none' };
}

/** Returns what the kernel does: the result, or -errno. */
export type RemoteCall = (n: number, ...args: (number | bigint)[]) => number;

/** Throws where a remote call failed. `what` completes "cannot ...". */
export function expectSuccess(result: number, what: string, next: string): number {
  if (result >= 0 || result < -4095) return result;
  throw new CannotError('REMOTE_CALL', { tried: what, why: errnoName(-result), next });
}
