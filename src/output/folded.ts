/**
 * Folded stacks, the input of flamegraph.pl and of speedscope: a line for each distinct stack of functions, the thread
 * first, `;` between them, then a space and the nanoseconds spent in its last function itself. Of a recording in
 * entries mode, which has no times, the number is how often the stack was entered.
 */
import type { TraceInfo } from '../recording/index.js';
import type { TextOutput, TextSink } from './text-output.js';

/** A node's key among its siblings' is parent * 2^28 + function: function indices have 28 bits. */
const FUNCTION_INDICES = 2 ** 28;

export class FoldedOutput implements TextOutput {
  readonly #info: TraceInfo;
  readonly #sink: TextSink;
  /** The tree of stacks. A call's tag is its node plus one: tag 0 is no call. */
  readonly #children = new Map<number, number>();
  readonly #parents: number[] = [];
  readonly #labels: string[] = [];
  readonly #weights: number[] = [];
  readonly #roots = new Map<number, number>();

  constructor(info: TraceInfo, sink: TextSink) {
    this.#info = info;
    this.#sink = sink;
  }

  onEnter(lane: number, _depth: number, functionIndex: number, _tick: number, parentTag: number): number {
    return this.#node(lane, functionIndex, parentTag) + 1;
  }

  onLeave(
    _lane: number,
    _depth: number,
    _functionIndex: number,
    _startTick: number,
    _endTick: number,
    self: number,
    _end: number,
    tag: number,
  ): void {
    this.#weights[tag - 1] += self;
  }

  onLeaf(lane: number, _depth: number, functionIndex: number, _tick: number, parentTag: number): number {
    const node = this.#node(lane, functionIndex, parentTag);
    if (this.#info.header.mode === 'entries') this.#weights[node]++;
    return node + 1;
  }

  onLost(): void {
    // A stack has no place for it; the command tells how many were lost.
  }

  finish(): void {
    const isCount = this.#info.header.mode === 'entries';
    for (let node = 0; node < this.#weights.length; node++) {
      const weight = isCount ? this.#weights[node] : Math.round(this.#info.clock.toNs(this.#weights[node]));
      if (weight > 0) this.#sink(`${this.#stack(node)} ${weight}\n`);
    }
  }

  #stack(node: number): string {
    const labels: string[] = [];
    for (let at = node; at >= 0; at = this.#parents[at]) labels.push(this.#labels[at]);
    return labels.reverse().join(';');
  }

  #node(lane: number, functionIndex: number, parentTag: number): number {
    const parent = parentTag > 0 ? parentTag - 1 : this.#root(lane);
    const key = parent * FUNCTION_INDICES + functionIndex;
    let node = this.#children.get(key);
    if (node === undefined) {
      node = this.#add(parent, this.#info.functionAt(functionIndex).name);
      this.#children.set(key, node);
    }
    return node;
  }

  #root(lane: number): number {
    let root = this.#roots.get(lane);
    if (root === undefined) {
      const { tid, name } = this.#info.threadOf(lane);
      root = this.#add(-1, name === '' ? String(tid) : `${name} (${tid})`);
      this.#roots.set(lane, root);
    }
    return root;
  }

  #add(parent: number, label: string): number {
    this.#parents.push(parent);
    this.#labels.push(label.replace(/;/g, ':').replace(/\n/g, ' '));
    this.#weights.push(0);
    return this.#weights.length - 1;
  }
}
