/**
 * The Trace Event Format of Chrome, in its JSON object form, as chrome://tracing and ui.perfetto.dev read it
 * ("Trace Event Format", Google, 2016). A call is one complete event ("X") with `ts` and `dur` in microseconds, three
 * decimals; an entry without exit, and lost records, are instant events ("i"); names of the process and its threads are
 * metadata events ("M"). Not used: flow, async, counter and sample events.
 */
import { END_RETURNED, endingOf } from '../recording/index.js';
import type { CallEnd, TraceInfo } from '../recording/index.js';
import { json, plain, text, type Text } from '../text/index.js';
import { formatLost, microseconds } from './number-format.js';
import type { TextOutput, TextSink } from './text-output.js';

/** The kernel's PID_MAX_LIMIT: a second thread with the same id is shown under an id beyond all real ones. */
const PID_MAX_LIMIT = 1 << 22;
const NOTHING = text``;

export class ChromeOutput implements TextOutput {
  readonly #info: TraceInfo;
  readonly #sink: TextSink;
  /** `"pid":1,"tid":2` by lane. */
  readonly #threads = new Map<number, Text>();
  /** JSON strings by function index. */
  readonly #names: Text[] = [];

  constructor(info: TraceInfo, sink: TextSink) {
    this.#info = info;
    this.#sink = sink;
    // A title that a program has put in the place of its arguments ends in blanks.
    const name = json(info.header.command.join(' ').trimEnd());
    sink(
      text`{"displayTimeUnit":"ns","traceEvents":[\n{"ph":"M","name":"process_name","pid":${info.header.pid},"args":{"name":${name}}}`,
    );
  }

  onEnter(): number {
    return 0;
  }

  onLeave(
    lane: number,
    _depth: number,
    functionIndex: number,
    startTick: number,
    endTick: number,
    _self: number,
    end: CallEnd,
  ): void {
    const start = this.#ns(startTick);
    const duration = this.#ns(endTick) - start;
    const args = end === END_RETURNED ? NOTHING : text`,"args":{"end":${json(endingOf(end))}}`;
    this.#event(
      text`{"ph":"X","name":${this.#name(functionIndex)},${this.#thread(lane)},"ts":${plain(microseconds(start))},"dur":${plain(microseconds(duration))}${args}}`,
    );
  }

  onLeaf(lane: number, _depth: number, functionIndex: number, tick: number): number {
    this.#instant(this.#name(functionIndex), lane, tick);
    return 0;
  }

  onLost(lane: number, _depth: number, tick: number, records: number, isNotKept: boolean): void {
    this.#instant(json(formatLost(records, isNotKept)), lane, tick);
  }

  finish(): void {
    this.#sink(text`\n]}\n`);
  }

  #instant(name: Text, lane: number, tick: number): void {
    this.#event(
      text`{"ph":"i","s":"t","name":${name},${this.#thread(lane)},"ts":${plain(microseconds(this.#ns(tick)))}}`,
    );
  }

  #event(event: Text): void {
    this.#sink(text`,\n${event}`);
  }

  #name(functionIndex: number): Text {
    let name = this.#names.at(functionIndex);
    if (name === undefined) {
      name = json(this.#info.functionAt(functionIndex).name);
      // An index that no message told of may be so large that an array would fill memory.
      if (functionIndex < this.#info.functions.length) this.#names[functionIndex] = name;
    }
    return name;
  }

  #thread(lane: number): Text {
    let fields = this.#threads.get(lane);
    if (fields === undefined) {
      const thread = this.#info.threadOf(lane);
      const tid = thread.tid + thread.reuse * PID_MAX_LIMIT;
      const name = thread.reuse === 0 ? thread.name : `${thread.name} (${thread.tid} again)`;
      fields = text`"pid":${this.#info.header.pid},"tid":${tid}`;
      this.#threads.set(lane, fields);
      this.#event(text`{"ph":"M","name":"thread_name",${fields},"args":{"name":${json(name)}}}`);
    }
    return fields;
  }

  #ns(ticks: number): number {
    return Math.max(0, Math.round(this.#info.clock.toNs(ticks)));
  }
}
