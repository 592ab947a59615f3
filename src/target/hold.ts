// Holding threads with ptrace. PTRACE_SEIZE and PTRACE_INTERRUPT stop a thread without sending it a signal, so that nothing
// the program could see is left behind. A thread is seized only while it is held: a seized thread would stop for us at
// every signal it gets.
import { CannotError } from '../errors/index.js';
import {
  ERRNO,
  PTRACE_O_TRACESYSGOOD,
  Registers,
  errnoName,
  faultPoint,
  hasEnded,
  ptrace,
  readStatus,
  readThreads,
  stoppedBySignal,
  tellNothingOfStops,
  urgency,
} from '../linux/index.js';
import { permissionAdvice } from './permission.js';
import { threadBatch } from './thread-batch.js';

/**
 * How long a thread may take to stop while the others are held already. One that waits for a vfork child, or for a device, does
 * not stop before that is over; the others must not wait for it, so all are let go and held again a little later.
 */
const STOP_PATIENCE_MS = 50;
const HOLD_TRIES = 60;
const RETRY_PAUSE_MS = 50;
const STRAGGLER_POLL_MS = 2;
/** First looks are immediate, where there are few to look at; then the processor is left to the thread that is to stop, and to the others. */
const EAGER_LOOKS = 4;
const FEW = 16;
const POLL_PAUSE_MS = 0.05;
const MAX_POLL_PAUSE_MS = 3;
/** Asked to stop at once by who looks at threads one by one: each that has stopped stands while those before it are looked at. */
const LOOKED_AT_ONCE = 64;
/** What a thread takes to stop, once it has the processor. */
const STOP_MS = 0.003;

const pauseCell = new Int32Array(new SharedArrayBuffer(4));

/** A thread that is let go to take its signal is asked to stop again at once. */
const CALLABLE_PATIENCE_MS = 1000;

/** Blocks this thread, and with it Node's event loop, for a time that may be below a millisecond. */
export function pause(milliseconds: number): void {
  Atomics.wait(pauseCell, 0, 0, milliseconds);
}

/**
 * System calls that report a false EINTR when a ptrace stop interrupts them, though no signal came (signal(7), "Interruption
 * of system calls and library functions by stop signals"; found true of each on Linux 6.18).
 */
export const FALSE_EINTR: ReadonlySet<bigint> = new Set([
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
  /** performance.now() at which it was seen going for the last time. */
  readonly since: number;
}

/** Threads of a process that stand still, however they were made to. */
export interface Standstill {
  readonly threads: readonly HeldThread[];
  /** Writes changed registers into their thread. */
  writeRegisters(thread: HeldThread): void;
  /** Lets all threads go on. */
  release(): void;
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
  if (hasEnded(pid, tid)) return 'gone';
  throw new CannotError('NOT_PERMITTED', {
    tried: `hold thread ${tid} of process ${pid}`,
    why: `the kernel refused ptrace (${errnoName(-result)})`,
    next: permissionAdvice(),
  });
}

/** A set of signals as /proc/PID/status shows it. */
function signalSet(status: ReadonlyMap<string, string>, name: string): bigint {
  return BigInt(`0x${status.get(name) ?? '0'}`);
}

/** What became of a thread that was asked to stop. */
type Stop = HeldThread | 'gone' | 'late';

/** What became of those that are late no more. Of the others it is noted in `asked` that they were seen going now. */
function stopsOf(asked: Map<number, number>): [number, HeldThread | 'gone'][] {
  const tids = [...asked.keys()];
  const stops: [number, HeldThread | 'gone'][] = [];
  threadBatch.look(tids).forEach((look, i) => {
    const tid = tids[i];
    if (look.kind === 'late') {
      asked.set(tid, look.at);
    } else if (look.kind === 'gone') {
      stops.push([tid, 'gone']);
    } else {
      const pendingSignal = look.event === 0 ? look.signal : 0;
      stops.push([tid, { tid, pendingSignal, registers: look.registers, since: asked.get(tid) ?? 0 }]);
    }
  });
  return stops;
}

function stopOf(tid: number, since: number): Stop {
  return stopsOf(new Map([[tid, since]])).at(0)?.[1] ?? 'late';
}

/**
 * The same for one that should have stopped long ago. A look for the end of a child may have been told that it has. And what it was asked may be lost: threads were seen that executed a program meanwhile
 * and never stopped. So it is asked again.
 */
function overdueStopOf(tid: number, since: number): Stop {
  const registers = new Registers();
  const hasStopped = ptrace.getRegisters(tid, registers) === 0;
  const told = stopOf(tid, since);
  if (told !== 'late') return told;
  if (hasStopped) return { tid, pendingSignal: stoppedBySignal(tid), registers, since };
  ptrace.interrupt(tid);
  return 'late';
}

function overdueStopsOf(asked: ReadonlyMap<number, number>): [number, HeldThread | 'gone'][] {
  const stops: [number, HeldThread | 'gone'][] = [];
  for (const [tid, since] of asked) {
    const stop = overdueStopOf(tid, since);
    if (stop !== 'late') stops.push([tid, stop]);
  }
  return stops;
}

function awaitStop(tid: number, since: number, patienceMs: number): Stop {
  const from = performance.now();
  for (let polls = 0; ; polls++) {
    const stop = stopOf(tid, since);
    if (stop !== 'late') return stop;
    if (performance.now() - from > patienceMs) return overdueStopOf(tid, since);
    if (polls > EAGER_LOOKS) pause(POLL_PAUSE_MS);
  }
}

/**
 * Threads that were asked to stop and have not yet done so: they are seized by us, and only a stopped thread can be let go. When
 * nobody holds them, a timer waits for them, so that none stands still a moment longer than it takes to see that it does.
 */
const stragglers = new Set<number>();
let stragglerTimer: NodeJS.Timeout | undefined;

function watchStragglers(): void {
  if (stragglers.size === 0 || stragglerTimer !== undefined) return;
  tellNothingOfStops();
  stragglerTimer = setTimeout(() => {
    stragglerTimer = undefined;
    for (const tid of stragglers) {
      const stop = overdueStopOf(tid, performance.now());
      if (stop === 'late') continue;
      stragglers.delete(tid);
      if (stop !== 'gone') ptrace.detach(tid, stop.pendingSignal);
    }
    watchStragglers();
  }, STRAGGLER_POLL_MS);
}

/** Times of holds of one session, in microseconds. */
export class HoldTimes {
  longestUs = 0;
  totalUs = 0;

  /** Notes that a thread was held from `since` to `until` (performance.now()). */
  note(since: number, until = performance.now()): void {
    const us = (until - since) * 1000;
    this.longestUs = Math.max(this.longestUs, us);
  }
}

/** All threads, or one, of a process, standing still. Release it as soon as can be. */
export class Hold implements Standstill {
  readonly #pid: number;
  readonly #times: HoldTimes;
  readonly #threads = new Map<number, HeldThread>();
  readonly #since = performance.now();
  #isUrgent = false;
  #isReleased = false;

  private constructor(pid: number, times: HoldTimes) {
    this.#pid = pid;
    this.#times = times;
  }

  /**
   * Holds every thread of the process, those included that others create meanwhile, but for `except`: the agent's, which has work
   * to do then.
   *
   * @throws CannotError NOT_PERMITTED, ALREADY_TRACED, WILL_NOT_STOP
   */
  static all(pid: number, times: HoldTimes, except = 0): Hold {
    return Hold.#patiently(pid, times, (hold) => {
      const known = new Set([except]);
      for (;;) {
        const fresh = (readThreads(pid) ?? []).filter((tid) => !known.has(tid));
        if (fresh.length === 0) return undefined;
        const late = hold.#add(fresh);
        if (late !== undefined) return late;
        for (const tid of fresh) known.add(tid);
      }
    });
  }

  /** Holds one thread. @throws CannotError as `all` does */
  static one(pid: number, tid: number, times: HoldTimes): Hold {
    return Hold.#patiently(pid, times, (hold) => hold.#add([tid]));
  }

  /**
   * Looks at threads, each of which stands still while it is looked at, and no longer: on a crowded machine each takes its time until
   * it has a processor to stop on, so they are asked side by side.
   *
   * @throws CannotError as `all` does
   */
  static each(
    pid: number,
    tids: readonly number[],
    times: HoldTimes,
    look: (thread: HeldThread, hold: Standstill) => void,
  ): void {
    for (let at = 0; at < tids.length; at += LOOKED_AT_ONCE) {
      const left = new Set(tids.slice(at, at + LOOKED_AT_ONCE));
      Hold.#patiently(pid, times, (hold) =>
        hold.#add([...left], (thread) => {
          left.delete(thread.tid);
          try {
            look(thread, hold);
          } finally {
            hold.#letGo([thread]);
          }
        }),
      ).release();
    }
  }

  /** Tries to hold until no thread is late. `attempt` returns one that is. */
  static #patiently(pid: number, times: HoldTimes, attempt: (hold: Hold) => number | undefined): Hold {
    let late: number | undefined;
    for (let tries = 0; tries < HOLD_TRIES; tries++) {
      const hold = new Hold(pid, times);
      try {
        late = attempt(hold);
      } catch (error) {
        hold.release();
        throw error;
      }
      if (late === undefined) return hold;
      hold.release();
      pause(RETRY_PAUSE_MS);
    }
    watchStragglers();
    throw new CannotError('WILL_NOT_STOP', {
      tried: `hold thread ${late ?? 0} of process ${pid}`,
      why: `it does not stop (state ${readStatus(pid, late)?.get('State') ?? 'unknown'})`,
      next: 'try again when it is not waiting in the kernel, for a vfork child or a device',
    });
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
    faultPoint();
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
      const again = awaitStop(busy.tid, busy.since, CALLABLE_PATIENCE_MS);
      if (again === 'gone' || again === 'late') {
        this.#threads.delete(busy.tid);
        if (again === 'late') stragglers.add(busy.tid);
      } else {
        this.#threads.set(busy.tid, again);
      }
    }
    throw new CannotError('GONE', {
      tried: `find a thread of process ${this.#pid} to work with`,
      why: 'all of them have ended',
      next: 'start the process again',
    });
  }

  /** Lets all threads go on, those first that have stood still longest, each with the signal that it was about to get. */
  release(): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    this.#letGo(this.threads);
    this.#threads.clear();
    this.#calmDown();
    watchStragglers();
    this.#times.totalUs += (performance.now() - this.#since) * 1000;
  }

  #letGo(threads: readonly HeldThread[]): void {
    const gone = threadBatch.detach(threads);
    threads.forEach(({ since }, i) => {
      this.#times.note(since, gone[i]);
    });
  }

  #hurry(): void {
    if (this.#isUrgent) return;
    this.#isUrgent = true;
    urgency.begin();
  }

  #calmDown(): void {
    if (!this.#isUrgent) return;
    this.#isUrgent = false;
    urgency.end();
  }

  readonly #keep = (thread: HeldThread): void => {
    this.#threads.set(thread.tid, thread);
  };

  /** Returns a thread that did not stop in time, if there is one; the others are taken all the same: held, if nothing else is said. */
  #add(tids: readonly number[], take = this.#keep): number | undefined {
    this.#hurry();
    const seized: number[] = [];
    let late: number | undefined;
    try {
      const fresh = tids.filter((tid) => !stragglers.has(tid));
      // A straggler is ours since an earlier attempt, and was asked to stop then.
      seized.push(...tids.filter((tid) => stragglers.has(tid)));
      const results = threadBatch.seize(fresh, PTRACE_O_TRACESYSGOOD);
      seized.push(...fresh.filter((_, i) => results[i] === 0));
      fresh.forEach((tid, i) => {
        if (results[i] !== 0 && seize(this.#pid, tid, PTRACE_O_TRACESYSGOOD) === 'seized') seized.push(tid);
      });
    } finally {
      // All are asked before the first is waited for: they stop side by side.
      const asked = new Map(seized.map((tid) => [tid, performance.now()]));
      const fresh = seized.filter((tid) => !stragglers.has(tid));
      const times = threadBatch.interrupt(fresh);
      fresh.forEach((tid, i) => asked.set(tid, times[i]));
      late = this.#gather(asked, take);
    }
    return late;
  }

  /**
   * Waits until all have stopped, in whatever order they do: `asked` says since when each may stand still. Between two looks the
   * processor is theirs: a thread needs it to stop. Returns one that did not stop though for a while no other did either.
   */
  #gather(asked: Map<number, number>, take: (thread: HeldThread) => void): number | undefined {
    let progress = performance.now();
    try {
      for (let looks = 0; ; looks++) {
        if (looks > EAGER_LOOKS || asked.size > FEW)
          pause(Math.max(POLL_PAUSE_MS, Math.min(MAX_POLL_PAUSE_MS, asked.size * STOP_MS)));
        const before = asked.size;
        const isOverdue = performance.now() - progress > STOP_PATIENCE_MS;
        for (const [tid, stop] of isOverdue ? overdueStopsOf(asked) : stopsOf(asked)) {
          asked.delete(tid);
          stragglers.delete(tid);
          if (stop === 'gone') continue;
          this.#undoFalseEintr(stop);
          take(stop);
        }
        if (asked.size === 0) return undefined;
        if (isOverdue) return [...asked.keys()][0];
        if (asked.size < before) progress = performance.now();
      }
    } finally {
      for (const tid of asked.keys()) stragglers.add(tid);
    }
  }

  /** At once, not on release: should we be killed, the thread goes on with what it has now. */
  #undoFalseEintr(thread: HeldThread): void {
    const { registers, tid } = thread;
    if (BigInt.asIntN(64, registers.get('rax')) !== EINTR_RESULT) return;
    const call = BigInt.asIntN(64, registers.get('orig_rax'));
    if (thread.pendingSignal !== 0 || !FALSE_EINTR.has(call)) return;
    // Where a real signal waits, EINTR is the truth.
    const status = readStatus(this.#pid, tid);
    if (status === undefined) return;
    const pending = signalSet(status, 'SigPnd') | signalSet(status, 'ShdPnd');
    if ((pending & ~signalSet(status, 'SigBlk')) !== 0n) return;
    registers.set('rax', ERESTARTNOHAND_RESULT);
    ptrace.setRegisters(tid, registers);
  }
}
