// Holding threads with ptrace. PTRACE_SEIZE and PTRACE_INTERRUPT stop a thread without sending it a signal, so that nothing
// the program could see is left behind. A thread is seized only while it is held: a seized thread would stop for us at
// every signal it gets.
import { CannotError } from '../errors/index.js';
import {
  ERRNO,
  PTRACE_EVENT_STOP,
  Registers,
  errnoName,
  ptrace,
  readStatus,
  readThreads,
  waitForThread,
} from '../linux/index.js';

const SIGTRAP = 5;
/** How long a thread may take to stop. One that waits for a vfork child, or for a dead disk, cannot stop. */
const STOP_PATIENCE_MS = 5000;
/** First polls are immediate; then the processor is left to the thread that is to stop. */
const EAGER_POLLS = 50;
const POLL_PAUSE_MS = 0.05;

const pauseCell = new Int32Array(new SharedArrayBuffer(4));

/** Blocks this thread, and with it Node's event loop, for a time that may be below a millisecond. */
export function pause(milliseconds: number): void {
  Atomics.wait(pauseCell, 0, 0, milliseconds);
}

/**
 * System calls that report a false EINTR when a ptrace stop interrupts them, though no signal came (signal(7), "Interruption
 * of system calls and library functions by stop signals"; found true of each on Linux 6.18).
 */
const FALSE_EINTR: ReadonlySet<bigint> = new Set([
  0n, // read, of a socket with a timeout, as the next three
  1n, // write
  19n, // readv
  20n, // writev
  45n, // recvfrom
  47n, // recvmsg
  43n, // accept
  288n, // accept4
  42n, // connect
  44n, // sendto
  46n, // sendmsg
  65n, // semop
  220n, // semtimedop
  128n, // rt_sigtimedwait
  208n, // io_getevents
  232n, // epoll_wait
  281n, // epoll_pwait
  441n, // epoll_pwait2
  299n, // recvmmsg
  307n, // sendmmsg
  333n, // io_pgetevents
  426n, // io_uring_enter
]);
const EINTR_RESULT = -4n;
/**
 * -ERESTARTNOHAND (include/linux/errno.h): the kernel makes the call again when the thread goes on, unless a signal has come
 * by then for which there is a handler: then the call fails with EINTR, as the program expects.
 */
const ERESTARTNOHAND_RESULT = -514n;

/** A thread that stands still because we hold it. */
export interface HeldThread {
  readonly tid: number;
  /** Signal that was about to be delivered when it stopped; delivered when it is released. 0: none. */
  readonly pendingSignal: number;
  /** Registers as they are in the thread; after changing them, call `writeRegisters`. */
  readonly registers: Registers;
  /** performance.now() when it was asked to stop. */
  readonly since: number;
}

/** What became of a wish to hold a thread. */
type SeizeResult = 'seized' | 'gone';

function seize(pid: number, tid: number, options: number): SeizeResult {
  const result = ptrace.seize(tid, options);
  if (result === 0) return 'seized';
  if (result === -ERRNO.ESRCH) return 'gone';
  const tracer = readStatus(pid, tid)?.get('TracerPid') ?? '0';
  if (tracer !== '0') {
    throw new CannotError('ALREADY_TRACED', {
      tried: `hold thread ${tid} of process ${pid}`,
      why: `process ${tracer} (a debugger or another tracer) traces it`,
      next: 'end that tracer first',
    });
  }
  // A zombie leader of a process whose other threads live on cannot be seized, and need not be.
  if (/^[ZX]/.test(readStatus(pid, tid)?.get('State') ?? 'X')) return 'gone';
  throw new CannotError('NOT_PERMITTED', {
    tried: `hold thread ${tid} of process ${pid}`,
    why: `the kernel refused ptrace (${errnoName(-result)})`,
    next: 'run safepoke as the same user as the process, as root, or with CAP_SYS_PTRACE, and see /proc/sys/kernel/yama/ptrace_scope; `safepoke doctor` tells more',
  });
}

function awaitStop(pid: number, tid: number, since: number): HeldThread | undefined {
  for (let polls = 0; ; polls++) {
    const result = waitForThread(tid, false);
    if (result.kind === 'stopped') {
      const registers = new Registers();
      if (ptrace.getRegisters(tid, registers) < 0) return undefined;
      const pendingSignal = result.event === 0 ? result.signal : 0;
      return { tid, pendingSignal, registers, since };
    }
    if (result.kind !== 'none') return undefined;
    if (performance.now() - since > STOP_PATIENCE_MS) {
      throw new CannotError('WILL_NOT_STOP', {
        tried: `hold thread ${tid} of process ${pid}`,
        why: `it did not stop within ${STOP_PATIENCE_MS / 1000} s (state ${readStatus(pid, tid)?.get('State') ?? 'unknown'})`,
        next: 'try again when it is not waiting in the kernel, for a vfork child or a device',
      });
    }
    if (polls > EAGER_POLLS) pause(POLL_PAUSE_MS);
  }
}

/** Times of holds of one session, in microseconds. */
export class HoldTimes {
  longestUs = 0;
  totalUs = 0;

  /** Notes that threads were held from `since` (performance.now()) until now. */
  note(since: number): void {
    const us = (performance.now() - since) * 1000;
    this.longestUs = Math.max(this.longestUs, us);
  }
}

/** All threads, or one, of a process, standing still. Release it as soon as can be. */
export class Hold {
  readonly #pid: number;
  readonly #times: HoldTimes;
  readonly #threads = new Map<number, HeldThread>();
  readonly #since = performance.now();

  private constructor(pid: number, times: HoldTimes) {
    this.#pid = pid;
    this.#times = times;
  }

  /** Holds every thread of the process, those included that others create meanwhile. */
  static all(pid: number, times: HoldTimes): Hold {
    const hold = new Hold(pid, times);
    hold.#guarded(() => {
      const known = new Set<number>();
      for (;;) {
        const fresh = (readThreads(pid) ?? []).filter((tid) => !known.has(tid));
        if (fresh.length === 0) return;
        hold.#add(fresh);
        for (const tid of fresh) known.add(tid);
      }
    });
    return hold;
  }

  /** Holds one thread, at a moment when no signal is about to be delivered to it. */
  static one(pid: number, tid: number, times: HoldTimes): Hold {
    const hold = new Hold(pid, times);
    hold.#guarded(() => {
      hold.#add([tid]);
    });
    return hold;
  }

  /** Takes over a thread that is stopped and traced by us already (a program that we started). */
  static adopt(pid: number, tid: number, times: HoldTimes): Hold {
    const hold = new Hold(pid, times);
    const registers = new Registers();
    ptrace.getRegisters(tid, registers);
    hold.#threads.set(tid, { tid, pendingSignal: 0, registers, since: performance.now() });
    return hold;
  }

  get threads(): readonly HeldThread[] {
    return [...this.#threads.values()];
  }

  /** Writes changed registers into their thread. */
  writeRegisters(thread: HeldThread): void {
    ptrace.setRegisters(thread.tid, thread.registers);
  }

  /**
   * A thread that may be made to run a system call for us: no signal waits to be delivered to it, as single-stepping would
   * lose what came with the signal. If all have one, the first gets its signal and is stopped again.
   */
  callableThread(): HeldThread {
    for (let attempts = 0; attempts < 1000; attempts++) {
      const free = this.threads.find((thread) => thread.pendingSignal === 0);
      if (free !== undefined) return free;
      const [busy] = this.threads;
      if (this.#threads.size === 0) break;
      ptrace.cont(busy.tid, busy.pendingSignal);
      ptrace.interrupt(busy.tid);
      const again = awaitStop(this.#pid, busy.tid, busy.since);
      if (again === undefined) this.#threads.delete(busy.tid);
      else this.#threads.set(busy.tid, again);
    }
    throw new CannotError('GONE', {
      tried: `find a thread of process ${this.#pid} to work with`,
      why: 'all of them have ended',
      next: 'start the process again',
    });
  }

  /**
   * Steps a thread, one instruction at a time, until `until` is true of its instruction pointer. False: it got a signal or
   * took more than `maxSteps` and is wherever it is now.
   */
  stepUntil(thread: HeldThread, until: (rip: bigint) => boolean, maxSteps: number): boolean {
    if (thread.pendingSignal !== 0) return false;
    for (let step = 0; step < maxSteps; step++) {
      if (until(thread.registers.get('rip'))) return true;
      if (ptrace.singleStep(thread.tid) < 0) return false;
      const result = waitForThread(thread.tid, true);
      if (result.kind !== 'stopped') {
        this.#threads.delete(thread.tid);
        return true;
      }
      ptrace.getRegisters(thread.tid, thread.registers);
      if (result.event === PTRACE_EVENT_STOP) continue;
      if (result.signal !== SIGTRAP || result.event !== 0) {
        if (result.event === 0) this.#threads.set(thread.tid, { ...thread, pendingSignal: result.signal });
        return false;
      }
    }
    return false;
  }

  /** Lets all threads go on, each with the signal that it was about to get. */
  release(): void {
    for (const thread of this.#threads.values()) {
      this.#undoFalseEintr(thread);
      ptrace.detach(thread.tid, thread.pendingSignal);
      this.#times.note(thread.since);
    }
    this.#threads.clear();
    this.#times.totalUs += (performance.now() - this.#since) * 1000;
  }

  #add(tids: readonly number[]): void {
    const seized: { tid: number; since: number }[] = [];
    try {
      for (const tid of tids) {
        if (seize(this.#pid, tid, 0) === 'gone') continue;
        seized.push({ tid, since: performance.now() });
        ptrace.interrupt(tid);
      }
    } finally {
      for (const { tid, since } of seized) {
        const held = awaitStop(this.#pid, tid, since);
        if (held !== undefined) this.#threads.set(tid, held);
      }
    }
  }

  #guarded(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.release();
      throw error;
    }
  }

  #undoFalseEintr(thread: HeldThread): void {
    const { registers, tid } = thread;
    if (BigInt.asIntN(64, registers.get('rax')) !== EINTR_RESULT) return;
    const call = BigInt.asIntN(64, registers.get('orig_rax'));
    if (thread.pendingSignal !== 0 || !FALSE_EINTR.has(call)) return;
    // Where a real signal waits, EINTR is the truth.
    const status = readStatus(this.#pid, tid);
    if (status === undefined) return;
    const mask = (name: string): bigint => BigInt(`0x${status.get(name) ?? '0'}`);
    if (((mask('SigPnd') | mask('ShdPnd')) & ~mask('SigBlk')) !== 0n) return;
    registers.set('rax', ERESTARTNOHAND_RESULT);
    ptrace.setRegisters(tid, registers);
  }
}
