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
  urgency,
} from '../linux/index.js';
import type { Latches } from './latches.js';
import { permissionAdvice } from './permission.js';
import {
  awaitStop,
  gatherStops,
  letGo,
  pause,
  rehearseStops,
  stragglers,
  watchStragglers,
  type HeldThread,
  type HoldTimes,
} from './stops.js';
import { threadBatch } from './thread-batch.js';

const HOLD_TRIES = 60;
const RETRY_PAUSE_MS = 50;
/** Asked to stop at once by who looks at threads one by one: each that has stopped stands while those before it are looked at. */
const LOOKED_AT_ONCE = 16;
/** A thread that is let go to take its signal is asked to stop again at once. */
const CALLABLE_PATIENCE_MS = 1000;

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

/** All threads, or one, of a process, standing still. Release it as soon as can be. */
export class Hold implements Standstill {
  readonly #pid: number;
  readonly #times: HoldTimes;
  readonly #threads = new Map<number, HeldThread>();
  readonly #since = performance.now();
  #latches: Latches | undefined;
  #isUrgent = false;
  #isReleased = false;

  private constructor(pid: number, times: HoldTimes) {
    this.#pid = pid;
    this.#times = times;
  }

  /**
   * Holds every thread of the process, those included that others create meanwhile, but for `except`: the agent's, which has work
   * to do then. Those that are latched need not be held; they go on with the others.
   *
   * @throws CannotError NOT_PERMITTED, ALREADY_TRACED, WILL_NOT_STOP
   */
  static all(pid: number, times: HoldTimes, except = 0, latches?: Latches): Hold {
    return Hold.#patiently(pid, times, (hold) => {
      // Should one be late, all are let go, and are held like any others then.
      hold.#latches = latches;
      const known = new Set([except]);
      for (;;) {
        const fresh = (readThreads(pid) ?? []).filter(
          (tid) => !known.has(tid) && hold.#latches?.has(tid) !== true,
        );
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
            letGo([thread], times);
          }
        }),
      ).release();
    }
  }

  /** Tries to hold until no thread is late. `attempt` returns one that is. */
  static #patiently(pid: number, times: HoldTimes, attempt: (hold: Hold) => number | undefined): Hold {
    rehearseStops();
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
    hold.#threads.set(tid, { tid, kind: 'untold', pendingSignal: 0, registers, since: performance.now() });
    return hold;
  }

  get threads(): readonly HeldThread[] {
    return [...this.#threads.values(), ...(this.#latches?.threads ?? [])];
  }

  /** Writes changed registers into their thread, which is not one that is latched. */
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
      const held = [...this.#threads.values()];
      const free = held.find((thread) => thread.pendingSignal === 0);
      if (free !== undefined) return free;
      const [busy] = held;
      if (held.length === 0) break;
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
    letGo([...this.#threads.values()], this.#times);
    // Without urgency we may lose the processor to those who have been let go.
    this.#times.totalUs += (performance.now() - this.#since) * 1000;
    this.#threads.clear();
    this.#calmDown();
    this.#latches?.release();
    watchStragglers();
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
      for (const tid of tids) if (stragglers.has(tid)) seized.push(tid);
      const results = threadBatch.seize(fresh, PTRACE_O_TRACESYSGOOD);
      fresh.forEach((tid, i) => {
        if (results[i] === 0) seized.push(tid);
      });
      fresh.forEach((tid, i) => {
        if (results[i] !== 0 && seize(this.#pid, tid, PTRACE_O_TRACESYSGOOD) === 'seized') seized.push(tid);
      });
    } finally {
      // All are asked before the first is waited for: they stop side by side.
      const asked = new Map(seized.map((tid) => [tid, performance.now()]));
      const fresh = seized.filter((tid) => !stragglers.has(tid));
      const times = threadBatch.interrupt(fresh);
      fresh.forEach((tid, i) => asked.set(tid, times[i]));
      late = gatherStops(this.#pid, asked, take);
    }
    return late;
  }
}
