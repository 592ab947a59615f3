// Threads that wait in a system call are kept from going on without being held: each is stopped for a moment, let into its call once
// more, and stops by itself where that ends, before it is back in the program. So of a thousand threads that sleep none stands still
// for the thousands of system calls that it takes to stop them all. One that wakes up before the others are held is let go at once.
import {
  PTRACE_O_TRACESYSGOOD,
  hasEnded,
  ptrace,
  readThreads,
  runnableThreads,
  urgency,
  type Registers,
} from '../linux/index.js';
import {
  gatherStops,
  heldThread,
  makesCallAgain,
  letGo,
  watchStragglers,
  type HeldThread,
  type HoldTimes,
} from './stops.js';
import { threadBatch } from './thread-batch.js';

/** Fewer are held sooner than latched: each is interrupted twice for it. */
const MIN_THREADS = 128;
/** Beside more that want a processor each stop takes its turn, and there are three of them for each thread. */
const MAX_RUNNABLE = 32;
/** However that may be: so long, and the rest is held. */
const PATIENCE_MS = 500;
/** When latching is given up. */
const BOUNDS = { runnable: MAX_RUNNABLE, ms: PATIENCE_MS } as const;
/** Asked to stop at once: each stands still while those before it are let go on. */
const GROUP = 16;

/** Whether a thread may be where it is, with these registers, while code is changed. */
type MayWait = (registers: Registers) => boolean;

/** Where a thread is about to make the call again that it stood in before. */
function isBackAt(call: HeldThread, { kind, registers }: HeldThread): boolean {
  return (
    kind === 'system-call' &&
    registers.get('rip') === call.registers.get('rip') &&
    registers.get('rsp') === call.registers.get('rsp')
  );
}

/** The latched threads of a process. */
export class Latches {
  readonly #pid: number;
  readonly #times: HoldTimes;
  /** As they were when they last stood still, which is how they are but for the result of their call; and when they were seen waiting. */
  readonly #waiting = new Map<number, { readonly thread: HeldThread; seen: number }>();

  private constructor(pid: number, times: HoldTimes) {
    this.#pid = pid;
    this.#times = times;
  }

  /** Latches what waits in a process of many threads, but for its first thread and `except`, where that is worth while. */
  static in(
    pid: number,
    times: HoldTimes,
    except: number,
    mayWait: MayWait,
    bounds: { runnable: number; ms: number } = BOUNDS,
  ): Latches {
    const latches = new Latches(pid, times);
    const tids = (readThreads(pid) ?? []).filter((tid) => tid !== pid && tid !== except);
    if (tids.length < MIN_THREADS || (runnableThreads() ?? Infinity) > bounds.runnable) return latches;
    // Somebody must be left to make calls for us.
    if (hasEnded(pid)) return latches;
    const until = performance.now() + bounds.ms;
    return latches.keep(() => {
      for (let at = 0; at < tids.length && performance.now() < until; at += GROUP) {
        const isGoingWell = latches.#hurried(() => latches.#latch(tids.slice(at, at + GROUP), mayWait));
        if (!isGoingWell) break;
        latches.letWokenGo();
      }
      return latches;
    });
  }

  /** They do not go on in the program before `release`, or stand still for good. */
  get threads(): readonly HeldThread[] {
    return [...this.#waiting.values()].map(({ thread }) => thread);
  }

  /** Does `work`; if it fails, they go on. */
  keep<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      this.release();
      throw error;
    }
  }

  has(tid: number): boolean {
    return this.#waiting.has(tid);
  }

  /** Lets all go on: those that have woken up at once, the others as soon as they have been unlatched. */
  release(): void {
    if (this.#waiting.size === 0) return;
    this.letWokenGo();
    const tids = [...this.#waiting.keys()];
    this.#waiting.clear();
    for (let at = 0; at < tids.length; at += GROUP)
      this.#hurried(() => this.#gather(tids.slice(at, at + GROUP), this.#letGo));
    watchStragglers();
  }

  /** Before ordinary threads: somebody stands still. */
  #hurried<T>(work: () => T): T {
    urgency.begin();
    try {
      return work();
    } finally {
      urgency.end();
    }
  }

  /** False: one does not stop, and it would be the same with others perhaps. */
  #latch(tids: readonly number[], mayWait: MayWait): boolean {
    const results = threadBatch.seize(tids, PTRACE_O_TRACESYSGOOD);
    const seized = tids.filter((_, i) => results[i] === 0);
    const calls = new Map<number, HeldThread>();
    const haveStopped = this.#gather(seized, (thread) => {
      const { tid, kind, registers } = thread;
      if (
        kind === 'asked' &&
        makesCallAgain(registers) &&
        mayWait(registers) &&
        ptrace.contToSystemCall(tid) === 0
      )
        calls.set(tid, thread);
      else this.#letGo(thread);
    });
    const entering = new Map([...calls.values()].map(({ tid, since }) => [tid, since]));
    const haveEntered = gatherStops(this.#pid, entering, (thread) => {
      const call = calls.get(thread.tid);
      if (call !== undefined && isBackAt(call, thread) && ptrace.contToSystemCall(thread.tid) === 0) {
        const seen = performance.now();
        this.#times.note(call.since, seen);
        this.#waiting.set(thread.tid, { thread: call, seen });
      } else {
        this.#letGo(call === undefined ? thread : { ...thread, since: call.since });
      }
    });
    return haveStopped && haveEntered === undefined;
  }

  /** Asks threads to stop and takes each that does. False: one is late. */
  #gather(tids: readonly number[], take: (thread: HeldThread) => void): boolean {
    const times = threadBatch.interrupt(tids);
    return gatherStops(this.#pid, new Map(tids.map((tid, i) => [tid, times[i]])), take) === undefined;
  }

  readonly #letGo = (thread: HeldThread): void => {
    letGo([thread], this.#times);
  };

  /** Lets those go on of which the call has ended, or that are about to get a signal. */
  letWokenGo(): void {
    const tids = [...this.#waiting.keys()];
    const woken: HeldThread[] = [];
    threadBatch.look(tids).forEach((look, i) => {
      const tid = tids[i];
      const waiting = this.#waiting.get(tid);
      if (waiting === undefined) return;
      if (look.kind === 'late') {
        waiting.seen = look.at;
        return;
      }
      this.#waiting.delete(tid);
      if (look.kind === 'stopped') woken.push(heldThread(tid, look, waiting.seen));
    });
    letGo(woken, this.#times);
  }
}
