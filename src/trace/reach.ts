// How a session gets at its target: from outside by ptrace, or from inside by an object that was loaded with the program.
import { hasEnded, readThreads } from '../linux/index.js';
import type { InsideProcess } from '../inside/index.js';
import {
  Hold,
  RemoteCalls,
  borrowCode,
  holdCaller,
  type CallMaker,
  type HoldTimes,
  type SessionTimes,
  type Standstill,
  type TargetMemory,
} from '../target/index.js';

/** What only differs by the way. */
export interface Reach {
  /** Threads cannot be made to stand one by one. */
  readonly mustStandAll: boolean;
  /** True if no thread that stood still can have gone elsewhere meanwhile, by a signal handler that jumped. Within a moment. */
  stillStand(): boolean;
  /** Makes all threads stand still, but for `except`: the agent's, which has work to do then. @throws CannotError */
  standAll(times: HoldTimes, except: number | undefined): Standstill;
  /** Has a thread make calls, which is not that one either. @throws CannotError */
  withCalls<T>(times: SessionTimes, except: number | undefined, work: (calls: CallMaker) => T): T;
}

/** By ptrace. */
export function fromOutside(pid: number, memory: TargetMemory): Reach {
  return {
    mustStandAll: false,
    stillStand: () => true,
    standAll: (times, except) => Hold.all(pid, times, except),
    withCalls: (times, except, work) => {
      const borrowed = borrowCode(pid, memory);
      const one = holdCaller(pid, anyThread(pid, except), times, except);
      try {
        return work(new RemoteCalls(pid, one.callableThread(), memory, borrowed));
      } finally {
        one.release();
      }
    },
  };
}

/** By the object. */
export function fromInside(inside: InsideProcess): Reach {
  return {
    mustStandAll: true,
    stillStand: () => inside.memory.isQuiet(),
    standAll: (times) => inside.meet(times),
    withCalls: (_times, _except, work) => work(inside.calls),
  };
}

/** The leader, or another thread if the leader has ended before the rest. */
export function anyThread(pid: number, except = 0): number {
  if (!hasEnded(pid)) return pid;
  return (readThreads(pid) ?? []).find((tid) => tid !== pid && tid !== except) ?? pid;
}
