import { FORMAT_VERSION, FORMER_VERSION } from './file-layout.js';
import type { RecordingMode } from './file-layout.js';
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

const INITIAL_CALLS = 256;
/** More than any common program has open at once; a damaged recording must not make us allocate without bound. */
const MAX_OPEN = 1 << 22;
/** How many open calls are looked through for one that ends out of order, in version 1; bounds the work on damaged recordings. */
const SEARCH_LIMIT = 1 << 14;
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

/** Number of no call. */
const NONE = 0;

/** Open calls of all lanes, by numbers from 1 on; a field to an array. */
class OpenCalls {
  capacity = INITIAL_CALLS;
  lanes = new Uint32Array(INITIAL_CALLS);
  functions = new Uint32Array(INITIAL_CALLS);
  slots = new Uint32Array(INITIAL_CALLS);
  /** How often the lane had lost records when the call began. */
  losses = new Uint32Array(INITIAL_CALLS);
  /** The calls that are open around and within it, in the order in which they began. */
  outer = new Uint32Array(INITIAL_CALLS);
  inner = new Uint32Array(INITIAL_CALLS);
  /** Of a call on its thread's own stack: the next above it there. */
  above = new Uint32Array(INITIAL_CALLS);
  starts = new Float64Array(INITIAL_CALLS);
  selfs = new Float64Array(INITIAL_CALLS);
  tags = new Float64Array(INITIAL_CALLS);
  readonly #free: number[] = [];
  #next = 1;

  /** Undefined: there are too many. */
  take(): number | undefined {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#next === MAX_OPEN) return undefined;
    if (this.#next === this.capacity) this.#grow();
    return this.#next++;
  }

  give(call: number): void {
    this.#free.push(call);
  }

  #grow(): void {
    this.capacity *= 2;
    this.lanes = copied(new Uint32Array(this.capacity), this.lanes);
    this.functions = copied(new Uint32Array(this.capacity), this.functions);
    this.slots = copied(new Uint32Array(this.capacity), this.slots);
    this.losses = copied(new Uint32Array(this.capacity), this.losses);
    this.outer = copied(new Uint32Array(this.capacity), this.outer);
    this.inner = copied(new Uint32Array(this.capacity), this.inner);
    this.above = copied(new Uint32Array(this.capacity), this.above);
    this.starts = copied(new Float64Array(this.capacity), this.starts);
    this.selfs = copied(new Float64Array(this.capacity), this.selfs);
    this.tags = copied(new Float64Array(this.capacity), this.tags);
  }
}

/** One thread's life. */
class Lane {
  /** How many calls are open, and the one that began last. */
  depth = 0;
  top = NONE;
  /** The lowest that is open on the thread's own stack. */
  lowest = NONE;
  last = Number.NEGATIVE_INFINITY;
  /** How often records were lost: calls that began before may have ended unseen. */
  losses = 0;
  hasEnded = false;
  /** The own stack, in units of slots; of size 0 while it is not known. */
  stackLow = 0;
  stackSize = 0;
  isStackKnown = false;

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
  readonly #open = new OpenCalls();
  /** Calls on other stacks than their thread's own, by their slots: of all lanes where they are merged, else of each. */
  readonly #elsewhere = new Map<number, number>();
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
    const open = this.#open;
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
      if (lane.top !== NONE) open.selfs[lane.top] += now - lane.last;
      lane.last = now;
      const kind = what & KIND_MASK;
      switch (kind) {
        case KIND_ENTRY:
          if (entriesOnly) {
            this.#anomalies++;
            break;
          }
          this.#makeRoom(lane, slot, now);
          this.#begin(lane, functionIndex, slot, now);
          break;
        case KIND_EXIT:
        case KIND_TAIL:
        case KIND_UNWOUND: {
          const isUnknown = kind === KIND_UNWOUND ? !this.#isFormer : kind === KIND_TAIL && this.#isFormer;
          if (entriesOnly || isUnknown) {
            this.#anomalies++;
            break;
          }
          const call = this.#ending(lane, functionIndex, slot, now);
          if (call !== NONE) this.#close(call, now, kind === KIND_UNWOUND ? END_UNWOUND : END_RETURNED);
          break;
        }
        case KIND_LEAF: {
          if (entriesOnly) {
            // No exits are recorded: a frame whose slot is not above the new one must be gone.
            while (lane.top !== NONE && ((open.slots[lane.top] - slot) | 0) <= 0)
              this.#remove(lane, lane.top);
          } else if (!this.#isFormer) {
            this.#makeRoom(lane, slot, now);
          }
          const parentTag = lane.top === NONE ? 0 : open.tags[lane.top];
          const { depth } = lane;
          const tag = visitor.onLeaf(laneId, depth, functionIndex, now, parentTag);
          if (!entriesOnly) break;
          const call = this.#push(lane, functionIndex, slot, now);
          if (call !== NONE) open.tags[call] = tag;
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

  /** How far above the lowest word of the thread's own stack a slot lies; not below its size: it is none of it. */
  #height(lane: Lane, slot: number): number {
    return (slot - lane.stackLow) >>> 0;
  }

  #key(lane: Lane, slot: number): number {
    return this.#isMerged ? slot : lane.id * TWO_TO_32 + slot;
  }

  /** A call begins with that slot: those that are in its place have ended. */
  #makeRoom(lane: Lane, slot: number, now: number): void {
    if (this.#isFormer) {
      this.#closeDoubtfulBelow(lane, slot, now);
      return;
    }
    const height = this.#height(lane, slot);
    if (height < lane.stackSize) {
      this.#closeBelow(lane, height + 1, now);
      return;
    }
    this.#closeDoubtfulBelow(lane, slot, now);
    const former = this.#elsewhere.get(this.#key(lane, slot));
    if (former !== undefined) this.#closeUnwound(former, now);
  }

  /** Calls on the thread's own stack that lie below that height have ended without an end of their own. */
  #closeBelow(lane: Lane, height: number, now: number): void {
    const { slots } = this.#open;
    while (lane.lowest !== NONE && this.#height(lane, slots[lane.lowest]) < height)
      this.#closeUnwound(lane.lowest, now);
  }

  #closeUnwound(call: number, now: number): void {
    this.#close(call, now, this.#isDoubtful(call) ? END_LOST : END_UNWOUND);
  }

  #isDoubtful(call: number): boolean {
    const { lanes, losses } = this.#open;
    return losses[call] !== this.#lane(lanes[call]).losses;
  }

  #begin(lane: Lane, functionIndex: number, slot: number, now: number): void {
    const open = this.#open;
    const parentTag = lane.top === NONE ? 0 : open.tags[lane.top];
    const { depth } = lane;
    const call = this.#push(lane, functionIndex, slot, now);
    if (call === NONE) return;
    if (!this.#isFormer) {
      if (this.#height(lane, slot) < lane.stackSize) {
        open.above[call] = lane.lowest;
        lane.lowest = call;
      } else {
        this.#elsewhere.set(this.#key(lane, slot), call);
      }
    }
    open.tags[call] = this.#visitor.onEnter(lane.id, depth, functionIndex, now, parentTag);
  }

  /** Which open call ends here; NONE: it began before the trace, or its entry was lost. */
  #ending(lane: Lane, functionIndex: number, slot: number, now: number): number {
    const open = this.#open;
    if (this.#isFormer) {
      const call = this.#findFormer(lane, functionIndex, slot, now);
      // Its entry may be among what was lost.
      if (call === NONE && lane.losses === 0) this.#anomalies++;
      return call;
    }
    const height = this.#height(lane, slot);
    if (height < lane.stackSize) {
      this.#closeBelow(lane, height, now);
      const { lowest } = lane;
      const isIt = lowest !== NONE && open.slots[lowest] === slot && open.functions[lowest] === functionIndex;
      return isIt ? lowest : NONE;
    }
    const call = this.#elsewhere.get(this.#key(lane, slot)) ?? NONE;
    if (call === NONE || open.functions[call] !== functionIndex) return NONE;
    if (open.lanes[call] === lane.id) this.#closeDoubtfulAbove(lane, call, slot, now);
    return call;
  }

  /** The same in version 1, where several calls of a chain of tail calls are open with one slot. */
  #findFormer(lane: Lane, functionIndex: number, slot: number, now: number): number {
    const { slots, functions, outer } = this.#open;
    let call = lane.top;
    for (let tries = 0; call !== NONE && tries < SEARCH_LIMIT; tries++, call = outer[call]) {
      if (slots[call] !== slot || functions[call] !== functionIndex) continue;
      this.#closeDoubtfulAbove(lane, call, slot, now);
      return call;
    }
    return NONE;
  }

  /** Calls within one that ends, on the same stack, whose ends may be among what was lost. */
  #closeDoubtfulAbove(lane: Lane, call: number, slot: number, now: number): void {
    const { slots, outer } = this.#open;
    if (lane.losses === 0) return;
    for (let inner = lane.top; inner !== call && inner !== NONE;) {
      const next = outer[inner];
      if (this.#isDoubtful(inner) && this.#isInner(slots[inner], slot)) this.#close(inner, now, END_LOST);
      inner = next;
    }
  }

  /** A call begins with that slot: open calls at or below it on the same stack have ended, whose ends may be among what was lost. */
  #closeDoubtfulBelow(lane: Lane, slot: number, now: number): void {
    const { slots } = this.#open;
    while (lane.top !== NONE && this.#isDoubtful(lane.top)) {
      const top = slots[lane.top];
      if (top !== slot && !this.#isInner(top, slot)) return;
      this.#close(lane.top, now, END_LOST);
    }
  }

  /** True if slot `a` is deeper than slot `b` on the same stack: stacks grow down. */
  #isInner(a: number, b: number): boolean {
    const distance = (b - a) | 0;
    return distance > 0 && distance < STACK_BYTES >> (this.#isFormer ? 0 : SLOT_SHIFT);
  }

  #push(lane: Lane, functionIndex: number, slot: number, now: number): number {
    const open = this.#open;
    const call = open.take();
    if (call === undefined) {
      this.#anomalies++;
      return NONE;
    }
    open.lanes[call] = lane.id;
    open.functions[call] = functionIndex;
    open.slots[call] = slot;
    open.losses[call] = lane.losses;
    open.outer[call] = lane.top;
    open.inner[call] = NONE;
    open.above[call] = NONE;
    open.starts[call] = now;
    open.selfs[call] = 0;
    if (lane.top !== NONE) open.inner[lane.top] = call;
    lane.top = call;
    lane.depth++;
    return call;
  }

  /** Takes a call out of its lane. */
  #remove(lane: Lane, call: number): void {
    const { outer, inner, above, slots } = this.#open;
    lane.depth--;
    if (inner[call] === NONE) lane.top = outer[call];
    else outer[inner[call]] = outer[call];
    if (outer[call] !== NONE) inner[outer[call]] = inner[call];
    if (lane.lowest === call) lane.lowest = above[call];
    else if (this.#height(lane, slots[call]) < lane.stackSize) {
      let lower = lane.lowest;
      while (lower !== NONE && above[lower] !== call) lower = above[lower];
      above[lower] = above[call];
    } else {
      const key = this.#key(lane, slots[call]);
      if (this.#elsewhere.get(key) === call) this.#elsewhere.delete(key);
    }
    this.#open.give(call);
  }

  #close(call: number, at: number, end: CallEnd): void {
    const open = this.#open;
    const lane = this.#lane(open.lanes[call]);
    let now = at;
    if (now > lane.last) {
      // It ends in another lane.
      if (lane.top !== NONE) open.selfs[lane.top] += now - lane.last;
      lane.last = now;
    } else now = lane.last;
    const functionIndex = open.functions[call];
    const start = open.starts[call];
    const self = open.selfs[call];
    const tag = open.tags[call];
    const outer = open.outer[call];
    const parentTag = outer === NONE ? 0 : open.tags[outer];
    let depth = lane.depth - 1;
    for (let inner = open.inner[call]; inner !== NONE; inner = open.inner[inner]) depth--;
    this.#remove(lane, call);
    this.#visitor.onLeave(lane.id, depth, functionIndex, start, now, self, end, tag, parentTag);
  }

  #noteLost(lane: Lane, now: number, records: number, isNotKept: boolean): void {
    if (isNotKept) this.#notKept += records;
    else this.#lost += records;
    lane.last = now;
    lane.losses++;
    this.#visitor.onLost(lane.id, lane.depth, now, records, isNotKept);
  }

  #closeAll(lane: Lane, now: number): void {
    if (this.#mode === 'entries') {
      while (lane.top !== NONE) this.#remove(lane, lane.top);
      return;
    }
    if (lane.top !== NONE) this.#open.selfs[lane.top] += now - lane.last;
    lane.last = now;
    while (lane.top !== NONE) this.#close(lane.top, now, END_OPEN);
  }
}

function copied<T extends Uint32Array | Float64Array>(to: T, from: T): T {
  to.set(from);
  return to;
}
