import { END_LOST, END_OPEN, END_RETURNED, END_UNWOUND } from './call-builder.js';
import type { CallEnd, CallVisitor } from './call-builder.js';
import type { FunctionInfo, TraceInfo } from './trace-info.js';

/**
 * How a call ended: it returned; longjmp or an exception took it away; it was still open when the trace or its thread
 * ended; its end is among lost records; or only its entry was recorded.
 */
export type CallEnding = 'returned' | 'unwound' | 'open' | 'lost' | 'entry-only';

/** One call of a traced function. Times are nanoseconds since the start of the trace. */
export interface Call {
  readonly function: FunctionInfo;
  /** The thread's life; unlike `tid` never used twice. */
  readonly lane: number;
  readonly tid: number;
  /** How many traced calls were open around it. */
  readonly depth: number;
  /** The traced call around all of it. Where a thread switches stacks this may change until the call ends. */
  readonly parent: Call | undefined;
  readonly start: bigint;
  /** Undefined while it runs, and for `entry-only`. An upper bound where `end` is neither `returned` nor `open`. */
  readonly duration: bigint | undefined;
  /** The part of the duration spent outside traced calls inside it. Undefined as `duration` is. */
  readonly selfTime: bigint | undefined;
  /** Undefined while it runs. */
  readonly end: CallEnding | undefined;
}

const ENDINGS: Readonly<Record<CallEnd, CallEnding>> = {
  [END_RETURNED]: 'returned',
  [END_UNWOUND]: 'unwound',
  [END_OPEN]: 'open',
  [END_LOST]: 'lost',
};

export function endingOf(end: CallEnd): CallEnding {
  return ENDINGS[end];
}

type OpenCall = { -readonly [Field in keyof Call]: Call[Field] };

/** Makes an object of every call, and hands it over when the call has ended; its parent is the parent's object. */
export class CallObjects implements CallVisitor {
  readonly #info: TraceInfo;
  readonly #onCall: (call: Call) => void;
  readonly #onLost: ((lane: number, records: number) => void) | undefined;
  /** Objects of open calls; a call's tag is its position here, and 0 is no call. */
  readonly #open: (OpenCall | undefined)[] = [undefined];
  readonly #free: number[] = [];
  /** In entries mode nothing tells when a call is over: the latest of each depth, per lane. */
  readonly #leaves = new Map<number, OpenCall[]>();

  constructor(
    info: TraceInfo,
    onCall: (call: Call) => void,
    onLost?: (lane: number, records: number) => void,
  ) {
    this.#info = info;
    this.#onCall = onCall;
    this.#onLost = onLost;
  }

  onEnter(lane: number, depth: number, functionIndex: number, tick: number, parentTag: number): number {
    const tag = this.#free.pop() ?? this.#open.length;
    this.#open[tag] = this.#make(lane, depth, functionIndex, tick, this.#open[parentTag]);
    return tag;
  }

  onLeave(
    _lane: number,
    depth: number,
    _functionIndex: number,
    _startTick: number,
    endTick: number,
    self: number,
    end: CallEnd,
    tag: number,
    parentTag: number,
  ): void {
    const call = this.#open[tag];
    if (call === undefined) return;
    this.#open[tag] = undefined;
    this.#free.push(tag);
    call.depth = depth;
    call.parent = this.#open[parentTag];
    call.duration = this.#ns(endTick) - call.start;
    const selfTime = this.#ns(self);
    // Rounding to nanoseconds may make a part one larger than the whole.
    call.selfTime = selfTime < call.duration ? selfTime : call.duration;
    call.end = endingOf(end);
    this.#onCall(call);
  }

  onLeaf(lane: number, depth: number, functionIndex: number, tick: number, parentTag: number): number {
    let parent = this.#open[parentTag];
    const isEntriesMode = this.#info.header.mode === 'entries';
    let leaves: OpenCall[] | undefined;
    if (isEntriesMode) {
      leaves = this.#leaves.get(lane) ?? [];
      this.#leaves.set(lane, leaves);
      leaves.length = Math.min(leaves.length, depth);
      parent = leaves.at(-1);
    }
    const call = this.#make(lane, depth, functionIndex, tick, parent);
    call.end = 'entry-only';
    leaves?.push(call);
    this.#onCall(call);
    return 0;
  }

  onLost(lane: number, _depth: number, _tick: number, records: number): void {
    this.#onLost?.(lane, records);
  }

  #make(
    lane: number,
    depth: number,
    functionIndex: number,
    tick: number,
    parent: OpenCall | undefined,
  ): OpenCall {
    return {
      function: this.#info.functionAt(functionIndex),
      lane,
      tid: this.#info.threadOf(lane).tid,
      depth,
      parent,
      start: this.#ns(tick),
      duration: undefined,
      selfTime: undefined,
      end: undefined,
    };
  }

  #ns(ticks: number): bigint {
    return BigInt(Math.round(this.#info.clock.toNs(ticks)));
  }
}
