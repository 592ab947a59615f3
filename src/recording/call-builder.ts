import { FORMAT_VERSION, FORMER_VERSION } from './file-layout.js';
import type { RecordingMode } from './file-layout.js';
import { FUNCTION, OpenCalls, SELF, SLOT, START, TAG } from './open-calls.js';
import {
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  KIND_LEAF,
  KIND_LOST,
  KIND_MASK,
  KIND_TAIL,
  KIND_UNWOUND,
  LOST_NOT_KEPT,
  RECORD_WORDS,
  SLOT_SHIFT,
  SLOT_WORD,
  TSC_HIGH_WORD,
  TSC_LOW_WORD,
  WHAT_WORD,
} from './record-layout.js';
import type { TraceInfo } from './trace-info.js';
import type { TscClock } from './tsc-clock.js';

/** The call returned, or went on as another by a jump. */
export const END_RETURNED = 0;
/** longjmp or an exception took it away; its end is when that was noticed: its catcher has gone on. */
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
const TWO_TO_32 = 2 ** 32;

/** What a builder must know besides its records. */
export interface BuilderOptions {
  /** Of the format: see `FORMAT_VERSION`. */
  readonly version?: number;
  /** Where the own stack of a lane's thread lies, from one address up to another, if that is known. */
  readonly stackOf?: (lane: number) => readonly [bigint, bigint] | undefined;
  /** Records of all lanes come in the order of time: a call that another thread goes on with is found. */
  readonly isMerged?: boolean;
}

/** What `info` tells a builder. */
export function builderOptions(info: TraceInfo, isMerged: boolean): BuilderOptions {
  return {
    version: info.header.formatVersion ?? FORMAT_VERSION,
    stackOf: (lane) => info.threadOf(lane).stack,
    isMerged,
  };
}

/** An open call on another stack than its thread's own. */
interface Elsewhere {
  readonly lane: Lane;
  readonly functionIndex: number;
}

class Lane {
  readonly calls = new OpenCalls();
  last = Number.NEGATIVE_INFINITY;
  /** The first so many open calls were open when records were lost: they may have ended unseen. */
  doubtful = 0;
  hasLost = false;
  hasEnded = false;
  /** The own stack, in units of slots; of size 0 while it is not known. */
  stackLow = 0;
  stackSize = 0;
  isStackKnown = false;
  /** The calls that are open on it, the lowest last: function and slot of each. */
  readonly own: number[] = [];

  constructor(readonly id: number) {}
}

/**
 * Turns the records of each lane into calls: each lane's in order, those of different lanes in any mixture, unless they are said to be
 * merged. Never throws for what records say: what makes no sense is counted in `anomalies` and left out.
 *
 * An end belongs to the open call of the same slot and function, whatever else is open. What has no end of its own (an exception, longjmp)
 * ends when a call that is recorded shows that its frame is gone: a call with its slot begins; or, on the thread's own stack, which nobody
 * else uses, one begins or ends that lies above it.
 */
export class CallBuilder {
  readonly #mode: RecordingMode;
  readonly #visitor: CallVisitor;
  readonly #baseLow: number;
  readonly #baseHigh: number;
  readonly #isFormer: boolean;
  readonly #stackOf: BuilderOptions['stackOf'];
  readonly #isMerged: boolean;
  readonly #lanes = new Map<number, Lane>();
  /** Open calls on other stacks than their thread's own, by their slots: of all lanes where they are merged, else of each. */
  readonly #elsewhere = new Map<number, Elsewhere>();
  #anomalies = 0;
  #records = 0;
  #lost = 0;
  #notKept = 0;

  constructor(
    mode: RecordingMode,
    clock: TscClock,
    visitor: CallVisitor,
    { version = FORMAT_VERSION, stackOf, isMerged = false }: BuilderOptions = {},
  ) {
    this.#mode = mode;
    this.#visitor = visitor;
    this.#baseLow = clock.baseLow;
    this.#baseHigh = clock.baseHigh;
    this.#isFormer = version === FORMER_VERSION;
    this.#stackOf = stackOf;
    this.#isMerged = isMerged;
  }

  /** Records that fit nothing: unknown kinds, records not written; in version 1 also ends of calls that never began. */
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
      let now = (words[at + TSC_HIGH_WORD] - baseHigh) * TWO_TO_32 + (words[at + TSC_LOW_WORD] - baseLow);
      // Counters of two processors may differ by a little: time stands still rather than going back.
      if (now < lane.last) now = lane.last;
      if (calls.depth > 0) calls.addSelf(now - lane.last);
      lane.last = now;
      const kind = what & KIND_MASK;
      switch (kind) {
        case KIND_ENTRY: {
          if (entriesOnly) {
            this.#anomalies++;
            break;
          }
          this.#makeRoom(lane, slot, now);
          const { depth } = calls;
          const parentTag = depth === 0 ? 0 : calls.get(calls.innermost, TAG);
          const place = calls.push(functionIndex, slot, now);
          if (place < 0) {
            this.#anomalies++;
            break;
          }
          this.#note(lane, functionIndex, slot);
          calls.set(place, TAG, visitor.onEnter(laneId, depth, functionIndex, now, parentTag));
          break;
        }
        case KIND_EXIT:
        case KIND_TAIL:
        case KIND_UNWOUND: {
          const isUnknown = kind === KIND_UNWOUND ? !this.#isFormer : kind === KIND_TAIL && this.#isFormer;
          if (entriesOnly || isUnknown) {
            this.#anomalies++;
            break;
          }
          if (this.#isFormer) this.#endFormer(lane, functionIndex, slot, now, kind);
          else this.#end(lane, functionIndex, slot, now);
          break;
        }
        case KIND_LEAF: {
          // No exits are recorded: a frame whose slot is not above the new one must be gone.
          if (entriesOnly)
            while (calls.depth > 0 && ((calls.get(calls.innermost, SLOT) - slot) | 0) <= 0)
              calls.remove(calls.innermost);
          else if (!this.#isFormer) this.#makeRoom(lane, slot, now);
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
    if (!lane.isStackKnown && !this.#isFormer) {
      const stack = this.#stackOf?.(id);
      if (stack !== undefined) {
        lane.isStackKnown = true;
        lane.stackLow = Number((stack[0] >> BigInt(SLOT_SHIFT)) % BigInt(TWO_TO_32));
        lane.stackSize = Number((stack[1] - stack[0]) >> BigInt(SLOT_SHIFT));
      }
    }
    return lane;
  }

  #key(lane: Lane, slot: number): number {
    return this.#isMerged ? slot : lane.id * TWO_TO_32 + slot;
  }

  /** A call begins with that slot: those that are in its place have ended. */
  #makeRoom(lane: Lane, slot: number, now: number): void {
    if (!this.#isFormer && isOwn(lane, slot)) {
      this.#closeOwnBelow(lane, heightOf(lane, slot) + 1, now);
      return;
    }
    if (lane.doubtful > 0 && lane.doubtful === lane.calls.depth) this.#closeBelow(lane, slot, now);
    const former = this.#elsewhere.get(this.#key(lane, slot));
    if (former !== undefined) this.#closeUnwound(former.lane, former.functionIndex, slot, now);
  }

  /** Notes where an open call is to be found. */
  #note(lane: Lane, functionIndex: number, slot: number): void {
    if (this.#isFormer) return;
    if (isOwn(lane, slot)) lane.own.push(functionIndex, slot);
    else this.#elsewhere.set(this.#key(lane, slot), { lane, functionIndex });
  }

  /** The same for one that is open no more. */
  #forget(lane: Lane, functionIndex: number, slot: number): void {
    if (this.#isFormer) return;
    if (isOwn(lane, slot)) {
      // The lowest, nearly always.
      let at = lane.own.length - 2;
      while (at >= 0 && (lane.own[at + 1] !== slot || lane.own[at] !== functionIndex)) at -= 2;
      if (at >= 0) lane.own.splice(at, 2);
      return;
    }
    const key = this.#key(lane, slot);
    const noted = this.#elsewhere.get(key);
    if (noted?.lane === lane && noted.functionIndex === functionIndex) this.#elsewhere.delete(key);
  }

  /** Calls on the thread's own stack that lie below that height have ended without an end of their own. */
  #closeOwnBelow(lane: Lane, height: number, now: number): void {
    const { own } = lane;
    while (own.length > 0 && heightOf(lane, own[own.length - 1]) < height)
      this.#closeUnwound(lane, own[own.length - 2], own[own.length - 1], now);
  }

  #closeUnwound(lane: Lane, functionIndex: number, slot: number, now: number): void {
    const place = lane.calls.find(functionIndex, slot);
    if (place < 0) {
      this.#forget(lane, functionIndex, slot);
      return;
    }
    const isDoubtful = lane.calls.depthAt(place) < lane.doubtful;
    this.#close(lane, place, now, isDoubtful ? END_LOST : END_UNWOUND);
  }

  /** The call of that function and slot ends, if it is open: else it began before the trace, or its entry was lost. */
  #end(lane: Lane, functionIndex: number, slot: number, now: number): void {
    if (isOwn(lane, slot)) {
      this.#closeOwnBelow(lane, heightOf(lane, slot), now);
      const { own } = lane;
      if (own.at(-1) !== slot || own.at(-2) !== functionIndex) return;
      const place = lane.calls.find(functionIndex, slot);
      if (place >= 0) this.#close(lane, place, now, END_RETURNED);
      return;
    }
    const noted = this.#elsewhere.get(this.#key(lane, slot));
    if (noted?.functionIndex !== functionIndex) return;
    const place = this.#findOpen(noted.lane, functionIndex, slot, now);
    if (place >= 0) this.#close(noted.lane, place, now, END_RETURNED);
  }

  #endFormer(lane: Lane, functionIndex: number, slot: number, now: number, kind: number): void {
    const { calls } = lane;
    const top = calls.innermost;
    const place =
      top >= 0 && calls.get(top, SLOT) === slot && calls.get(top, FUNCTION) === functionIndex
        ? top
        : this.#findOpen(lane, functionIndex, slot, now);
    if (place >= 0) this.#close(lane, place, now, kind === KIND_EXIT ? END_RETURNED : END_UNWOUND);
    // Its entry may be among what was lost.
    else if (!lane.hasLost) this.#anomalies++;
  }

  #close(lane: Lane, place: number, at: number, end: CallEnd): void {
    const { calls } = lane;
    const now = Math.max(at, lane.last);
    if (now > lane.last) {
      // Another lane has told of it.
      calls.addSelf(now - lane.last);
      lane.last = now;
    }
    this.#forget(lane, calls.get(place, FUNCTION), calls.get(place, SLOT));
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
      if (this.#isInner(calls.get(place, SLOT), slot)) this.#close(lane, place, now, END_LOST);
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
      if (top !== slot && !this.#isInner(top, slot)) return;
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

  /** True if slot `a` is deeper than slot `b` on the same stack: stacks grow down. */
  #isInner(a: number, b: number): boolean {
    const distance = (b - a) | 0;
    return distance > 0 && distance < STACK_BYTES >> (this.#isFormer ? 0 : SLOT_SHIFT);
  }
}

/** How far above the lowest word of the thread's own stack a slot lies. */
function heightOf(lane: Lane, slot: number): number {
  return (slot - lane.stackLow) >>> 0;
}

function isOwn(lane: Lane, slot: number): boolean {
  return heightOf(lane, slot) < lane.stackSize;
}
