/**
 * A table of the traced functions: how often each was called and how long its calls took. A field of every function is
 * an element of a typed array, so that a record costs a few additions and no memory.
 *
 * `total` counts the outermost call only where a function calls itself, directly or through others, so no time is
 * counted twice. `avg`, `min` and `max` are over the durations of all calls that ended. A call that was still running,
 * or whose end was lost, counts in `calls`, `total` and `self`, but its length is not known.
 */
import { END_RETURNED, END_UNWOUND } from '../recording/index.js';
import type { CallEnd, FunctionInfo, TraceInfo } from '../recording/index.js';
import { join, marked, padStart, plain, text, type Text } from '../text/index.js';
import { LONGEST_NAME } from './labels.js';
import { formatCount, formatDuration } from './number-format.js';
import { NO_COLORS } from './text-output.js';
import type { Palette, TextOutput, TextSink } from './text-output.js';

export const REPORT_KEYS = ['total', 'self', 'calls', 'avg', 'max'] as const;
export type ReportKey = (typeof REPORT_KEYS)[number];

/** One function's line. Times are nanoseconds; undefined where no call of it has a known duration. */
export interface ReportRow {
  readonly function: FunctionInfo;
  readonly calls: number;
  /** Those of them that an exception or longjmp took away: their durations count, up to when they were seen to be gone. */
  readonly unwound: number;
  /** Those of them of which only the entry is recorded. */
  readonly entryOnly: number;
  readonly total: number | undefined;
  readonly self: number | undefined;
  readonly avg: number | undefined;
  readonly min: number | undefined;
  readonly max: number | undefined;
}

export class Report implements TextOutput {
  readonly #info: TraceInfo;
  readonly #sink: TextSink;
  readonly #sort: ReportKey;
  readonly #colors: Palette;
  /** Functions have the first so many elements; one more is shared by those that no message has told of. */
  #known: number;
  #calls: Float64Array;
  #unwound: Float64Array;
  #leaves: Float64Array;
  #timed: Float64Array;
  #ended: Float64Array;
  #total: Float64Array;
  #self: Float64Array;
  #sum: Float64Array;
  #min: Float64Array;
  #max: Float64Array;
  /** How many calls of each function are open, by lane: an array while there are few of both, else those that are not 0. */
  readonly #open = new Map<number, OpenCounts>();
  #dense = 0;
  #lastLane = -1;
  #lastOpen: OpenCounts = new Int32Array(0);

  constructor(info: TraceInfo, sink: TextSink, sort: ReportKey = 'total', colors: Palette = NO_COLORS) {
    this.#info = info;
    this.#sink = sink;
    this.#sort = sort;
    this.#colors = colors;
    this.#known = info.functions.length;
    const size = this.#known + 1;
    this.#calls = new Float64Array(size);
    this.#unwound = new Float64Array(size);
    this.#leaves = new Float64Array(size);
    this.#timed = new Float64Array(size);
    this.#ended = new Float64Array(size);
    this.#total = new Float64Array(size);
    this.#self = new Float64Array(size);
    this.#sum = new Float64Array(size);
    this.#min = new Float64Array(size).fill(Number.POSITIVE_INFINITY);
    this.#max = new Float64Array(size);
  }

  onEnter(lane: number, _depth: number, functionIndex: number): number {
    const row = this.#row(functionIndex);
    if (lane !== this.#lastLane) this.#toLane(lane);
    this.#calls[row]++;
    change(this.#lastOpen, row, 1);
    return 0;
  }

  onLeave(
    lane: number,
    _depth: number,
    functionIndex: number,
    startTick: number,
    endTick: number,
    self: number,
    end: CallEnd,
  ): void {
    const row = this.#row(functionIndex);
    if (lane !== this.#lastLane) this.#toLane(lane);
    const duration = endTick - startTick;
    this.#timed[row]++;
    this.#self[row] += self;
    if (change(this.#lastOpen, row, -1) === 0) this.#total[row] += duration;
    if (end !== END_RETURNED && end !== END_UNWOUND) return;
    this.#ended[row]++;
    if (end === END_UNWOUND) this.#unwound[row]++;
    this.#sum[row] += duration;
    if (duration < this.#min[row]) this.#min[row] = duration;
    if (duration > this.#max[row]) this.#max[row] = duration;
  }

  onLeaf(_lane: number, _depth: number, functionIndex: number): number {
    const row = this.#row(functionIndex);
    this.#calls[row]++;
    this.#leaves[row]++;
    return 0;
  }

  onLost(): void {
    // The command tells how many were lost: they belong to no function.
  }

  /** The functions that were called, sorted. */
  rows(): ReportRow[] {
    const rows: ReportRow[] = [];
    for (let row = 0; row <= this.#known; row++) {
      if (this.#calls[row] === 0) continue;
      const ns = (ticks: number): number => this.#info.clock.toNs(ticks);
      const isTimed = this.#timed[row] > 0;
      const hasEnded = this.#ended[row] > 0;
      rows.push({
        function: row < this.#known ? this.#info.functionAt(row) : UNKNOWN,
        calls: this.#calls[row],
        unwound: this.#unwound[row],
        entryOnly: this.#leaves[row],
        total: isTimed ? ns(this.#total[row]) : undefined,
        self: isTimed ? ns(this.#self[row]) : undefined,
        avg: hasEnded ? ns(this.#sum[row] / this.#ended[row]) : undefined,
        min: hasEnded ? ns(this.#min[row]) : undefined,
        max: hasEnded ? ns(this.#max[row]) : undefined,
      });
    }
    const key = this.#sort;
    return rows.sort(
      (a, b) =>
        (b[key] ?? -1) - (a[key] ?? -1) ||
        b.calls - a.calls ||
        (a.function.name < b.function.name ? -1 : a.function.name > b.function.name ? 1 : 0),
    );
  }

  finish(): void {
    const heads = ['Total', 'Self', 'Calls', 'Avg', 'Min', 'Max'].map((head) => head.padStart(COLUMNS));
    this.#sink(text`${marked(this.#colors.bold, plain(`${heads.join('  ')}  Function`))}\n`);
    for (const row of this.rows()) {
      const cells = [
        cell(row.total),
        cell(row.self),
        padStart(plain(formatCount(row.calls)), COLUMNS),
        cell(row.avg),
        cell(row.min),
        cell(row.max),
      ];
      const remarks = [
        ...(row.unwound > 0 ? [`${formatCount(row.unwound)} unwound`] : []),
        ...(row.entryOnly > 0 && this.#info.header.mode === 'calls' ? ['entry only'] : []),
      ];
      const remark = plain(remarks.length === 0 ? '' : `  /* ${remarks.join(', ')} */`);
      this.#sink(text`${join(cells, GAP)}  ${plain(row.function.name, LONGEST_NAME)}${remark}\n`);
    }
  }

  #row(functionIndex: number): number {
    if (functionIndex < this.#known) return functionIndex;
    if (this.#known < this.#info.functions.length) this.#grow();
    return Math.min(functionIndex, this.#known);
  }

  /** Live, functions are added while calls are counted; those called before they were told of stay unknown. */
  #grow(): void {
    this.#dense = 0;
    const from = this.#known;
    const size = this.#info.functions.length + 1;
    const grown = (old: Float64Array, initial: number): Float64Array => {
      const array = new Float64Array(size).fill(initial);
      array.set(old.subarray(0, from));
      array[size - 1] = old[from];
      return array;
    };
    this.#known = size - 1;
    this.#calls = grown(this.#calls, 0);
    this.#unwound = grown(this.#unwound, 0);
    this.#leaves = grown(this.#leaves, 0);
    this.#timed = grown(this.#timed, 0);
    this.#ended = grown(this.#ended, 0);
    this.#total = grown(this.#total, 0);
    this.#self = grown(this.#self, 0);
    this.#sum = grown(this.#sum, 0);
    this.#min = grown(this.#min, Number.POSITIVE_INFINITY);
    this.#max = grown(this.#max, 0);
    for (const [lane, old] of this.#open) {
      const open = this.#newCounts();
      const move = (count: number, row: number): void => {
        if (count !== 0) change(open, row === from ? size - 1 : row, count);
      };
      old.forEach(move);
      this.#open.set(lane, open);
    }
    this.#lastLane = -1;
  }

  #newCounts(): OpenCounts {
    const size = this.#known + 1;
    if (this.#dense + size > MOST_DENSE) return new Map<number, number>();
    this.#dense += size;
    return new Int32Array(size);
  }

  #toLane(lane: number): void {
    let open = this.#open.get(lane);
    if (open === undefined) {
      open = this.#newCounts();
      this.#open.set(lane, open);
    }
    this.#lastLane = lane;
    this.#lastOpen = open;
  }
}

type OpenCounts = Int32Array | Map<number, number>;

/** Elements of all arrays together. Threads times functions may be more than there is memory. */
const MOST_DENSE = 1 << 24;

function change(counts: OpenCounts, row: number, by: number): number {
  if (counts instanceof Int32Array) return (counts[row] += by);
  const count = (counts.get(row) ?? 0) + by;
  if (count === 0) counts.delete(row);
  else counts.set(row, count);
  return count;
}

const UNKNOWN: FunctionInfo = {
  index: -1,
  name: '(unknown function)',
  symbol: '',
  module: '',
  address: 0n,
};

/** As wide as a duration and as ten digits with their commas would seldom need. */
const COLUMNS = 10;
const GAP = text`  `;

function cell(ns: number | undefined): Text {
  return ns === undefined ? padStart(text`-`, COLUMNS) : plain(formatDuration(ns));
}
