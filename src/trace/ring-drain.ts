// Takes records out of the rings, in place: the rings are mapped into safepoke as well.
import { HEADER, LANE_STATE, type Agent } from '../agent/index.js';
import {
  PAGE,
  pageOf,
  readMaps,
  readStatus,
  readThreadName,
  readThreads,
  type OwnMapping,
} from '../linux/index.js';
import {
  KIND_BITS,
  KIND_ENTRY,
  KIND_LEAF,
  KIND_LOST,
  KIND_MASK,
  KIND_NONE,
  KIND_PLACE,
  RECORD_BYTES,
  RECORD_WORDS,
  WHAT_WORD,
} from '../recording/index.js';
import { stackRange } from './thread-facts.js';

/** Where drained records go. A lane here is one thread's life; its number is never used again. */
export interface DrainListener {
  /** `stack`: where the thread's own stack lies, from one address up to another; undefined: that is not known. */
  onThread(lane: number, tid: number, name: string, stack: readonly [number, number] | undefined): void;
  /**
   * Records of a lane in order. They stand in the ring still and are gone when this returns: who keeps them, copies them. `waiting`:
   * bytes in the ring, these among them.
   */
  onRecords(lane: number, words: Uint32Array<ArrayBuffer>, waiting: number): void;
  /** Records that the lane lost behind all that were given. */
  onLost(lane: number, records: number): void;
  onThreadEnd(lane: number): void;
}

/** How often the list of threads is compared with the lanes in use. */
const THREAD_CHECK_MS = 50;
/**
 * A reserved record that stays empty for so long, while its thread has written others behind it, was abandoned by a jump out of a handler.
 * A thread that was stopped within the recorder has not.
 */
const ABANDONED_MS = 1000;
/**
 * Records taken in one piece, 512 KiB: each piece is read three times (counted, given away, cleared), and stays in the
 * processor's cache meanwhile.
 */
const MAX_PIECE_RECORDS = 1 << 15;

/**
 * Taken at one poll, from all lanes together, in even parts, but of each at least so much; and a poll ends behind the lane at which
 * so much time is over, and the next one goes on there: between two polls the session listens to those who want to end or to control
 * it, and among hundreds of busy threads it gets little of a processor.
 */
const MAX_POLL_BYTES = 32 << 20;
const MIN_LANE_BYTES = 256 << 10;
const MAX_POLL_MS = 50;

/**
 * Consumed memory of all rings together that stays with them. Writing into a new page makes half the cost of a record, so a
 * few busy threads go round in memory that is there already; of many, each gives back what was read.
 */
const KEPT_BYTES = 128 << 20;
/** Smaller rings keep all of their memory, and their tail is exact. */
const LEAST_RELEASED_RING = 16 * PAGE;

/**
 * Memory is looked for ahead of a thread, for as much as it has ever written, but at most what may be kept; in pieces, and at one
 * look no more than this. A thread that has written less than the least gets none.
 */
const MIN_AHEAD = 64 << 10;
const MAX_AHEAD_AT_ONCE = 4 << 20;
const AHEAD_PIECE = 256 << 10;

const WORDS64_PER_HEADER = HEADER.size / 8;

interface MappedRing {
  readonly mapping: OwnMapping;
  readonly words: Uint32Array<ArrayBuffer>;
}

interface LiveLane {
  readonly index: number;
  readonly id: number;
  tid: number;
  /** Mapped when there is something in it for the first time: of a thousand threads most may sleep. */
  ring: MappedRing | undefined;
  /** Where it began, in bytes of all times. */
  readonly start: number;
  /** Bytes consumed, of all times. */
  tail: number;
  /** Records that LOST records have told of. */
  lostTold: number;
  /** The memory of so many bytes at the ring's beginning stays when they have been consumed. */
  kept: number;
  /** Up to where, in bytes of all times, the thread finds memory. */
  reserved: number;
  stuckSince: number | undefined;
  /** How far the thread had come then, in bytes of all times. */
  stuckHead: number;
  gone: boolean;
}

export class RingDrain {
  readonly #pid: number;
  readonly #agent: Agent;
  readonly #listener: DrainListener;
  readonly #cells: Uint32Array;
  readonly #headers: BigUint64Array;
  readonly #headers32: Uint32Array;
  readonly #live = new Map<number, LiveLane>();
  /** Threads whose own id we know from outside, by the index of their lane. */
  readonly #preassigned: ReadonlyMap<number, number>;
  readonly #retired = new Set<number>();
  /** Consumed memory that stays with the rings. */
  readonly #mostKept: number;
  #nextId = 0;
  /** The lane at which the last poll ran out of time, by its id. */
  #lastPolled = -1;
  #lastThreadCheck = 0;
  #threads = new Set<number>();
  #isFinished = false;

  /** Records taken, LOST records not counted. */
  records = 0;
  /** Entries taken, by function index. */
  readonly entries: Float64Array;
  /** Records dropped because a ring was full. */
  dropped = 0;
  /** Records that no lane was free for, or that were made before the program had set up its thread. */
  laneless = 0;
  /** Records that were begun and never finished. */
  abandoned = 0;

  /** `cells`: what each cell records, as `CodeRegion.cells` has it. */
  constructor(
    pid: number,
    agent: Agent,
    functions: number,
    cells: Uint32Array,
    preassigned: ReadonlyMap<number, number>,
    listener: DrainListener,
  ) {
    this.#pid = pid;
    this.#agent = agent;
    this.#listener = listener;
    this.#cells = cells;
    this.#preassigned = preassigned;
    this.#mostKept = Math.min(KEPT_BYTES, agent.budget.kept);
    this.#headers = new BigUint64Array(agent.headers.bytes, 0, agent.geometry.lanes * WORDS64_PER_HEADER);
    this.#headers32 = new Uint32Array(agent.headers.bytes, 0, agent.geometry.lanes * WORDS64_PER_HEADER * 2);
    this.entries = new Float64Array(functions);
  }

  /** Threads seen so far. */
  get threads(): number {
    return this.#nextId;
  }

  /** Takes what is there. Returns the number of records. `final`: nobody writes any more. */
  poll(final = false): number {
    const now = performance.now();
    if (final || now - this.#lastThreadCheck > THREAD_CHECK_MS) this.#checkThreads(now);
    this.#findLanes();
    let taken = 0;
    const most = final
      ? Number.POSITIVE_INFINITY
      : Math.max(MIN_LANE_BYTES, MAX_POLL_BYTES / this.#live.size);
    for (const lane of this.#inTurn()) {
      taken += this.#take(lane, now, final, most);
      const state = this.#state(lane.index);
      if (!final && (lane.gone || state === LANE_STATE.ended) && lane.tail === this.#head(lane.index)) {
        this.#end(lane);
      }
      if (final || performance.now() - now < MAX_POLL_MS) continue;
      this.#lastPolled = lane.id;
      return taken;
    }
    this.#lastPolled = -1;
    return taken;
  }

  /** All lanes, those first that the last poll did not get to. */
  #inTurn(): LiveLane[] {
    const lanes = [...this.#live.values()];
    const first = lanes.findIndex(({ id }) => id > this.#lastPolled);
    return first > 0 ? [...lanes.slice(first), ...lanes.slice(0, first)] : lanes;
  }

  /** The session is over: ends every lane. Again and again does no harm: the rings' memory may be gone then. */
  finish(): void {
    if (this.#isFinished) return;
    this.#isFinished = true;
    this.poll(true);
    for (const lane of [...this.#live.values()]) this.#end(lane, false);
    // Lane 0 belongs to nobody: its header counts what had no lane.
    this.laneless += Number(this.#headers[HEADER.dropped / 8]);
  }

  #state(index: number): number {
    return this.#headers32[index * WORDS64_PER_HEADER * 2 + HEADER.state / 4];
  }

  #head(index: number): number {
    return Number(this.#headers[index * WORDS64_PER_HEADER + HEADER.head / 8]);
  }

  #checkThreads(now: number): void {
    this.#lastThreadCheck = now;
    this.#threads = new Set(readThreads(this.#pid) ?? []);
    for (const lane of this.#live.values()) {
      if (lane.tid !== 0 && !this.#threads.has(lane.tid)) lane.gone = true;
    }
  }

  #findLanes(): void {
    const { lanes } = this.#agent.geometry;
    const stride = WORDS64_PER_HEADER * 2;
    let maps: ReturnType<typeof readMaps>;
    for (let index = 1, at = stride + HEADER.state / 4; index < lanes; index++, at += stride) {
      if (this.#headers32[at] === LANE_STATE.free || this.#live.has(index) || this.#retired.has(index))
        continue;
      const tail = Number(this.#headers[index * WORDS64_PER_HEADER + HEADER.tail / 8]);
      const lane: LiveLane = {
        index,
        id: this.#nextId++,
        tid: this.#tidOf(index),
        ring: undefined,
        start: tail,
        tail,
        lostTold: 0,
        kept: 0,
        reserved: 0,
        stuckSince: undefined,
        stuckHead: 0,
        gone: false,
      };
      this.#live.set(index, lane);
      this.#grant(index);
      maps ??= readMaps(this.#pid) ?? [];
      const threadPointer = Number(this.#headers[index * WORDS64_PER_HEADER + HEADER.threadPointer / 8]);
      const { low, size } = stackRange(maps, threadPointer, lane.tid === this.#pid);
      const stack = size > 0 ? ([low, low + size] as const) : undefined;
      this.#listener.onThread(lane.id, lane.tid, readThreadName(this.#pid, lane.tid) ?? '', stack);
    }
  }

  #grant(index: number): void {
    try {
      this.#agent.grantRing(index);
    } catch {
      // The target ended meanwhile; its records are still in the rings.
    }
  }

  /** Our name for the thread of a lane. In a PID namespace the program knows it by another. */
  #tidOf(index: number): number {
    const preassigned = this.#preassigned.get(index);
    if (preassigned !== undefined) return preassigned;
    const tid = this.#headers32[index * WORDS64_PER_HEADER * 2 + HEADER.tid / 4];
    if (tid === 0 || this.#threads.has(tid)) return tid;
    const threads = readThreads(this.#pid) ?? [];
    if (threads.includes(tid)) return tid;
    const inNamespace = threads.find(
      (t) => readStatus(this.#pid, t)?.get('NSpid')?.split(/\s+/).at(-1) === String(tid),
    );
    return inNamespace ?? tid;
  }

  #ringOf(lane: LiveLane): MappedRing {
    if (lane.ring === undefined) {
      const mapping = this.#agent.mapRing(lane.index);
      lane.ring = { mapping, words: new Uint32Array(mapping.bytes) };
    }
    return lane.ring;
  }

  /** Takes at most `most` bytes, and a piece. */
  #take(lane: LiveLane, now: number, final: boolean, most: number): number {
    let taken = 0;
    // What comes meanwhile waits for the next poll: a thread that writes as fast as we read would keep us here for good.
    const head = this.#head(lane.index);
    if (lane.ring === undefined && head === lane.tail) return 0;
    const { words } = this.#ringOf(lane);
    const ringWords = words.length;
    if (head === lane.tail && !final) this.#reserveAhead(lane, head);
    while (taken * RECORD_BYTES < most) {
      const waiting = (head - lane.tail) / RECORD_BYTES;
      if (waiting === 0) {
        lane.stuckSince = undefined;
        break;
      }
      const start = (lane.tail / 4) % ringWords;
      const limit = Math.min(
        start + waiting * RECORD_WORDS,
        ringWords,
        start + MAX_PIECE_RECORDS * RECORD_WORDS,
      );
      const end = this.#count(lane, words, start, limit);
      if (end > start) {
        lane.stuckSince = undefined;
        this.#listener.onRecords(lane.id, words.subarray(start, end), head - lane.tail);
        words.fill(0, start, end);
        taken += (end - start) / RECORD_WORDS;
        this.#advance(lane, end - start);
      }
      if (end === limit) continue;
      if (!this.#isAbandoned(lane, head, now, final)) break;
      this.abandoned++;
      this.#advance(lane, RECORD_WORDS);
    }
    return taken;
  }

  /**
   * Goes through records from `start`, and puts function and kind in the place of the cell that recorded; returns where the first
   * unfinished one is. Hot: no calls, no allocation.
   */
  #count(lane: LiveLane, words: Uint32Array, start: number, limit: number): number {
    const { entries } = this;
    const cells = this.#cells;
    let lost = 0;
    let at = start;
    for (; at < limit; at += RECORD_WORDS) {
      let what = words[at + WHAT_WORD];
      if (what === 0) break;
      if ((what & KIND_MASK) === KIND_PLACE) {
        const place = what >>> KIND_BITS;
        // A program may write what it likes.
        what = (place < cells.length ? cells[place] : 0) || KIND_NONE;
        words[at + WHAT_WORD] = what;
      }
      const kind = what & KIND_MASK;
      if (kind === KIND_ENTRY || kind === KIND_LEAF) entries[what >>> KIND_BITS]++;
      else if (kind === KIND_LOST) {
        lane.lostTold += words[at + WHAT_WORD + 1];
        lost++;
      }
    }
    this.records += (at - start) / RECORD_WORDS - lost;
    return at;
  }

  /**
   * Consumes words, and tells the thread, which may then reuse their room:
   *   1. memory that is not kept is given back, in whole pages
   *   2. only then the tail says so. It stands at the beginning of a page, so that the thread never writes into the page in which
   *      we still read, nor into one that is about to be given back
   */
  #advance(lane: LiveLane, words: number): void {
    const { ringBytes } = this.#agent.geometry;
    const before = lane.tail;
    lane.tail += words * 4;
    let told = lane.tail;
    if (ringBytes >= LEAST_RELEASED_RING) {
      const from = pageOf(before);
      told -= told % PAGE;
      this.#keep(lane, from % ringBytes, told - from);
      for (let at = from; at < told;) {
        const offset = at % ringBytes;
        const end = Math.min(told, at - offset + ringBytes);
        if (offset < lane.kept) {
          at = Math.min(end, at - offset + lane.kept);
          continue;
        }
        this.#agent.releaseRing(lane.index, offset, end - at);
        at = end;
      }
    }
    this.#headers[lane.index * WORDS64_PER_HEADER + HEADER.tail / 8] = BigInt(told);
  }

  /** Lets a lane keep consumed memory that comes just behind what it keeps already, while there is any to keep. */
  #keep(lane: LiveLane, offset: number, bytes: number): void {
    const wanted = Math.min(offset + bytes, this.#agent.geometry.ringBytes) - lane.kept;
    if (offset > lane.kept || wanted <= 0) return;
    let all = 0;
    for (const { kept } of this.#live.values()) all += kept;
    lane.kept += Math.min(wanted, Math.max(0, this.#mostKept - all));
  }

  /**
   * A thread that has written finds memory where it will write next: looked for by us, and zeroed, it costs the thread next to
   * nothing. What it keeps from an earlier round is there already. Only while the thread does not write: two that look for memory
   * for the same page wait for each other, and the target must not wait for us, who may have lost the processor.
   */
  #reserveAhead(lane: LiveLane, head: number): void {
    const { ringBytes } = this.#agent.geometry;
    const ahead = Math.min(head - lane.start, this.#mostKept / this.#live.size);
    if (ahead < MIN_AHEAD) return;
    let at = Math.max(lane.reserved, pageOf(head));
    const until = Math.min(
      pageOf(head) + pageOf(ahead),
      at + MAX_AHEAD_AT_ONCE,
      pageOf(lane.tail) + ringBytes,
    );
    while (at < until && this.#head(lane.index) === head) {
      const offset = at % ringBytes;
      if (offset < lane.kept) {
        at += lane.kept - offset;
      } else {
        const end = Math.min(until, at + AHEAD_PIECE, at - offset + ringBytes);
        if (!this.#ringOf(lane).mapping.populate(offset, end - at)) return;
        at = end;
      }
      lane.reserved = at;
    }
  }

  #isAbandoned(lane: LiveLane, head: number, now: number, final: boolean): boolean {
    if (final) return true;
    if (lane.stuckSince === undefined) {
      lane.stuckSince = now;
      lane.stuckHead = head;
    }
    if (now - lane.stuckSince < ABANDONED_MS || head === lane.stuckHead) return false;
    lane.stuckSince = undefined;
    return true;
  }

  #end(lane: LiveLane, mayRecycle = true): void {
    const dropped = Number(this.#headers[lane.index * WORDS64_PER_HEADER + HEADER.dropped / 8]);
    this.dropped += dropped;
    if (dropped > lane.lostTold) this.#listener.onLost(lane.id, dropped - lane.lostTold);
    this.#listener.onThreadEnd(lane.id);
    // Of an ended thread it may be exact, and must be, for the next owner of the lane goes on there.
    this.#headers[lane.index * WORDS64_PER_HEADER + HEADER.tail / 8] = BigInt(lane.tail);
    this.#live.delete(lane.index);
    this.#agent.budget.takeBack(lane.index);
    if (lane.ring !== undefined) {
      lane.ring.mapping.unmap();
      this.#agent.releaseRing(lane.index, 0, this.#agent.geometry.ringBytes);
    }
    if (!mayRecycle) return;
    this.#retired.add(lane.index);
    try {
      this.#agent.recycleLane(lane.index);
      this.#retired.delete(lane.index);
    } catch {
      // The target has ended: nobody will want the lane.
    }
  }
}
