/**
 * Folded stacks, the input of flamegraph.pl and of speedscope: a line for each distinct stack of functions, the thread
 * first, `;` between them, then a space and the nanoseconds spent in its last function itself. Of a recording in
 * entries mode, which has no times, the number is how often the stack was entered.
 *
 * A stack repeats the names of all that is around a call, so the lines of a deep recursion grow with the square of its depth. The output is
 * bounded by the calls seen (`FIXED_CHARACTERS`, `CHARACTERS_PER_CALL`): where all stacks have no room, those deeper than some depth, the largest
 * that has, are added up in one frame, `(deeper)`.
 */
import type { TraceInfo } from '../recording/index.js';
import { escape, join, plain, text, type Text } from '../text/index.js';
import { LONGEST_NAME } from './labels.js';
import type { TextOutput, TextSink } from './text-output.js';

/** A node's key among its siblings' is parent * 2^28 + function: function indices have 28 bits. */
const FUNCTION_INDICES = 2 ** 28;
/** Nobody looks at more distinct stacks; V8's maps hold 2^24. */
const MAX_NODES = 1 << 22;
const FIXED_CHARACTERS = 16 << 20;
/** Many times what a stack has in ordinary programs. */
const CHARACTERS_PER_CALL = 256;
/** A count, and what is around it. */
const NUMBER_CHARACTERS = 20;

const DEEPER = text`(deeper)`;
const SEPARATOR = text`;`;

export class FoldedOutput implements TextOutput {
  readonly #info: TraceInfo;
  readonly #sink: TextSink;
  /** The tree of stacks. */
  readonly #children = new Map<number, number>();
  readonly #parents: number[] = [];
  readonly #depths: number[] = [];
  /** Index of the node's function; of a root, which stands for a thread, the lane. */
  readonly #whats: number[] = [];
  readonly #weights: number[] = [];
  /** What calls below a node add up to that have no nodes of their own. */
  readonly #deeper = new Map<number, number>();
  readonly #roots = new Map<number, number>();
  readonly #labels = new Map<number, Text>();
  #calls = 0;

  constructor(info: TraceInfo, sink: TextSink) {
    this.#info = info;
    this.#sink = sink;
  }

  onEnter(lane: number, _depth: number, functionIndex: number, _tick: number, parentTag: number): number {
    return this.#tag(lane, functionIndex, parentTag);
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
    this.#add(tag, self);
  }

  onLeaf(lane: number, _depth: number, functionIndex: number, _tick: number, parentTag: number): number {
    const tag = this.#tag(lane, functionIndex, parentTag);
    if (this.#info.header.mode === 'entries') this.#add(tag, 1);
    return tag;
  }

  onLost(): void {
    // A stack has no place for it; the command tells how many were lost.
  }

  finish(): void {
    const deepest = this.#deepest();
    for (let node = this.#parents.length - 1; node >= 0; node--) {
      // Children stand behind their parents: all that is too deep gets to the deepest that is not.
      if (this.#depths[node] <= deepest) continue;
      const parent = this.#parents[node];
      this.#addDeeper(parent, this.#weights[node] + (this.#deeper.get(node) ?? 0));
      this.#deeper.delete(node);
    }
    for (let node = 0; node < this.#parents.length; node++) {
      if (this.#depths[node] > deepest) continue;
      this.#line(node, [], this.#weights[node]);
      this.#line(node, [DEEPER], this.#deeper.get(node) ?? 0);
    }
  }

  #line(node: number, below: readonly Text[], weight: number): void {
    const isCount = this.#info.header.mode === 'entries';
    const told = isCount ? weight : Math.round(this.#info.clock.toNs(weight));
    if (told <= 0) return;
    const labels = [...below];
    for (let at = node; at >= 0; at = this.#parents[at]) labels.push(this.#label(at));
    this.#sink(text`${join(labels.reverse(), SEPARATOR)} ${told}\n`);
  }

  /** The largest depth for which all lines have room. */
  #deepest(): number {
    const room = FIXED_CHARACTERS + CHARACTERS_PER_CALL * this.#calls;
    const lengths = new Float64Array(this.#parents.length);
    const byDepth: number[] = [];
    for (let node = 0; node < lengths.length; node++) {
      const parent = this.#parents[node];
      const depth = this.#depths[node];
      lengths[node] = (parent < 0 ? 0 : lengths[parent] + 1) + this.#label(node).length;
      byDepth[depth] = (byDepth[depth] ?? 0) + lengths[node] + NUMBER_CHARACTERS;
    }
    let written = 0;
    for (let depth = 0; depth < byDepth.length; depth++) {
      written += byDepth[depth];
      // Each stack of this depth may have a second line, for what is deeper.
      if (depth > 0 && written + byDepth[depth] > room) return depth - 1;
    }
    return byDepth.length;
  }

  /** A call's tag says where its time goes: 2 * node + 1, one more for what is below that node; tag 0 is no call. */
  #tag(lane: number, functionIndex: number, parentTag: number): number {
    this.#calls++;
    if (parentTag > 0 && parentTag % 2 === 0) return parentTag;
    const parent = parentTag > 0 ? (parentTag - 1) / 2 : this.#root(lane);
    const key = parent * FUNCTION_INDICES + functionIndex;
    let node = this.#children.get(key);
    if (node === undefined) {
      if (this.#parents.length >= MAX_NODES) return 2 * parent + 2;
      node = this.#node(parent, this.#depths[parent] + 1, functionIndex);
      this.#children.set(key, node);
    }
    return 2 * node + 1;
  }

  #add(tag: number, weight: number): void {
    if (tag % 2 === 0) this.#addDeeper(tag / 2 - 1, weight);
    else this.#weights[(tag - 1) / 2] += weight;
  }

  #addDeeper(node: number, weight: number): void {
    this.#deeper.set(node, (this.#deeper.get(node) ?? 0) + weight);
  }

  #root(lane: number): number {
    let root = this.#roots.get(lane);
    if (root === undefined) {
      root = this.#node(-1, 0, lane);
      this.#roots.set(lane, root);
    }
    return root;
  }

  #node(parent: number, depth: number, what: number): number {
    this.#parents.push(parent);
    this.#depths.push(depth);
    this.#whats.push(what);
    this.#weights.push(0);
    return this.#weights.length - 1;
  }

  #label(node: number): Text {
    const what = this.#whats[node];
    if (this.#parents[node] < 0) {
      const { tid, name } = this.#info.threadOf(what);
      return frame(name === '' ? String(tid) : `${name} (${tid})`);
    }
    let label = this.#labels.get(what);
    if (label === undefined) {
      label = frame(this.#info.functionAt(what).name);
      this.#labels.set(what, label);
    }
    return label;
  }
}

/** What a reader would take for the end of the stack, or for a second number: flamegraph.pl splits at blanks, from the right. */
const LOOSE_BLANK = /^\s|\s(?=\d+(?:\.\d*)?$)|\s$/g;

/** A name as one frame of a line. */
function frame(name: string): Text {
  if (name === '') return text`?`;
  return plain(plain(name, LONGEST_NAME).replaceAll(';', ':').replace(LOOSE_BLANK, escape));
}
