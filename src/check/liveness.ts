/**
 * Waits that never end although everybody else gets on: a search for fair cycles.
 *
 * For each CPU, the states in which its running context waits and what it waits for is not so. A strongly connected part
 * of these is a livelock if it is fair to everybody else: each CPU's running context, and each store buffer, either
 * makes a step in it or is somewhere in it unable to. (Weak fairness for all others. The wait itself gets more: it fails
 * only if what it waits for is never so, not merely never so when it looks.) NMIs need not arrive; that they may for
 * ever is what makes a storm.
 */
import { IntList } from './int-list.js';
import type { Search } from './search.js';
import { META_ACTION, META_CPU } from './transitions.js';

export interface Lasso {
  readonly cpu: number;
  /** States from the first of all to the first of the cycle. */
  readonly prefix: readonly number[];
  /** The cycle: from that state, which is not repeated here, back to it, which is. */
  readonly cycle: readonly number[];
}

interface Graph {
  /** Edges of state i stand at `first[i]` to `first[i + 1]`. */
  readonly first: Int32Array;
  readonly target: IntList;
  /** Who moves: bit of a CPU's context or store buffer, or 0 for an NMI that arrives. */
  readonly mover: IntList;
  /** Who is able to move, as a mask of these bits. */
  readonly able: Int32Array;
  /** CPUs that are in the midst of something and cannot move. */
  readonly waiting: Int32Array;
}

const NONE = -1;

/** The shortest fair lasso with the earliest start, if there is one. The search must be complete and without symmetry. */
export function findLasso(search: Search): Lasso | undefined {
  const cpus = search.transitions.program.machine.cpus;
  const graph = buildGraph(search);
  for (let cpu = 0; cpu < cpus; cpu++) {
    const inside = (state: number): boolean => (graph.waiting[state] & (1 << cpu)) !== 0;
    const components = stronglyConnected(graph, inside);
    // The waiting context itself, and its store buffer if that is empty throughout, are never able: nothing to ask.
    const everyone = (1 << (2 * cpus)) - 1;
    let best: { start: number; component: Set<number> } | undefined;
    for (const component of components) {
      if (!isFair(graph, component, everyone)) continue;
      const start = Math.min(...component.slice(0, 10_000));
      if (best === undefined || start < best.start) best = { start, component: new Set(component) };
    }
    if (best !== undefined) {
      const cycle = fairCycle(graph, best.start, best.component, everyone);
      return { cpu, prefix: search.path(best.start), cycle };
    }
  }
  return undefined;
}

function contextBit(cpu: number): number {
  return 1 << (2 * cpu);
}

function bufferBit(cpu: number): number {
  return 2 << (2 * cpu);
}

function buildGraph(search: Search): Graph {
  const { transitions, store } = search;
  const { out, pitch, width } = transitions;
  const cpus = transitions.program.machine.cpus;
  const count = store.count;
  const first = new Int32Array(count + 1);
  const target = new IntList();
  const mover = new IntList();
  const able = new Int32Array(count);
  const waiting = new Int32Array(count);
  const state = new Int32Array(width);
  for (let number = 0; number < count; number++) {
    first[number] = target.length;
    store.read(number, state);
    const produced = transitions.expand(state, search.symmetry);
    for (let s = 0; s < produced; s++) {
      const offset = s * pitch;
      const cpu = out[offset + width + META_CPU];
      const action = transitions.action(out[offset + width + META_ACTION]);
      let bit = action.kind === 'flush' ? bufferBit(cpu) : contextBit(cpu);
      if (action.arrives) bit = 0;
      able[number] |= bit;
      target.push(-1 - store.insert(out, offset));
      mover.push(bit);
    }
    for (let c = 0; c < cpus; c++)
      if ((able[number] & contextBit(c)) === 0 && transitions.isBusy(state, c)) waiting[number] |= 1 << c;
  }
  first[count] = target.length;
  return { first, target, mover, able, waiting };
}

/** Tarjan's algorithm without recursion; components of a single state are left out: steps always change something. */
function stronglyConnected(graph: Graph, inside: (state: number) => boolean): number[][] {
  const count = graph.able.length;
  const order = new Int32Array(count).fill(NONE);
  const low = new Int32Array(count);
  const onStack = new Uint8Array(count);
  const edgeOf = new Int32Array(count);
  const stack: number[] = [];
  const components: number[][] = [];
  let clock = 0;
  for (let root = 0; root < count; root++) {
    if (order[root] !== NONE || !inside(root)) continue;
    const calls = [root];
    while (calls.length > 0) {
      const v = calls[calls.length - 1];
      if (order[v] === NONE) {
        order[v] = low[v] = clock++;
        onStack[v] = 1;
        stack.push(v);
        edgeOf[v] = graph.first[v];
      }
      let descended = false;
      while (edgeOf[v] < graph.first[v + 1]) {
        const w = graph.target.items[edgeOf[v]++];
        if (!inside(w)) continue;
        if (order[w] === NONE) {
          calls.push(w);
          descended = true;
          break;
        }
        if (onStack[w] !== 0) low[v] = Math.min(low[v], order[w]);
      }
      if (descended) continue;
      calls.pop();
      const parent = calls.at(-1);
      if (parent !== undefined) low[parent] = Math.min(low[parent], low[v]);
      if (low[v] === order[v]) {
        const component: number[] = [];
        for (;;) {
          const w = stack.pop();
          if (w === undefined) break;
          onStack[w] = 0;
          component.push(w);
          if (w === v) break;
        }
        if (component.length > 1) components.push(component);
      }
    }
  }
  return components;
}

function isFair(graph: Graph, component: readonly number[], everyone: number): boolean {
  const members = new Set(component);
  let satisfied = 0;
  for (const v of component) {
    satisfied |= everyone & ~graph.able[v];
    for (let e = graph.first[v]; e < graph.first[v + 1]; e++)
      if (members.has(graph.target.items[e])) satisfied |= graph.mover.items[e];
  }
  return satisfied === everyone;
}

/** The shortest cycle through `start` in which everyone moves or is once unable to: breadth-first, with a mask of whom. */
function fairCycle(graph: Graph, start: number, component: ReadonlySet<number>, everyone: number): number[] {
  interface Node {
    readonly state: number;
    readonly mask: number;
    readonly from: Node | undefined;
  }
  const root: Node = { state: start, mask: everyone & ~graph.able[start], from: undefined };
  const seen = new Set([`${root.state}/${root.mask}`]);
  const queue = [root];
  for (const node of queue) {
    for (let e = graph.first[node.state]; e < graph.first[node.state + 1]; e++) {
      const w = graph.target.items[e];
      if (!component.has(w)) continue;
      const mask = node.mask | graph.mover.items[e] | (everyone & ~graph.able[w]);
      const reached: Node = { state: w, mask, from: node };
      if (w === start && mask === everyone) {
        const cycle: number[] = [];
        for (let at = reached; at.from !== undefined; at = at.from) cycle.push(at.state);
        return cycle.reverse();
      }
      const key = `${w}/${mask}`;
      if (seen.has(key)) continue;
      seen.add(key);
      queue.push(reached);
    }
  }
  throw new Error('a fair component has a fair cycle through each of its states');
}
