// How threads that were asked to stop do so: what was seen of each, what its stop must not leave behind, and those that have yet to.
import {
  Registers,
  bitSet,
  SIGTRAP,
  SYSTEM_CALL_STOP,
  ptrace,
  readStatus,
  stoppedBySignal,
  tellNothingOfStops,
  urgency,
} from '../linux/index.js';
import { threadBatch, type Stopped } from './thread-batch.js';

/**
 * How long a thread may take to stop while the others are held already. One that waits for a vfork child, or for a device, does
 * not stop before that is over; the others must not wait for it, so all are let go and held again a little later.
 */
const STOP_PATIENCE_MS = 50;
const STRAGGLER_POLL_MS = 2;
/** First looks are immediate, where there are few to look at; then the processor is left to the thread that is to stop, and to the others. */
const EAGER_LOOKS = 4;
const FEW = 16;
const POLL_PAUSE_MS = 0.05;
const MAX_POLL_PAUSE_MS = 3;
/** What a thread takes to stop, once it has the processor. */
const STOP_MS = 0.003;

const pauseCell = new Int32Array(new SharedArrayBuffer(4));

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
 * The kernel makes the call again when the thread goes on, unless a signal has come by then for which there is a handler: then the call
 * fails with EINTR, as the program expects.
 */
const ERESTARTNOHAND_RESULT = -514n;

/**
 * Where a thread has stopped: as it was asked to (`asked`), about to get a signal, on its way into or out of a system call (which is told
 * to who let it go on to there only), or with all others of its process, by job control. `untold`: the kernel told somebody else.
 */
export type StopKind = 'asked' | 'signal' | 'system-call' | 'job-control' | 'untold';

/** A thread that stands still because we hold it. */
export interface HeldThread {
  readonly tid: number;
  readonly kind: StopKind;
  /** Signal that was about to be delivered when it stopped; delivered when it is released. 0: none. */
  readonly pendingSignal: number;
  /** Registers as they are in the thread; after changing them, call `writeRegisters`. */
  readonly registers: Registers;
  /** performance.now() at which it was seen going for the last time. */
  readonly since: number;
}

/** -ERESTARTSYS, -ERESTARTNOINTR, the above, -ERESTART_RESTARTBLOCK (include/linux/errno.h). */
const RESTARTS: ReadonlySet<bigint> = new Set([-512n, -513n, ERESTARTNOHAND_RESULT, -516n]);

/** True if a thread with these registers stands in a system call, to which the kernel takes it back when it goes on. */
export function makesCallAgain(registers: Registers): boolean {
  return (
    BigInt.asIntN(64, registers.get('orig_rax')) >= 0n &&
    RESTARTS.has(BigInt.asIntN(64, registers.get('rax')))
  );
}

/** What became of a thread that was asked to stop. */
type Stop = HeldThread | 'gone' | 'late';

/** What is to be known of a thread that has stopped. */
export function heldThread(tid: number, { signal, event, registers }: Stopped, since: number): HeldThread {
  const kind = stopKind(signal, event);
  return { tid, kind, pendingSignal: kind === 'signal' ? signal : 0, registers, since };
}

function stopKind(signal: number, event: number): StopKind {
  if (event !== 0) return signal === SIGTRAP ? 'asked' : 'job-control';
  return signal === SYSTEM_CALL_STOP ? 'system-call' : 'signal';
}

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
      stops.push([tid, heldThread(tid, look, asked.get(tid) ?? 0)]);
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
  if (hasStopped) return { tid, kind: 'untold', pendingSignal: stoppedBySignal(tid), registers, since };
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

export function awaitStop(tid: number, since: number, patienceMs: number): Stop {
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
export const stragglers = new Set<number>();
let stragglerTimer: NodeJS.Timeout | undefined;

export function watchStragglers(): void {
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

/** What a session costs its target's threads. */
export class SessionTimes {
  /** All threads kept from running, so that code can be changed. */
  readonly held = new HoldTimes();
  /** One thread that makes system calls for us, or each for the moment in which it is looked at. */
  readonly lent = new HoldTimes();
}

/** Lets threads go on, each with the signal that it was about to get, and notes for how long each was held. */
export function letGo(threads: readonly HeldThread[], times: HoldTimes): void {
  const gone = threadBatch.detach(threads);
  threads.forEach(({ since }, i) => {
    times.note(since, gone[i]);
  });
}

/** At once, not on release: should we be killed, the thread goes on with what it has now. */
function undoFalseEintr(pid: number, { registers, tid, pendingSignal }: HeldThread): void {
  if (BigInt.asIntN(64, registers.get('rax')) !== EINTR_RESULT) return;
  const call = BigInt.asIntN(64, registers.get('orig_rax'));
  if (pendingSignal !== 0 || !FALSE_EINTR.has(call)) return;
  // Where a real signal waits, EINTR is the truth.
  const status = readStatus(pid, tid);
  if (status === undefined) return;
  const pending = bitSet(status, 'SigPnd') | bitSet(status, 'ShdPnd');
  if ((pending & ~bitSet(status, 'SigBlk')) !== 0n) return;
  registers.set('rax', ERESTARTNOHAND_RESULT);
  ptrace.setRegisters(tid, registers);
}

let isRehearsed = false;

/**
 * Goes once through what is done while a thread stands still, with nobody there: what has not been compiled yet takes many times as long.
 */
export function rehearseStops(): void {
  if (isRehearsed) return;
  isRehearsed = true;
  // The kernel refuses each of them: no process traces itself, or is its own child.
  const nobody = process.pid;
  const registers = new Registers();
  threadBatch.seize([nobody], 0);
  gatherStops(nobody, new Map([[nobody, threadBatch.interrupt([nobody])[0]]]), () => undefined);
  const thread = heldThread(nobody, { kind: 'stopped', signal: 0, event: 1, registers }, 0);
  undoFalseEintr(nobody, thread);
  makesCallAgain(registers);
  ptrace.contToSystemCall(nobody);
  threadBatch.detach([thread]);
  urgency.begin();
  urgency.end();
}

/**
 * Waits until all have stopped, in whatever order they do: `asked` says since when each may stand still. Between two looks the
 * processor is theirs: a thread needs it to stop. Returns one that did not stop though for a while no other did either; it is a
 * straggler then.
 */
export function gatherStops(
  pid: number,
  asked: Map<number, number>,
  take: (thread: HeldThread) => void,
): number | undefined {
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
        undoFalseEintr(pid, stop);
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
