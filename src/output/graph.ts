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
import { DURATION_COLUMNS, formatDuration, formatLost } from './number-format.js';
import { NO_COLORS } from './text-output.js';
import type { Palette, TextOutput, TextSink } from './text-output.js';

const TID_COLUMNS = 6;
const NS_PER_MS = 1e6;
const NS_PER_S = 1e9;
/** Runaway recursion would make lines so long that the output grows with the square of its depth. */
const MAX_INDENT_LEVELS = 100;
const NO_DURATION = ' '.repeat(DURATION_COLUMNS);

const REMARKS: Readonly<Record<CallEnd, string>> = {
  [END_RETURNED]: '',
  [END_UNWOUND]: 'unwound',
  [END_OPEN]: 'still running at the end of the recording',
  [END_LOST]: 'its end was lost',
};

interface GraphLane {
  readonly thread: string;
  /** Depth of a call that has begun and of which no line is written yet; -1 if there is none. */
  pendingDepth: number;
  pendingFunction: number;
}

export class GraphOutput implements TextOutput {
  readonly #info: TraceInfo;
  readonly #sink: TextSink;
  readonly #colors: Palette;
  readonly #lanes = new Map<number, GraphLane>();

  constructor(info: TraceInfo, sink: TextSink, colors: Palette = NO_COLORS) {
    this.#info = info;
    this.#sink = sink;
    this.#colors = colors;
    sink(`${colors.bold('# DURATION     TID     FUNCTION')}\n`);
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
    const { name } = this.#info.functionAt(functionIndex);
    const remark = REMARKS[end];
    if (lane.pendingDepth === depth) {
      lane.pendingDepth = -1;
      const comment = remark === '' ? '' : ` ${this.#comment(remark)}`;
      this.#line(duration, lane, depth, `${name}();${comment}`);
    } else {
      this.#writePending(lane);
      const comment = this.#comment(remark === '' ? name : `${name}: ${remark}`);
      this.#line(duration, lane, depth, `} ${comment}`);
    }
  }

  onLeaf(laneId: number, depth: number, functionIndex: number): number {
    const lane = this.#lane(laneId);
    this.#writePending(lane);
    const remark = this.#info.header.mode === 'calls' ? ` ${this.#comment('entry only')}` : '';
    this.#line(NO_DURATION, lane, depth, `${this.#info.functionAt(functionIndex).name}();${remark}`);
    return 0;
  }

  onLost(laneId: number, depth: number, _tick: number, records: number, isNotKept: boolean): void {
    const lane = this.#lane(laneId);
    this.#writePending(lane);
    const text = `/* ${formatLost(records, isNotKept)}: ${isNotKept ? '--keep newest' : 'the ring was full'} */`;
    this.#line(NO_DURATION, lane, depth, this.#colors.red(text));
  }

  finish(): void {
    for (const lane of this.#lanes.values()) this.#writePending(lane);
  }

  #lane(id: number): GraphLane {
    let lane = this.#lanes.get(id);
    if (lane === undefined) {
      const { tid, name } = this.#info.threadOf(id);
      lane = { thread: ` [${String(tid).padStart(TID_COLUMNS)}] | `, pendingDepth: -1, pendingFunction: 0 };
      this.#lanes.set(id, lane);
      if (name !== '') this.#line(NO_DURATION, lane, 0, this.#comment(`thread ${name}`));
    }
    return lane;
  }

  #writePending(lane: GraphLane): void {
    if (lane.pendingDepth < 0) return;
    const depth = lane.pendingDepth;
    lane.pendingDepth = -1;
    this.#line(NO_DURATION, lane, depth, `${this.#info.functionAt(lane.pendingFunction).name}() {`);
  }

  #line(duration: string, lane: GraphLane, depth: number, text: string): void {
    const indent =
      depth <= MAX_INDENT_LEVELS
        ? '  '.repeat(depth)
        : `${'  '.repeat(MAX_INDENT_LEVELS)}${this.#comment(`depth ${depth}`)} `;
    this.#sink(`${duration}${lane.thread}${indent}${text}\n`);
  }

  #duration(ticks: number): string {
    const ns = this.#info.clock.toNs(ticks);
    const text = formatDuration(ns);
    if (ns >= NS_PER_S) return this.#colors.red(text);
    return ns >= NS_PER_MS ? this.#colors.yellow(text) : text;
  }

  #comment(text: string): string {
    return this.#colors.dim(`/* ${text} */`);
  }
}
