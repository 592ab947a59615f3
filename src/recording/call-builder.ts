import type { RecordingMode } from './file-layout.js';
import { FUNCTION, OpenCalls, SELF, SLOT, START, TAG } from './open-calls.js';
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

/** Calls that may have ended unseen are looked at so often for one whose end was seen, beside those that are found to have ended. */
const MAX_UNDECIDED = 256;
/** Frames further apart than the usual size of a stack, 8 MiB, are taken to be on different stacks. */
const STACK_BYTES = 8 << 20;

class Lane {
  readonly calls = new OpenCalls();
  last = Number.NEGATIVE_INFINITY;
  /** The first so many open calls were open when records were lost: they may have ended unseen. */
  doubtful = 0;
  hasLost = false;
  hasEnded = false;

  constructor(readonly id: number) {}
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
    const { calls } = lane;
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
      if (calls.depth > 0) calls.addSelf(now - lane.last);
      lane.last = now;
      switch (what & KIND_MASK) {
        case KIND_ENTRY: {
          if (entriesOnly) {
            this.#anomalies++;
            break;
          }
          if (lane.doubtful > 0 && lane.doubtful === calls.depth) this.#closeBelow(lane, slot, now);
          const { depth } = calls;
          const parentTag = depth === 0 ? 0 : calls.get(calls.innermost, TAG);
          const place = calls.push(functionIndex, slot, now);
          if (place < 0) this.#anomalies++;
          else calls.set(place, TAG, visitor.onEnter(laneId, depth, functionIndex, now, parentTag));
          break;
        }
        case KIND_EXIT:
        case KIND_UNWOUND: {
          if (entriesOnly) {
            this.#anomalies++;
            break;
          }
          const top = calls.innermost;
          const place =
            top >= 0 && calls.get(top, SLOT) === slot && calls.get(top, FUNCTION) === functionIndex
              ? top
              : this.#findOpen(lane, functionIndex, slot, now);
          if (place < 0) {
            // Its entry may be among what was lost.
            if (!lane.hasLost) this.#anomalies++;
            break;
          }
          this.#close(lane, place, now, (what & KIND_MASK) === KIND_EXIT ? END_RETURNED : END_UNWOUND);
          break;
        }
        case KIND_LEAF: {
          // No exits are recorded: a frame whose slot is not above the new one must be gone.
          if (entriesOnly)
            while (calls.depth > 0 && ((calls.get(calls.innermost, SLOT) - slot) | 0) <= 0)
              calls.remove(calls.innermost);
          const { depth } = calls;
          const parentTag = depth === 0 ? 0 : calls.get(calls.innermost, TAG);
          const tag = visitor.onLeaf(laneId, depth, functionIndex, now, parentTag);
          if (!entriesOnly) break;
          const place = calls.push(functionIndex, slot, now);
          if (place < 0) this.#anomalies++;
          else calls.set(place, TAG, tag);
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

  #close(lane: Lane, place: number, now: number, end: CallEnd): void {
    const { calls } = lane;
    const depth = calls.depthAt(place);
    const functionIndex = calls.get(place, FUNCTION);
    const start = calls.get(place, START);
    const self = calls.get(place, SELF);
    const tag = calls.get(place, TAG);
    const parentTag = depth === 0 ? 0 : calls.get(calls.placeAt(depth - 1), TAG);
    calls.remove(place);
    if (depth < lane.doubtful) lane.doubtful--;
    this.#visitor.onLeave(lane.id, depth, functionIndex, start, now, self, end, tag, parentTag);
  }

  /**
   * Where the open call that ends here stands; negative if there is none. Above it may be calls on other stacks, which stay open, and calls
   * whose ends were lost, which are closed.
   */
  #findOpen(lane: Lane, functionIndex: number, slot: number, now: number): number {
    const { calls } = lane;
    const found = calls.find(functionIndex, slot);
    if (found < 0 || lane.doubtful === 0) return found;
    const depth = calls.depthAt(found);
    let undecided = 0;
    for (let above = Math.min(lane.doubtful, calls.depth) - 1; above > depth; above--) {
      const place = calls.placeAt(above);
      if (isInner(calls.get(place, SLOT), slot)) this.#close(lane, place, now, END_LOST);
      else if (++undecided > MAX_UNDECIDED) break;
    }
    return calls.placeAt(depth);
  }

  /**
   * A call begins whose return address stands at `slot`: open calls at or below it on the same stack have ended. Asked
   * only of calls whose ends may have been lost.
   */
  #closeBelow(lane: Lane, slot: number, now: number): void {
    const { calls } = lane;
    while (lane.doubtful > 0 && lane.doubtful === calls.depth) {
      const top = calls.get(calls.innermost, SLOT);
      if (top !== slot && !isInner(top, slot)) return;
      this.#close(lane, calls.innermost, now, END_LOST);
    }
  }

  #noteLost(lane: Lane, now: number, records: number, isNotKept: boolean): void {
    if (isNotKept) this.#notKept += records;
    else this.#lost += records;
    lane.last = now;
    lane.hasLost = true;
    if (this.#mode === 'calls') lane.doubtful = lane.calls.depth;
    this.#visitor.onLost(lane.id, lane.calls.depth, now, records, isNotKept);
  }

  #closeAll(lane: Lane, now: number): void {
    const { calls } = lane;
    if (this.#mode === 'entries') {
      while (calls.depth > 0) calls.remove(calls.innermost);
      return;
    }
    if (calls.depth > 0) calls.set(calls.innermost, SELF, calls.get(calls.innermost, SELF) + now - lane.last);
    lane.last = now;
    while (calls.depth > 0) this.#close(lane, calls.innermost, now, END_OPEN);
  }
}

/** True if slot `a` is deeper than slot `b` on the same stack: stacks grow down. */
function isInner(a: number, b: number): boolean {
  const distance = (b - a) | 0;
  return distance > 0 && distance < STACK_BYTES;
}
