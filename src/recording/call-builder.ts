import type { RecordingMode } from './file-layout.js';
import {
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  KIND_LEAF,
  KIND_LOST,
  KIND_MASK,
  KIND_UNWOUND,
  LOST_NOT_KEPT,
  RECORD_WORDS,
  SLOT_WORD,
  TSC_HIGH_WORD,
  TSC_LOW_WORD,
  WHAT_WORD,
} from './record-layout.js';
import type { TscClock } from './tsc-clock.js';

/** The call returned. */
export const END_RETURNED = 0;
/** longjmp or an exception took it away; its end is when that was noticed. */
export const END_UNWOUND = 1;
/** It had not returned when the recording, or its thread, ended. */
export const END_OPEN = 2;
/** Its end is among the records that were lost; it ended no later than the end given. */
export const END_LOST = 3;
export type CallEnd = typeof END_RETURNED | typeof END_UNWOUND | typeof END_OPEN | typeof END_LOST;

/**
 * What happens in a trace, call by call. Times are ticks since the start of the trace and never go back within a lane.
 * `depth` counts the calls that are open around this one. A visitor hangs a number of its own, a tag, on each open call
 * (0 stands for "no parent").
 *
 * Calls mostly end innermost first. Where a thread switches between stacks (coroutines), a call may end while deeper
 * ones are open: it is taken out, and those deeper move up by one. So the parent with which a call ends may differ from
 * the one with which it began, but is always open around all of it: no call lasts longer than its parent.
 */
export interface CallVisitor {
  /** Returns the tag of the new call. */
  onEnter(lane: number, depth: number, functionIndex: number, tick: number, parentTag: number): number;
  /** `self` is the part of the duration during which no call inside it was open. */
  onLeave(
    lane: number,
    depth: number,
    functionIndex: number,
    startTick: number,
    endTick: number,
    self: number,
    end: CallEnd,
    tag: number,
    parentTag: number,
  ): void;
  /** A call of which only the entry is known. Returns its tag: in entries mode calls inside it follow. */
  onLeaf(lane: number, depth: number, functionIndex: number, tick: number, parentTag: number): number;
  /** Records are missing here, inside `depth` open calls: the ring was full, or (`isNotKept`) only the newest were to be kept. */
  onLost(lane: number, depth: number, tick: number, records: number, isNotKept: boolean): void;
}

const INITIAL_DEPTH = 64;
/** Deeper than the frames that any common stack holds; a damaged recording must not make us allocate without bound. */
const MAX_DEPTH = 1 << 22;
/** How many open calls are looked through for one that ends out of order; bounds the work on damaged recordings. */
const SEARCH_LIMIT = 1 << 14;
/** Frames further apart than the usual size of a stack, 8 MiB, are taken to be on different stacks. */
const STACK_BYTES = 8 << 20;

/** The open calls of one lane, outermost first, a field to an array. */
class Lane {
  depth = 0;
  last = Number.NEGATIVE_INFINITY;
  /** The first so many open calls were open when records were lost: they may have ended unseen. */
  doubtful = 0;
  hasLost = false;
  hasEnded = false;
  capacity = INITIAL_DEPTH;
  functions = new Uint32Array(INITIAL_DEPTH);
  slots = new Uint32Array(INITIAL_DEPTH);
  starts = new Float64Array(INITIAL_DEPTH);
  selfs = new Float64Array(INITIAL_DEPTH);
  tags = new Float64Array(INITIAL_DEPTH);

  constructor(readonly id: number) {}

  grow(): void {
    this.capacity *= 2;
    this.functions = copied(new Uint32Array(this.capacity), this.functions);
    this.slots = copied(new Uint32Array(this.capacity), this.slots);
    this.starts = copied(new Float64Array(this.capacity), this.starts);
    this.selfs = copied(new Float64Array(this.capacity), this.selfs);
    this.tags = copied(new Float64Array(this.capacity), this.tags);
  }

  /** Takes the call at `position` out. */
  remove(position: number): void {
    this.depth--;
    if (position < this.doubtful) this.doubtful--;
    if (position === this.depth) return;
    const end = this.depth + 1;
    this.functions.copyWithin(position, position + 1, end);
    this.slots.copyWithin(position, position + 1, end);
    this.starts.copyWithin(position, position + 1, end);
    this.selfs.copyWithin(position, position + 1, end);
    this.tags.copyWithin(position, position + 1, end);
  }
}

/**
 * Turns the records of each lane into calls. Lanes are independent: their records may come in any mixture, each lane's
 * in order. Never throws for what records say: what makes no sense is counted in `anomalies` and left out.
 */
export class CallBuilder {
  readonly #mode: RecordingMode;
  readonly #visitor: CallVisitor;
  readonly #baseLow: number;
  readonly #baseHigh: number;
  readonly #lanes = new Map<number, Lane>();
  #anomalies = 0;
  #records = 0;
  #lost = 0;
  #notKept = 0;

  constructor(mode: RecordingMode, clock: TscClock, visitor: CallVisitor) {
    this.#mode = mode;
    this.#visitor = visitor;
    this.#baseLow = clock.baseLow;
    this.#baseHigh = clock.baseHigh;
  }

  /** Records that fit nothing: ends of calls that never began, unknown kinds, records not written. */
  get anomalies(): number {
    return this.#anomalies;
  }

  /** Records seen, LOST ones among them. */
  get records(): number {
    return this.#records;
  }

  /** Records that were lost, as LOST records and `addLost` say. */
  get lost(): number {
    return this.#lost;
  }

  /** Records that were left out, as only the newest were to be kept. */
  get notKept(): number {
    return this.#notKept;
  }

  /** Takes the next records of a lane: `words[from..to)`, whole records of 32-bit words. */
  addRecords(laneId: number, words: Uint32Array, from = 0, to = words.length): void {
    const lane = this.#lane(laneId);
    const visitor = this.#visitor;
    const baseLow = this.#baseLow;
    const baseHigh = this.#baseHigh;
    const entriesOnly = this.#mode === 'entries';
    this.#records += (to - from) / RECORD_WORDS;
    for (let at = from; at < to; at += RECORD_WORDS) {
      const what = words[at + WHAT_WORD];
      const slot = words[at + SLOT_WORD];
      const functionIndex = what >>> KIND_BITS;
      let now = (words[at + TSC_HIGH_WORD] - baseHigh) * 2 ** 32 + (words[at + TSC_LOW_WORD] - baseLow);
      // Counters of two processors may differ by a little: time stands still rather than going back.
      if (now < lane.last) now = lane.last;
      let depth = lane.depth;
      if (depth > 0) lane.selfs[depth - 1] += now - lane.last;
      lane.last = now;
      switch (what & KIND_MASK) {
        case KIND_ENTRY: {
          if (entriesOnly) {
            this.#anomalies++;
            break;
          }
          if (lane.doubtful > 0 && lane.doubtful === depth) {
            this.#closeBelow(lane, slot, now);
            depth = lane.depth;
          }
          const parentTag = depth === 0 ? 0 : lane.tags[depth - 1];
          if (this.#push(lane, functionIndex, slot, now))
            lane.tags[depth] = visitor.onEnter(laneId, depth, functionIndex, now, parentTag);
          break;
        }
        case KIND_EXIT:
        case KIND_UNWOUND: {
          if (entriesOnly) {
            this.#anomalies++;
            break;
          }
          const top = depth - 1;
          const position =
            depth > 0 && lane.slots[top] === slot && lane.functions[top] === functionIndex
              ? top
              : this.#findOpen(lane, functionIndex, slot, now);
          if (position < 0) {
            // Its entry may be among what was lost.
            if (!lane.hasLost) this.#anomalies++;
            break;
          }
          this.#close(lane, position, now, (what & KIND_MASK) === KIND_EXIT ? END_RETURNED : END_UNWOUND);
          break;
        }
        case KIND_LEAF: {
          if (entriesOnly) {
            // No exits are recorded: a frame whose slot is not above the new one must be gone.
            while (depth > 0 && ((lane.slots[depth - 1] - slot) | 0) <= 0) depth--;
            lane.depth = depth;
          }
          const parentTag = depth === 0 ? 0 : lane.tags[depth - 1];
          const tag = visitor.onLeaf(laneId, depth, functionIndex, now, parentTag);
          if (entriesOnly && this.#push(lane, functionIndex, slot, now)) lane.tags[depth] = tag;
          break;
        }
        case KIND_LOST:
          this.#noteLost(lane, now, slot, functionIndex === LOST_NOT_KEPT);
          break;
        default:
          this.#anomalies++;
      }
    }
  }

  /** Says that the lane's records after the last one that was given were lost, or not kept. */
  addLost(laneId: number, records: number, isNotKept = false): void {
    const lane = this.#lane(laneId);
    this.#noteLost(lane, lane.last === Number.NEGATIVE_INFINITY ? 0 : lane.last, records, isNotKept);
  }

  /** Says that the thread of the lane has ended: calls still open end with it. */
  endLane(laneId: number): void {
    const lane = this.#lane(laneId);
    if (lane.hasEnded) return;
    lane.hasEnded = true;
    this.#closeAll(lane, lane.last);
  }

  /** Says that there are no more records: calls still open are told of, as open until the latest time seen anywhere. */
  finish(): void {
    let latest = Number.NEGATIVE_INFINITY;
    for (const lane of this.#lanes.values()) latest = Math.max(latest, lane.last);
    for (const lane of this.#lanes.values()) this.#closeAll(lane, latest);
  }

  #lane(id: number): Lane {
    let lane = this.#lanes.get(id);
    if (lane === undefined) {
      lane = new Lane(id);
      this.#lanes.set(id, lane);
    }
    return lane;
  }

  #push(lane: Lane, functionIndex: number, slot: number, now: number): boolean {
    const depth = lane.depth;
    if (depth === lane.capacity) {
      if (depth >= MAX_DEPTH) {
        this.#anomalies++;
        return false;
      }
      lane.grow();
    }
    lane.functions[depth] = functionIndex;
    lane.slots[depth] = slot;
    lane.starts[depth] = now;
    lane.selfs[depth] = 0;
    lane.depth = depth + 1;
    return true;
  }

  #close(lane: Lane, position: number, now: number, end: CallEnd): void {
    const functionIndex = lane.functions[position];
    const start = lane.starts[position];
    const self = lane.selfs[position];
    const tag = lane.tags[position];
    const parentTag = position === 0 ? 0 : lane.tags[position - 1];
    lane.remove(position);
    this.#visitor.onLeave(lane.id, position, functionIndex, start, now, self, end, tag, parentTag);
  }

  /**
   * Where the open call that ends here stands, or -1. Above it may be calls on other stacks, which stay open, and calls
   * whose ends were lost, which are closed.
   */
  #findOpen(lane: Lane, functionIndex: number, slot: number, now: number): number {
    const lowest = Math.max(0, lane.depth - SEARCH_LIMIT);
    let position = lane.depth - 1;
    while (
      position >= lowest &&
      (lane.slots[position] !== slot || lane.functions[position] !== functionIndex)
    )
      position--;
    if (position < lowest) return -1;
    for (let above = Math.min(lane.doubtful, lane.depth) - 1; above > position; above--)
      if (isInner(lane.slots[above], slot)) this.#close(lane, above, now, END_LOST);
    return position;
  }

  /**
   * A call begins whose return address stands at `slot`: open calls at or below it on the same stack have ended. Asked
   * only of calls whose ends may have been lost.
   */
  #closeBelow(lane: Lane, slot: number, now: number): void {
    while (lane.doubtful > 0 && lane.doubtful === lane.depth) {
      const top = lane.slots[lane.depth - 1];
      if (top !== slot && !isInner(top, slot)) return;
      this.#close(lane, lane.depth - 1, now, END_LOST);
    }
  }

  #noteLost(lane: Lane, now: number, records: number, isNotKept: boolean): void {
    if (isNotKept) this.#notKept += records;
    else this.#lost += records;
    lane.last = now;
    lane.hasLost = true;
    if (this.#mode === 'calls') lane.doubtful = lane.depth;
    this.#visitor.onLost(lane.id, lane.depth, now, records, isNotKept);
  }

  #closeAll(lane: Lane, now: number): void {
    if (this.#mode === 'entries') {
      lane.depth = 0;
      return;
    }
    if (lane.depth > 0) lane.selfs[lane.depth - 1] += now - lane.last;
    lane.last = now;
    while (lane.depth > 0) this.#close(lane, lane.depth - 1, now, END_OPEN);
  }
}

/** True if slot `a` is deeper than slot `b` on the same stack: stacks grow down. */
function isInner(a: number, b: number): boolean {
  const distance = (b - a) | 0;
  return distance > 0 && distance < STACK_BYTES;
}

function copied<T extends Uint32Array | Float64Array>(to: T, from: T): T {
  to.set(from);
  return to;
}
