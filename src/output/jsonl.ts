/**
 * JSON lines: an object for each call, written when the call ends, so calls inside it stand before it.
 *
 *     id           of the call; counts from 1 in the order in which calls begin
 *     parent       id of the traced call around it, or null
 *     function     name, demangled where it can be
 *     module       path of its executable or library
 *     tid, thread  of the thread it ran in
 *     depth        how many traced calls were open around it
 *     start_ns     since the start of the trace
 *     duration_ns  null if only the entry was recorded
 *     self_ns      the part of it outside traced calls inside it; null as duration_ns
 *     end          "returned", "unwound", "open", "lost" or "entry-only"
 *
 * Where records were lost stands an object with `lost` (how many), `tid`, `thread`, `depth` and `at_ns` instead, or with `not_kept`.
 */
import { endingOf } from '../recording/index.js';
import type { CallEnd, TraceInfo } from '../recording/index.js';
import { json, text, type Text } from '../text/index.js';
import type { TextOutput, TextSink } from './text-output.js';

const NULL = text`null`;

export class JsonLinesOutput implements TextOutput {
  readonly #info: TraceInfo;
  readonly #sink: TextSink;
  #calls = 0;
  readonly #functions = new Map<number, Text>();
  readonly #threads = new Map<number, Text>();

  constructor(info: TraceInfo, sink: TextSink) {
    this.#info = info;
    this.#sink = sink;
  }

  onEnter(): number {
    return ++this.#calls;
  }

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
  ): void {
    const start = this.#ns(startTick);
    const duration = this.#ns(endTick) - start;
    const selfNs = Math.min(this.#ns(self), duration);
    const parent = parentTag > 0 ? parentTag : NULL;
    this.#sink(
      text`{"id":${tag},"parent":${parent},${this.#function(functionIndex)},${this.#thread(lane)},"depth":${depth},"start_ns":${start},"duration_ns":${duration},"self_ns":${selfNs},"end":${json(endingOf(end))}}\n`,
    );
  }

  onLeaf(lane: number, depth: number, functionIndex: number, tick: number, parentTag: number): number {
    this.#calls++;
    this.#sink(
      text`{"id":${this.#calls},"parent":${parentTag > 0 ? parentTag : NULL},${this.#function(functionIndex)},${this.#thread(lane)},"depth":${depth},"start_ns":${this.#ns(tick)},"duration_ns":null,"self_ns":null,"end":"entry-only"}\n`,
    );
    return this.#calls;
  }

  onLost(lane: number, depth: number, tick: number, records: number, isNotKept: boolean): void {
    this.#sink(
      text`{${isNotKept ? text`"not_kept"` : text`"lost"`}:${records},${this.#thread(lane)},"depth":${depth},"at_ns":${Math.max(0, this.#ns(tick))}}\n`,
    );
  }

  finish(): void {
    // Every line is complete in itself.
  }

  #function(index: number): Text {
    let fields = this.#functions.get(index);
    if (fields === undefined) {
      const { name, module } = this.#info.functionAt(index);
      fields = text`"function":${json(name)},"module":${json(module)}`;
      // An index that no message told of could be any of 2^28.
      if (index < this.#info.functions.length) this.#functions.set(index, fields);
    }
    return fields;
  }

  #thread(lane: number): Text {
    let fields = this.#threads.get(lane);
    if (fields === undefined) {
      const { tid, name } = this.#info.threadOf(lane);
      fields = text`"tid":${tid},"thread":${json(name)}`;
      this.#threads.set(lane, fields);
    }
    return fields;
  }

  #ns(ticks: number): number {
    return Math.round(this.#info.clock.toNs(ticks));
  }
}
