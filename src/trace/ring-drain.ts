// Takes records out of the rings, which are mapped into safepoke as well. All that stands there is the target's word: each is read once, bounded
// (lane-header.ts), and a lane that lies is closed. How far we have read, and how many threads there have been, is known here and by
// the kernel, and never read back. Records are copied before they are looked at: nobody can change them afterwards.
import { LANE_STATE, type Agent } from '../agent/index.js';
import {
  PAGE,
  pageOf,
  readCloneCount,
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
  KIND_PLACE,
  RECORD_BYTES,
  RECORD_WORDS,
  WHAT_WORD,
} from '../recording/index.js';
import { LaneHeaders } from './lane-header.js';
import { stackRange } from './thread-facts.js';

/** Where drained records go. A lane here is one thread's life; its number is never used again. */
export interface DrainListener {
  /** `stack`: where the thread's own stack lies, from one address up to another; undefined: that is not known. */
  onThread(lane: number, tid: number, name: string, stack: readonly [number, number] | undefined): void;
  /**
   * Records of a lane in order, of functions that there are. They are gone when this returns: who keeps them, copies them. `waiting`:
   * bytes in the ring, these among them.
   */
  onRecords(lane: number, words: Uint32Array<ArrayBuffer>, waiting: number): void;
  /** Records that the lane lost behind all that were given. */
  onLost(lane: number, records: number): void;
  onThreadEnd(lane: number): void;
  /** A lane is not looked at any more, as what it says cannot be true. Its thread as far as it is known. */
  onCorrupt(tid: number, why: string): void;
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

/**
 * Empty records one behind the other: each is of a recorder that was interrupted by the next one, of which there are never so many. To look
 * at more would make the kernel find memory for each page of a ring in which nothing is.
 */
const MOST_EMPTY = PAGE / RECORD_BYTES;
/** PID_MAX_LIMIT, include/linux/threads.h */
const MOST_TID = 1 << 22;
/** A thread has one lane at a time, and perhaps some more while it ends. Some threads may come while we begin. */
const LANES_PER_THREAD = 4;
const SPARE_LANES = 16;

/** What is drained. */
export type DrainedAgent = Pick<
  Agent,
  'budget' | 'geometry' | 'grantRing' | 'headers' | 'mapRing' | 'recycleLane' | 'releaseRing'
>;

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
  /** Where it ends, once nobody records any more. */
  finalHead: number | undefined;
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
  readonly #agent: DrainedAgent;
  readonly #listener: DrainListener;
  readonly #cells: Uint32Array;
  readonly #headers: LaneHeaders;
  /** Bytes consumed of each lane's ring, of all times. */
  readonly #tails: Float64Array;
  /** Records that are looked at. */
  readonly #piece = new Uint32Array(MAX_PIECE_RECORDS * RECORD_WORDS);
  /** Threads that the kernel had made when we began, in all, and that the process had; undefined: it does not tell. */
  readonly #clonesBefore = readCloneCount();
  readonly #threadsBefore: number;
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
  /** The same by their ids as they know them. */
  #ownIds: ReadonlyMap<number, number> | undefined;
  #isFinished = false;
  /** The lanes that the last, incomplete look has still to come to. */
  #unfinished: LiveLane[] | undefined;

  /** Lanes that were closed as what they said could not be true. */
  corrupt = 0;
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
    agent: DrainedAgent,
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
    const { lanes, ringBytes } = agent.geometry;
    this.#headers = new LaneHeaders(agent.headers.bytes, lanes, ringBytes, performance.now());
    this.#tails = new Float64Array(lanes);
    this.#threadsBefore = (readThreads(pid) ?? []).length;
    this.entries = new Float64Array(functions);
  }

  /** Threads seen so far. */
  get threads(): number {
    return this.#nextId;
  }

  /** Takes some of what is there, so that it is over soon whatever threads write meanwhile. Returns the number of records. */
  poll(): number {
    const now = performance.now();
    if (now - this.#lastThreadCheck > THREAD_CHECK_MS) this.#checkThreads(now);
    this.#findLanes(now);
    let taken = 0;
    const most = Math.max(MIN_LANE_BYTES, MAX_POLL_BYTES / this.#live.size);
    for (const lane of this.#inTurn()) {
      taken += this.#take(lane, now, false, most);
      if (this.#live.has(lane.index) && this.#hasEnded(lane)) this.#end(lane, now);
      if (performance.now() - now < MAX_POLL_MS) continue;
      this.#lastPolled = lane.id;
      return taken;
    }
    this.#lastPolled = -1;
    return taken;
  }

  #hasEnded(lane: LiveLane): boolean {
    const isOver = lane.gone || this.#headers.state(lane.index) === LANE_STATE.ended;
    return isOver && this.#headers.head(lane.index, lane.tail) === lane.tail;
  }

  /** All lanes, those first that the last poll did not get to. */
  #inTurn(): LiveLane[] {
    const lanes = [...this.#live.values()];
    const first = lanes.findIndex(({ id }) => id > this.#lastPolled);
    return first > 0 ? [...lanes.slice(first), ...lanes.slice(0, first)] : lanes;
  }

  /** Nobody records any more: takes what is left, until a time. False: there is more. */
  finishSome(until: number): boolean {
    if (this.#isFinished) return true;
    const now = performance.now();
    if (this.#unfinished === undefined) {
      this.#checkThreads(now);
      this.#findLanes(now);
      this.#unfinished = [...this.#live.values()];
    }
    for (;;) {
      const lane = this.#unfinished.at(-1);
      if (lane === undefined) return true;
      const head = lane.finalHead ?? this.#headers.head(lane.index, lane.tail);
      lane.finalHead = head;
      this.#take(lane, now, true, MIN_LANE_BYTES, head);
      if (!this.#live.has(lane.index) || lane.tail === head) this.#unfinished.pop();
      if (performance.now() > until) return this.#unfinished.length === 0;
    }
  }

  /**
   * The session is over: ends every lane; what `finishSome` has not taken is dropped. Again and again does no harm: the rings' memory may
   * be gone then.
   */
  finish(): void {
    if (this.#isFinished) return;
    if (this.#unfinished === undefined) this.finishSome(Number.POSITIVE_INFINITY);
    this.#isFinished = true;
    const now = performance.now();
    for (const lane of [...this.#live.values()]) {
      const left = Math.max(0, (lane.finalHead ?? lane.tail) - lane.tail) / RECORD_BYTES;
      if (left > 0) {
        this.dropped += left;
        this.#listener.onLost(lane.id, left);
      }
      this.#end(lane, now, false);
    }
    // Lane 0 belongs to nobody: its header counts what had no lane.
    const laneless = this.#headers.dropped(0, now);
    if (laneless === undefined)
      this.#tellCorrupt(0, 'it counts more records without a lane than there can be');
    else this.laneless += laneless;
  }

  #tellCorrupt(tid: number, why: string): void {
    this.corrupt++;
    this.#listener.onCorrupt(tid, why);
  }

  /** Nobody looks at a lane any more that lies: what it has told so far has been bounded. */
  #close(lane: LiveLane, why: string): void {
    this.#live.delete(lane.index);
    this.#retired.add(lane.index);
    this.#agent.budget.takeBack(lane.index);
    this.#listener.onThreadEnd(lane.id);
    this.#tellCorrupt(lane.tid, why);
    this.#freeRing(lane);
  }

  #freeRing(lane: LiveLane): void {
    if (lane.ring === undefined) return;
    lane.ring.mapping.unmap();
    this.#agent.releaseRing(lane.index, 0, this.#agent.geometry.ringBytes);
  }

  #checkThreads(now: number): void {
    this.#lastThreadCheck = now;
    this.#threads = new Set(readThreads(this.#pid) ?? []);
    this.#ownIds = undefined;
    for (const lane of this.#live.values()) {
      if (lane.tid !== 0 && !this.#threads.has(lane.tid)) lane.gone = true;
    }
  }

  #findLanes(now: number): void {
    const { lanes } = this.#agent.geometry;
    let maps: ReturnType<typeof readMaps>;
    for (let index = 1; index < lanes; index++) {
      const state = this.#headers.state(index);
      if (state === LANE_STATE.free || this.#live.has(index) || this.#retired.has(index)) continue;
      // One look at the threads is for all lanes that are new.
      if (maps === undefined) this.#checkThreads(now);
      maps ??= readMaps(this.#pid) ?? [];
      const tid = this.#tidOf(index);
      const why = state === undefined ? 'its state is none that there is' : this.#whyNoThread();
      if (why !== undefined) {
        this.#retired.add(index);
        this.#tellCorrupt(tid, why);
        continue;
      }
      const tail = this.#tails[index];
      const lane: LiveLane = {
        index,
        id: this.#nextId++,
        tid,
        ring: undefined,
        start: tail,
        tail,
        finalHead: undefined,
        lostTold: 0,
        kept: 0,
        reserved: 0,
        stuckSince: undefined,
        stuckHead: 0,
        gone: false,
      };
      this.#live.set(index, lane);
      this.#grant(index);
      const threadPointer = Number(this.#headers.threadPointer(index));
      const { low, size } = stackRange(maps, threadPointer, lane.tid === this.#pid);
      const stack = size > 0 ? ([low, low + size] as const) : undefined;
      this.#listener.onThread(lane.id, lane.tid, readThreadName(this.#pid, lane.tid) ?? '', stack);
    }
  }

  /**
   * Why a lane more cannot be a thread's; undefined: it can. A thread may have ended before we could look for it; but there are no more than
   * the process had, and the kernel has made since, of all processes.
   */
  #whyNoThread(): string | undefined {
    const least = this.#threadsBefore * LANES_PER_THREAD + SPARE_LANES;
    if (this.#nextId < least) return undefined;
    const [before, clones] = [this.#clonesBefore, readCloneCount()];
    if (before === undefined || clones === undefined) return undefined;
    return this.#nextId < least + (clones - before) * LANES_PER_THREAD
      ? undefined
      : 'there are more of them than there have been threads';
  }

  #grant(index: number): void {
    try {
      this.#agent.grantRing(index);
    } catch {
      // The target ended meanwhile; its records are still in the rings.
    }
  }

  /** Our name for the thread of a lane; 0: the kernel knows none. In a PID namespace the program knows it by another. */
  #tidOf(index: number): number {
    const preassigned = this.#preassigned.get(index);
    if (preassigned !== undefined) return preassigned;
    const tid = this.#headers.tid(index);
    if (tid === 0 || this.#threads.has(tid)) return tid;
    this.#ownIds ??= new Map(
      [...this.#threads].map((t) => [
        Number(readStatus(this.#pid, t)?.get('NSpid')?.split(/\s+/).at(-1) ?? Number.NaN),
        t,
      ]),
    );
    // It may have ended since it recorded. Its number is told, and nothing else of it asked.
    return this.#ownIds.get(tid) ?? (tid <= MOST_TID ? tid : 0);
  }

  #ringOf(lane: LiveLane): MappedRing {
    if (lane.ring === undefined) {
      const mapping = this.#agent.mapRing(lane.index);
      lane.ring = { mapping, words: new Uint32Array(mapping.bytes) };
    }
    return lane.ring;
  }

  /**
   * Takes at most `most` bytes, and a piece, of what is there at this moment, or up to `until`, which was: a thread that writes as fast as we
   * read would keep us here for good.
   */
  #take(
    lane: LiveLane,
    now: number,
    final: boolean,
    most: number,
    head = this.#headers.head(lane.index, lane.tail),
  ): number {
    let taken = 0;
    if (head === undefined) {
      this.#close(lane, 'it says that it has written what it cannot have');
      return 0;
    }
    if (lane.ring === undefined && head === lane.tail) return 0;
    const { words } = this.#ringOf(lane);
    const ringWords = words.length;
    if (head === lane.tail && !final) this.#reserveAhead(lane, head);
    let empty = 0;
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
      const end = findUnfinished(words, start, limit);
      if (end > start) {
        lane.stuckSince = undefined;
        empty = 0;
        const piece = this.#piece.subarray(0, end - start);
        piece.set(words.subarray(start, end));
        const good = this.#count(lane, piece);
        if (good > 0) this.#listener.onRecords(lane.id, piece.subarray(0, good), head - lane.tail);
        if (good < piece.length) {
          this.#close(lane, 'it has a record of no kind or function that there is');
          return taken + good / RECORD_WORDS;
        }
        words.fill(0, start, end);
        taken += (end - start) / RECORD_WORDS;
        this.#advance(lane, end - start);
      }
      if (end === limit) continue;
      if (!this.#isAbandoned(lane, head, now, final)) break;
      if (++empty > MOST_EMPTY) {
        this.#close(lane, 'it says that it has written where nothing is');
        return taken;
      }
      this.abandoned++;
      this.#advance(lane, RECORD_WORDS);
    }
    return taken;
  }

  /**
   * Goes through finished records, and puts function and kind in the place of the cell that recorded; returns how many words are of such as
   * can be. Hot: no calls, no allocation.
   */
  #count(lane: LiveLane, words: Uint32Array): number {
    const { entries } = this;
    const cells = this.#cells;
    let lost = 0;
    let at = 0;
    for (; at < words.length; at += RECORD_WORDS) {
      let what = words[at + WHAT_WORD];
      if ((what & KIND_MASK) === KIND_PLACE) {
        const place = what >>> KIND_BITS;
        what = place < cells.length ? cells[place] : 0;
        if (what === 0) break;
        words[at + WHAT_WORD] = what;
      } else if (what !== KIND_LOST) break;
      const kind = what & KIND_MASK;
      if (kind === KIND_ENTRY || kind === KIND_LEAF) entries[what >>> KIND_BITS]++;
      else if (kind === KIND_LOST) {
        lane.lostTold += words[at + WHAT_WORD + 1];
        lost++;
      }
    }
    this.records += at / RECORD_WORDS - lost;
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
    this.#headers.tellTail(lane.index, told);
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
    while (at < until && this.#headers.head(lane.index, lane.tail) === head) {
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

  #end(lane: LiveLane, now: number, mayRecycle = true): void {
    const dropped = this.#headers.dropped(lane.index, now);
    if (dropped === undefined) {
      this.#close(lane, 'it counts more lost records than there can be');
      return;
    }
    this.dropped += dropped;
    if (dropped > lane.lostTold) this.#listener.onLost(lane.id, dropped - lane.lostTold);
    this.#listener.onThreadEnd(lane.id);
    // Of an ended thread it may be exact, and must be, for the next owner of the lane goes on there.
    this.#headers.tellTail(lane.index, lane.tail);
    this.#tails[lane.index] = lane.tail;
    this.#live.delete(lane.index);
    this.#agent.budget.takeBack(lane.index);
    this.#freeRing(lane);
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

/** Where the first record is that is not finished yet, from `start` on. Hot: no calls, no allocation. */
function findUnfinished(words: Uint32Array, start: number, limit: number): number {
  let at = start;
  while (at < limit && words[at + WHAT_WORD] !== 0) at += RECORD_WORDS;
  return at;
}
