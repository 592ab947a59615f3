// While it holds threads, safepoke must not wait for a processor behind those that it does not hold, or has let go already.
import { readdirSync } from 'node:fs';
import { SYS, addressOf, systemCall, systemCallBuffer3 } from './system-call.js';

/** include/uapi/linux/sched.h. The flag keeps children from inheriting the policy. */
const SCHED_OTHER = 0;
const SCHED_FIFO = 1;
const SCHED_RESET_ON_FORK = 0x40000000;
const LOWEST_REAL_TIME_PRIORITY = 1;

const priority = new Uint8Array(4);

function setPolicy(policy: number, value: number): number {
  new DataView(priority.buffer).setInt32(0, value, true);
  return systemCallBuffer3(SYS.sched_setscheduler, 0, policy, priority);
}

const PRIO_PROCESS = 0;
const LEAST_NICE = -20;
/** What getpriority(2) returns, as a system call, for a nice value of 0. */
const NEUTRAL_PRIORITY = 20;

/** struct sched_attr, as it was first: include/uapi/linux/sched/types.h. */
const ATTRIBUTES = { size: 0, policy: 4, nice: 16, runtime: 24, bytes: 48 } as const;
/** The shortest that there is. */
const SHORT_SLICE_NS = 100_000n;
const DEFAULT_SLICE_NS = 0n;

/**
 * Has an ordinary thread (0: the calling one) get a processor sooner when it wakes, for shorter times: its share stays what it is, and
 * nobody's permission is needed. Kernels before 6.12 take no notice.
 */
function setSlice(tid: number, ns: bigint): void {
  if (systemCall(SYS.sched_getscheduler, tid) !== SCHED_OTHER) return;
  const attributes = new Uint8Array(ATTRIBUTES.bytes);
  const view = new DataView(attributes.buffer);
  view.setUint32(ATTRIBUTES.size, ATTRIBUTES.bytes, true);
  view.setUint32(ATTRIBUTES.policy, SCHED_OTHER, true);
  view.setInt32(ATTRIBUTES.nice, NEUTRAL_PRIORITY - systemCall(SYS.getpriority, PRIO_PROCESS, tid), true);
  view.setBigUint64(ATTRIBUTES.runtime, ns, true);
  systemCall(SYS.sched_setattr, tid, addressOf(attributes), 0);
}

/** For good, for a thread that has little to do, and for which others wait. */
export function wakeSooner(tid: number): void {
  setSlice(tid, SHORT_SLICE_NS);
}

let depth = 0;
let isRaised = false;

/**
 * Puts the calling thread before all ordinary ones, until `end` has been called as often; where that is not permitted, it gets a
 * processor sooner when it wakes. Where the thread has a policy of its own nothing changes. It must be short: one processor does
 * nothing else meanwhile.
 */
export const urgency = {
  begin(): void {
    if (depth++ > 0) return;
    if (systemCall(SYS.sched_getscheduler, 0) !== SCHED_OTHER) return;
    isRaised = setPolicy(SCHED_FIFO | SCHED_RESET_ON_FORK, LOWEST_REAL_TIME_PRIORITY) === 0;
    if (!isRaised) setSlice(0, SHORT_SLICE_NS);
  },
  end(): void {
    if (--depth > 0) return;
    if (!isRaised) {
      setSlice(0, DEFAULT_SLICE_NS);
      return;
    }
    isRaised = false;
    setPolicy(SCHED_OTHER, 0);
  },
};

function setNice(nice: number): void {
  for (const name of readdirSync('/proc/self/task'))
    systemCall(SYS.setpriority, PRIO_PROCESS, Number(name), nice);
}

/** Gives a thread the largest share of the processors, where that is permitted: one that others wait for, and that does little. */
export function preferThread(tid: number): void {
  systemCall(SYS.setpriority, PRIO_PROCESS, tid, LEAST_NICE);
}

/** Does `work` while a thread has the largest share of the processors, where that is permitted. */
export function whilePreferred<T>(tid: number, work: () => T): T {
  const priority = systemCall(SYS.getpriority, PRIO_PROCESS, tid);
  preferThread(tid);
  try {
    return work();
  } finally {
    systemCall(SYS.setpriority, PRIO_PROCESS, tid, NEUTRAL_PRIORITY - priority);
  }
}

let hasteDepth = 0;
let isHasty = false;

/**
 * Gives the whole of safepoke a larger share of the processors while it prepares a change: among hundreds of busy threads it would
 * take minutes. Not elsewhere: a thread that shares a processor with it gets next to nothing then. Where that is not permitted, or its user has given it a nice value, nothing changes.
 */
export const haste = {
  begin(): void {
    if (hasteDepth++ > 0) return;
    if (systemCall(SYS.getpriority, PRIO_PROCESS, 0) !== NEUTRAL_PRIORITY) return;
    if (systemCall(SYS.setpriority, PRIO_PROCESS, 0, LEAST_NICE) < 0) return;
    isHasty = true;
    setNice(LEAST_NICE);
  },
  end(): void {
    if (--hasteDepth > 0 || !isHasty) return;
    isHasty = false;
    setNice(0);
  },
};
