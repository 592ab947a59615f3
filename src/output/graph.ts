/**
 * The calls of a trace as nested text, in the manner of the kernel's function_graph tracer and of uftrace:
 *
 *     # DURATION     TID     FUNCTION
 *                 [  4711] | main() {
 *        1.234 us [  4711] |   read_config();
 *       12.345 ms [  4711] | } /* main *\/
 *
 * A line is written when its duration is known: a call without calls inside it when it ends, others at their beginning
 * and again at their end. Lines of several threads are interleaved as they happened.
 */
import { END_LOST, END_OPEN, END_RETURNED, END_UNWOUND } from '../recording/index.js';
import type { CallEnd, TraceInfo } from '../recording/index.js';
import { marked, padStart, plain, text, type Text } from '../text/index.js';
import { FunctionLabels, LONGEST_NAME } from './labels.js';
import { DURATION_COLUMNS, formatDuration, formatLost } from './number-format.js';
import { NO_COLORS } from './text-output.js';
import type { Palette, TextOutput, TextSink } from './text-output.js';

const TID_COLUMNS = 6;
const NS_PER_MS = 1e6;
const NS_PER_S = 1e9;
/** Runaway recursion would make lines so long that the output grows with the square of its depth. */
const MAX_INDENT_LEVELS = 100;
const NO_DURATION = plain(' '.repeat(DURATION_COLUMNS));
const INDENTS = Array.from({ length: MAX_INDENT_LEVELS + 1 }, (_, depth) => plain('  '.repeat(depth)));

const REMARKS: Readonly<Record<CallEnd, Text>> = {
  [END_RETURNED]: text``,
  [END_UNWOUND]: text`unwound`,
  [END_OPEN]: text`still running at the end of the recording`,
  [END_LOST]: text`its end was lost`,
};

interface GraphLane {
  readonly thread: Text;
  /** Depth of a call that has begun and of which no line is written yet; -1 if there is none. */
  pendingDepth: number;
  pendingFunction: number;
}

export class GraphOutput implements TextOutput {
  readonly #info: TraceInfo;
  readonly #sink: TextSink;
  readonly #colors: Palette;
  readonly #labels: FunctionLabels;
  readonly #lanes = new Map<number, GraphLane>();

  constructor(info: TraceInfo, sink: TextSink, colors: Palette = NO_COLORS) {
    this.#info = info;
    this.#sink = sink;
    this.#colors = colors;
    this.#labels = new FunctionLabels(info);
    sink(text`${marked(colors.bold, text`# DURATION     TID     FUNCTION`)}\n`);
  }

  onEnter(laneId: number, depth: number, functionIndex: number): number {
    const lane = this.#lane(laneId);
    this.#writePending(lane);
    lane.pendingDepth = depth;
    lane.pendingFunction = functionIndex;
    return 0;
  }

  onLeave(
    laneId: number,
    depth: number,
    functionIndex: number,
    startTick: number,
    endTick: number,
    _self: number,
    end: CallEnd,
  ): void {
    const lane = this.#lane(laneId);
    const duration = this.#duration(endTick - startTick);
    const name = this.#labels.of(functionIndex);
    const remark = REMARKS[end];
    if (lane.pendingDepth === depth) {
      lane.pendingDepth = -1;
      const comment = remark === '' ? remark : text` ${this.#comment(remark)}`;
      this.#line(duration, lane, depth, text`${name}();${comment}`);
    } else {
      this.#writePending(lane);
      const comment = this.#comment(remark === '' ? name : text`${name}: ${remark}`);
      this.#line(duration, lane, depth, text`} ${comment}`);
    }
  }

  onLeaf(laneId: number, depth: number, functionIndex: number): number {
    const lane = this.#lane(laneId);
    this.#writePending(lane);
    const remark = this.#info.header.mode === 'calls' ? text` ${this.#comment(text`entry only`)}` : text``;
    this.#line(NO_DURATION, lane, depth, text`${this.#labels.of(functionIndex)}();${remark}`);
    return 0;
  }

  onLost(laneId: number, depth: number, _tick: number, records: number, isNotKept: boolean): void {
    const lane = this.#lane(laneId);
    this.#writePending(lane);
    const why = isNotKept ? text`--keep newest` : text`the ring was full`;
    const remark = text`/* ${plain(formatLost(records, isNotKept))}: ${why} */`;
    this.#line(NO_DURATION, lane, depth, marked(this.#colors.red, remark));
  }

  finish(): void {
    for (const lane of this.#lanes.values()) this.#writePending(lane);
  }

  #lane(id: number): GraphLane {
    let lane = this.#lanes.get(id);
    if (lane === undefined) {
      const { tid, name } = this.#info.threadOf(id);
      const thread = text` [${padStart(text`${tid}`, TID_COLUMNS)}] | `;
      lane = { thread, pendingDepth: -1, pendingFunction: 0 };
      this.#lanes.set(id, lane);
      if (name !== '')
        this.#line(NO_DURATION, lane, 0, this.#comment(text`thread ${plain(name, LONGEST_NAME)}`));
    }
    return lane;
  }

  #writePending(lane: GraphLane): void {
    if (lane.pendingDepth < 0) return;
    const depth = lane.pendingDepth;
    lane.pendingDepth = -1;
    this.#line(NO_DURATION, lane, depth, text`${this.#labels.of(lane.pendingFunction)}() {`);
  }

  #line(duration: Text, lane: GraphLane, depth: number, what: Text): void {
    const indent =
      depth <= MAX_INDENT_LEVELS
        ? INDENTS[depth]
        : text`${INDENTS[MAX_INDENT_LEVELS]}${this.#comment(text`depth ${depth}`)} `;
    this.#sink(text`${duration}${lane.thread}${indent}${what}\n`);
  }

  #duration(ticks: number): Text {
    const ns = this.#info.clock.toNs(ticks);
    const shown = plain(formatDuration(ns));
    if (ns >= NS_PER_S) return marked(this.#colors.red, shown);
    return ns >= NS_PER_MS ? marked(this.#colors.yellow, shown) : shown;
  }

  #comment(what: Text): Text {
    return marked(this.#colors.dim, text`/* ${what} */`);
  }
}
