// All threads of a process, standing in our signal's handler: what a hold is from outside, without any permission. The agent's
// thread sends each the signal; each tells where it was, and waits. Nobody's signals are blocked meanwhile but ours: handlers of
// the program run on top, as NMIs do on CPUs that a stop-machine has parked.
import type { AgentThread } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import {
  ERRNO,
  EVERYBODY,
  FUTEX,
  Registers,
  SYS,
  hasEnded,
  readStatus,
  readThreads,
  systemCall,
  urgency,
  type OwnMapping,
} from '../linux/index.js';
import { pause, type HeldThread, type HoldTimes, type Standstill } from '../target/index.js';
import { refusedCall } from './inside-memory.js';
import { BLOCK, HANDLERS_MAX, PLACE, PLACES_MAX, RENDEZVOUS_SIGNAL } from './layout.js';
import { ADOPT_HANDLERS } from './listing.js';

/** How long the others wait for one that does not come, and how often that is tried: it may wait for one of them. */
const PATIENCE_MS = 200;
const TRIES = 12;
const RETRY_PAUSE_MS = 50;
/** Those that leave a rendezvous need a processor for it. */
const LEAVE_PATIENCE_MS = 100;
const EAGER_POLLS = 8;
/** Threads may end, or be made, while the others come. */
const LOOK_MS = 4;
const POLL_PAUSE_MS = 0.05;
/** No room for a signal is left, or the thread has ended. */
const NOT_NOW: readonly number[] = [ERRNO.EAGAIN, ERRNO.ESRCH];
/** Nothing that the thread does for it waits for anybody. */
const ADOPT_PATIENCE_MS = 1000;
/** The code of the error that says that a handler would run uncounted while code changes. */
export const UNCOUNTED_HANDLER = 'UNCOUNTED_HANDLER';
const RENDEZVOUS_BIT = 1n << BigInt(RENDEZVOUS_SIGNAL - 1);

/** Makes the threads of one process meet, one rendezvous after the other. */
export class Meetings {
  readonly #pid: number;
  readonly #thread: AgentThread;
  readonly #block: OwnMapping;
  readonly #words: Int32Array;
  readonly #longs: BigUint64Array;
  /** Threads for which the kernel had no room for a signal, at the last try. */
  #unsent: ReadonlySet<number> = new Set();
  /** Number of the first place of the last rendezvous. */
  #first = 0;

  constructor(pid: number, thread: AgentThread, block: OwnMapping) {
    this.#pid = pid;
    this.#thread = thread;
    this.#block = block;
    this.#words = new Int32Array(block.bytes);
    this.#longs = new BigUint64Array(block.bytes);
  }

  /** The first thread, which waits in the object's initialiser: it has not begun, so that standing still costs it nothing. */
  first(): Standstill {
    const thread = this.#threadAt(0, this.#pid, performance.now());
    return {
      threads: [thread],
      writeRegisters: () => undefined,
      release: () => {
        this.#words[BLOCK.go / 4] = 1;
        this.#wake(BLOCK.go);
      },
    };
  }

  /**
   * Has all threads meet, so that no handler runs or comes that is not counted; once more where one had no shim before.
   *
   * @throws CannotError WILL_NOT_STOP, UNCOUNTED_HANDLER
   */
  all(times: HoldTimes): Standstill {
    let missing: readonly number[] = [];
    for (let tries = 0; tries < TRIES; tries++) {
      if (missing.length > 0) pause(RETRY_PAUSE_MS);
      const met = this.#call(times);
      if ('threads' in met) {
        if (this.#areCounted(met)) return met;
        missing = [];
      } else missing = met.missing;
    }
    if (missing.length === 0) {
      throw this.#uncounted(
        'it installs signal handlers again and again by system calls of its own, past the C library',
      );
    }
    throw new CannotError('WILL_NOT_STOP', {
      tried: `have all threads of process ${this.#pid} meet`,
      why: missing.map((tid) => `thread ${tid} does not come (${this.#reason(tid)})`).join(', '),
      next: 'try again when it is not waiting in the kernel, and does not block every signal',
    });
  }

  /** Gives a stub to handlers that were installed past our wrappers. False: there were such, and the threads have been let go. */
  #areCounted(met: Standstill): boolean {
    let adopted = 0;
    let isOver = false;
    try {
      this.#thread.perform(ADOPT_HANDLERS, ADOPT_PATIENCE_MS, () => undefined);
      const status = this.#words[BLOCK.adoptStatus / 4];
      if (status !== 0) throw refusedCall(this.#pid, 'tell its signal handlers', 'rt_sigaction', status);
      const signal = this.#words[BLOCK.unadopted / 4];
      if (signal !== 0) {
        throw this.#uncounted(
          `the handler of signal ${signal} is called without our shim, as there is none left: the program has installed more than ${HANDLERS_MAX} different ones`,
        );
      }
      adopted = this.#words[BLOCK.adopted / 4];
      isOver = true;
    } finally {
      if (!isOver || adopted > 0) met.release();
    }
    return adopted === 0;
  }

  #uncounted(why: string): CannotError {
    return new CannotError(UNCOUNTED_HANDLER, {
      tried: `have all threads of process ${this.#pid} meet, and see that no signal handler would execute what is being changed`,
      why,
      next: 'trace it from outside',
    });
  }

  #reason(tid: number): string {
    if (this.#unsent.has(tid)) return 'as many signals wait as may: RLIMIT_SIGPENDING';
    const status = readStatus(this.#pid, tid);
    const blocked = BigInt(`0x${status?.get('SigBlk') ?? '0'}`);
    if ((blocked & RENDEZVOUS_BIT) !== 0n) return 'it is in a signal handler, or blocks every signal';
    return `state ${status?.get('State') ?? 'unknown'}`;
  }

  #call(times: HoldTimes): Standstill | { readonly missing: readonly number[] } {
    this.#awaitEmpty();
    const words = this.#words;
    const since = performance.now();
    this.#first = Atomics.load(words, BLOCK.taken / 4);
    for (let i = 0; i < PLACES_MAX / 4; i++) this.#longs[this.#placeAt(this.#first + i) + PLACE.tid / 8] = 0n;
    Atomics.add(words, BLOCK.generation / 4, 1);
    const called = new Set<number>();
    let progress = since;
    let came = 0;
    let missing: number[] = [];
    while (performance.now() - progress < PATIENCE_MS) {
      const present = this.#present();
      const expected = this.#expected();
      missing = expected.filter((tid) => !present.has(tid));
      if (missing.length === 0) return this.#standstill(expected, present, times, since);
      const fresh = missing.filter((tid) => !called.has(tid));
      try {
        for (const tid of this.#signal(fresh)) called.add(tid);
      } catch (error) {
        this.#dismiss();
        throw error;
      }
      if (present.size > came) {
        came = present.size;
        progress = performance.now();
      }
      this.#awaitPlaces(present.size + missing.length);
    }
    this.#dismiss();
    missing = missing.filter((tid) => !hasEnded(this.#pid, tid));
    times.note(since);
    return { missing };
  }

  /** For so many, or a moment: the processors are theirs meanwhile, and to look costs more than to wait. */
  #awaitPlaces(count: number): void {
    const until = performance.now() + LOOK_MS;
    for (let polls = 0; performance.now() < until; polls++) {
      if (Atomics.load(this.#words, BLOCK.taken / 4) - this.#first >= count) return;
      if (polls > EAGER_POLLS) pause(POLL_PAUSE_MS);
    }
  }

  /** Threads that have to come. */
  #expected(): number[] {
    return (readThreads(this.#pid) ?? []).filter(
      (tid) => tid !== this.#thread.tid && !hasEnded(this.#pid, tid),
    );
  }

  /** Places of the threads that have come, by their ids as we know them. */
  #present(): Map<number, number> {
    const found = new Map<number, number>();
    const taken = Atomics.load(this.#words, BLOCK.taken / 4);
    for (let i = this.#first; i < taken; i++) {
      const tid = Number(this.#longs[this.#placeAt(i) + PLACE.tid / 8]);
      if (tid !== 0) found.set(tid, i);
    }
    return found;
  }

  /** Index of a place among the words of the block. */
  #placeAt(number: number): number {
    return (BLOCK.places + (number % PLACES_MAX) * PLACE.size) / 8;
  }

  /** Returns those that have got the signal, or are no more: the kernel queues only so many (RLIMIT_SIGPENDING). */
  #signal(tids: readonly number[]): number[] {
    if (tids.length === 0) return [];
    const pid = this.#words[BLOCK.pid / 4];
    const results = this.#thread.calls(tids.map((tid) => [SYS.tgkill, pid, tid, RENDEZVOUS_SIGNAL]));
    const forbidden = results.find((result) => result < 0 && !NOT_NOW.includes(-result));
    if (forbidden !== undefined) throw refusedCall(this.#pid, 'have its threads meet', 'tgkill', forbidden);
    const sent = tids.filter((_, i) => results[i] !== -ERRNO.EAGAIN);
    this.#unsent = new Set(tids.filter((tid) => !sent.includes(tid)));
    return sent;
  }

  #standstill(
    tids: readonly number[],
    places: ReadonlyMap<number, number>,
    times: HoldTimes,
    since: number,
  ): Standstill {
    urgency.begin();
    const threads = tids.map((tid) => this.#threadAt(places.get(tid) ?? 0, tid, since));
    return {
      threads,
      writeRegisters: (thread) => {
        const at = this.#placeAt(places.get(thread.tid) ?? 0);
        this.#longs[at + PLACE.rip / 8] = thread.registers.get('rip');
        this.#longs[at + PLACE.isMoved / 8] = 1n;
      },
      release: () => {
        this.#dismiss();
        urgency.end();
        times.note(since);
        times.totalUs += (performance.now() - since) * 1000;
      },
    };
  }

  #threadAt(place: number, tid: number, since: number): HeldThread {
    const at = this.#placeAt(place);
    const registers = new Registers()
      .set('rip', this.#longs[at + PLACE.rip / 8])
      .set('rsp', this.#longs[at + PLACE.rsp / 8])
      .set('fs_base', this.#longs[at + PLACE.fsBase / 8]);
    return { tid, kind: 'asked', pendingSignal: 0, registers, since };
  }

  #dismiss(): void {
    Atomics.add(this.#words, BLOCK.generation / 4, 1);
    this.#wake(BLOCK.generation);
  }

  /** Until all have left the last rendezvous, but for those whose handlers have jumped elsewhere. */
  #awaitEmpty(): void {
    const taken = Atomics.load(this.#words, BLOCK.taken / 4);
    const since = performance.now();
    for (let i = this.#first; i < taken; i++) {
      while (this.#longs[this.#placeAt(i) + PLACE.hasLeft / 8] === 0n) {
        if (performance.now() - since > LEAVE_PATIENCE_MS) return;
        this.#wake(BLOCK.generation);
        pause(POLL_PAUSE_MS);
      }
    }
  }

  #wake(offset: number): void {
    systemCall(SYS.futex, this.#block.address + BigInt(offset), FUTEX.wake, EVERYBODY);
  }
}
