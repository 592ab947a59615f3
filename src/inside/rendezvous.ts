// All threads of a process, standing in our signal's handler: what a hold is from outside, without any permission. The agent's
// thread sends each the signal; each tells where it was, and waits. Nobody's signals are blocked meanwhile but ours: handlers of
// the program run on top, as NMIs do on CPUs that a stop-machine has parked.
import { availableParallelism } from 'node:os';
import type { AgentThread } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import {
  bitSet,
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
  wakeSooner,
  type OwnMapping,
} from '../linux/index.js';
import { pause, type HeldThread, type HoldTimes, type Standstill } from '../target/index.js';
import { refusedCall, type InsideMemory } from './inside-memory.js';
import {
  BLOCK,
  HANDLERS_MAX,
  OWN_COUNT,
  OWN_COUNTS_MAX,
  PLACE,
  PLACES_MAX,
  PRIVATE,
  RENDEZVOUS_SIGNAL,
} from './layout.js';
import { ADOPT_HANDLERS } from './listing.js';

/** How long the others wait for one that does not come, and how often that is tried: it may wait for one of them. */
const PATIENCE_MS = 200;
const TRIES = 12;
/** The same for one that sleeps with the signal blocked: at first, twice as long each time, and for how long that is tried. */
const BLOCKED_PATIENCE_MS = 10;
const BLOCKED_TRIED_MS = 3000;
/** Between two tries: until none does so any more, or so long. */
const RETRY_PAUSE_MS = 50;
const MASK_POLL_MS = 1;
/** Handlers that have to get a shim first. */
const ADOPTIONS = 12;
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
/** Some tens of microseconds: to wake the agent's thread for each command takes longer than most commands do. */
const LINGER_LOOKS = 2000;
const RENDEZVOUS_BIT = 1n << BigInt(RENDEZVOUS_SIGNAL - 1);

/** Why there is no rendezvous: threads that did not come, and whether all sleep with the signal blocked. */
interface Missing {
  readonly missing: readonly number[];
  readonly areBlocked: boolean;
}

/** Makes the threads of one process meet, one rendezvous after the other. */
export class Meetings {
  readonly #pid: number;
  readonly #thread: AgentThread;
  readonly #block: OwnMapping;
  readonly #memory: InsideMemory;
  /** Address of what each thread has counted. */
  readonly #counts: number;
  readonly #words: Int32Array;
  readonly #longs: BigUint64Array;
  /** Threads for which the kernel had no room for a signal, at the last try. */
  #unsent: ReadonlySet<number> = new Set();
  /** Number of the first place of the last rendezvous. */
  #first = 0;

  constructor(pid: number, thread: AgentThread, block: OwnMapping, memory: InsideMemory, object: number) {
    this.#pid = pid;
    this.#memory = memory;
    this.#counts = object + PRIVATE.counts;
    this.#thread = thread;
    this.#block = block;
    this.#words = new Int32Array(block.bytes);
    this.#longs = new BigUint64Array(block.bytes);
    if (thread.isPresent) wakeSooner(thread.tid);
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
    const since = performance.now();
    let [adoptions, tries] = [0, 0];
    let blockedPatience = BLOCKED_PATIENCE_MS;
    for (;;) {
      const met = this.#call(times, blockedPatience);
      if ('threads' in met) {
        if (this.#areCounted(met)) return met;
        if (++adoptions < ADOPTIONS) continue;
        throw this.#uncounted(
          'it installs signal handlers again and again by system calls of its own, past the C library',
        );
      }
      const { missing, areBlocked } = met;
      const isOver = areBlocked ? performance.now() - since > BLOCKED_TRIED_MS : ++tries === TRIES;
      if (isOver) throw this.#willNotCome(missing);
      blockedPatience *= 2;
      if (areBlocked) this.#awaitUnblocked(missing);
      else pause(RETRY_PAUSE_MS);
    }
  }

  #willNotCome(missing: readonly number[]): CannotError {
    return new CannotError('WILL_NOT_STOP', {
      tried: `have all threads of process ${this.#pid} meet`,
      why: missing.map((tid) => `thread ${tid} does not come (${this.#reason(tid)})`).join(', '),
      next: 'try again when it is not waiting in the kernel, and does not block every signal',
    });
  }

  /** All go on meanwhile: whoever is in a handler, or has blocked every signal for a moment, can be called when that is over. */
  #awaitUnblocked(tids: readonly number[]): void {
    const until = performance.now() + RETRY_PAUSE_MS;
    do pause(MASK_POLL_MS);
    while (performance.now() < until && tids.some((tid) => this.#sleepsBlocked(tid)));
  }

  /** Gives a stub to handlers that were installed past our wrappers. False: there were such, and the threads have been let go. */
  #areCounted(met: Standstill): boolean {
    let adopted = 0;
    let isOver = false;
    try {
      this.#takeBack(met.threads);
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

  /**
   * What threads have counted that ended within a handler, past the C library, is taken back: nobody else ever will. Those that are
   * left stand. What stays counted without need keeps code from being changed, no more: so where anything is doubtful it stays.
   */
  #takeBack(standing: readonly HeldThread[]): void {
    const bytes = this.#memory.readSome(this.#counts, OWN_COUNTS_MAX * OWN_COUNT.size);
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
    const isThere = new Set(standing.map(({ tid }) => tid));
    const ended: number[] = [];
    for (let at = 0; at < words.length; at += OWN_COUNT.size / 4)
      if (words[at] !== 0 && !isThere.has(words[at])) ended.push(at);
    if (ended.length === 0) return;
    const pid = this.#words[BLOCK.pid / 4];
    // A handler may have begun it just now; and the first thread is there until all have ended.
    const results = this.#thread.calls(ended.map((at) => [SYS.tgkill, pid, words[at], 0]));
    ended.forEach((at, i) => {
      const isFirst = words[at] === this.#pid && hasEnded(this.#pid, this.#pid);
      if (results[i] !== -ERRNO.ESRCH && !isFirst) return;
      this.#memory.write(this.#counts + 4 * at, new Uint8Array(OWN_COUNT.size));
      Atomics.add(this.#words, BLOCK.left / 4, words[at + OWN_COUNT.count / 4]);
    });
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
    const { isBlocked, state } = this.#stateOf(tid);
    return isBlocked ? 'it is in a signal handler, or blocks every signal' : `state ${state}`;
  }

  /** Who runs, or waits for a processor, gets it the sooner the more of the others stand. */
  #sleepsBlocked(tid: number): boolean {
    const { isBlocked, state } = this.#stateOf(tid);
    return isBlocked && !state.startsWith('R');
  }

  #stateOf(tid: number): { readonly isBlocked: boolean; readonly state: string } {
    const status = readStatus(this.#pid, tid);
    const blocked = bitSet(status, 'SigBlk');
    return { isBlocked: (blocked & RENDEZVOUS_BIT) !== 0n, state: status?.get('State') ?? 'unknown' };
  }

  /** Calls them once. Those who have come stand until it is released; where one is missing all have been let go. */
  #call(times: HoldTimes, blockedPatienceMs: number): Standstill | Missing {
    this.#awaitEmpty();
    const words = this.#words;
    this.#first = Atomics.load(words, BLOCK.taken / 4) >>> 0;
    for (let i = 0; i < PLACES_MAX / 4; i++) this.#longs[this.#placeAt(this.#first + i) + PLACE.tid / 8] = 0n;
    // Whom to ask is found out before anybody stands; from the first request on we go before those who do not stand yet.
    let missing = this.#missing(this.#present(), this.#threads());
    let areBlocked = false;
    let isMet = false;
    this.#wakeAgent();
    urgency.begin();
    const since = performance.now();
    Atomics.add(words, BLOCK.generation / 4, 1);
    try {
      const called = new Set<number>();
      let progress = since;
      let came = 0;
      while (!areBlocked && performance.now() - progress < PATIENCE_MS) {
        for (const tid of this.#signal(missing.filter((tid) => !called.has(tid)))) called.add(tid);
        this.#awaitPlaces(came + missing.length);
        const present = this.#present();
        if (present.size > came) {
          came = present.size;
          progress = performance.now();
        }
        const threads = this.#threads();
        missing = this.#missing(present, threads);
        if (missing.length === 0) {
          isMet = true;
          return this.#standstill(present, threads, times, since);
        }
        const isLong = performance.now() - progress > blockedPatienceMs;
        areBlocked = isLong && missing.every((tid) => this.#sleepsBlocked(tid));
      }
    } finally {
      if (!isMet) {
        this.#dismiss();
        const until = performance.now();
        urgency.end();
        times.note(since, until);
      }
    }
    return { missing: missing.filter((tid) => !hasEnded(this.#pid, tid)), areBlocked };
  }

  /** From here on it waits for commands awake, unless there is no processor for both of us. */
  #wakeAgent(): void {
    if (availableParallelism() === 1) return;
    this.#words[BLOCK.linger / 4] = LINGER_LOOKS;
    this.#thread.calls([[SYS.tgkill, this.#words[BLOCK.pid / 4], this.#words[BLOCK.agentTid / 4], 0]]);
  }

  /** For so many, or a moment: the processors are theirs meanwhile, and to look costs more than to wait. */
  #awaitPlaces(count: number): void {
    const until = performance.now() + LOOK_MS;
    for (let polls = 0; performance.now() < until; polls++) {
      if (this.#taken() >= count) return;
      if (polls > EAGER_POLLS) pause(POLL_PAUSE_MS);
    }
  }

  /** Threads that the kernel lists, without the agent's. The first one stays listed when it has ended. */
  #threads(): number[] {
    return (readThreads(this.#pid) ?? []).filter((tid) => tid !== this.#thread.tid);
  }

  /** Those of them that have yet to come. */
  #missing(present: ReadonlyMap<number, number>, threads: readonly number[]): number[] {
    return threads.filter((tid) => !present.has(tid) && !hasEnded(this.#pid, tid));
  }

  /** Places of the threads that have come, by their ids as we know them. */
  #present(): Map<number, number> {
    const found = new Map<number, number>();
    const places = this.#taken();
    for (let i = this.#first; i < this.#first + places; i++) {
      const tid = Number(this.#longs[this.#placeAt(i) + PLACE.tid / 8]);
      if (tid !== 0) found.set(tid, i);
    }
    return found;
  }

  /** Places taken since the last rendezvous was called, at most all that there are: threads of the program count them. */
  #taken(): number {
    const taken = (Atomics.load(this.#words, BLOCK.taken / 4) >>> 0) - this.#first;
    return Math.min(Math.max(taken, 0), PLACES_MAX);
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

  /** `listed` has the threads that are there, of which all that have not ended have come. */
  #standstill(
    places: ReadonlyMap<number, number>,
    listed: readonly number[],
    times: HoldTimes,
    since: number,
  ): Standstill {
    const isLeft = (tid: number): boolean => places.has(tid) && (tid !== this.#pid || !hasEnded(tid));
    const threads = listed.filter(isLeft).map((tid) => this.#threadAt(places.get(tid) ?? 0, tid, since));
    return {
      threads,
      writeRegisters: (thread) => {
        const at = this.#placeAt(places.get(thread.tid) ?? 0);
        this.#longs[at + PLACE.rip / 8] = thread.registers.get('rip');
        this.#longs[at + PLACE.isMoved / 8] = 1n;
      },
      release: () => {
        this.#dismiss();
        // Without urgency we may lose the processor to those who have been let go.
        const until = performance.now();
        urgency.end();
        times.note(since, until);
        times.totalUs += (until - since) * 1000;
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
    this.#words[BLOCK.linger / 4] = 0;
    Atomics.add(this.#words, BLOCK.generation / 4, 1);
    this.#wake(BLOCK.generation);
  }

  /** Until all have left the last rendezvous, but for those whose handlers have jumped elsewhere. */
  #awaitEmpty(): void {
    const places = this.#taken();
    const since = performance.now();
    for (let i = this.#first; i < this.#first + places; i++) {
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
