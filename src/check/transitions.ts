/**
 * The transitions of the whole machine, fast. What is private to one CPU is interned: a state of the machine is the
 * bytes of shared memory and one number per CPU. Since a step of a CPU depends on its private state and one cell alone,
 * its outcome is computed once for each value of that cell and then looked up.
 */
import type { Action, Cpu, Pending, Program, Violation } from '../model/index.js';
import { CpuSemantics, HEAD } from '../model/index.js';
import { IntList } from './int-list.js';

/** Outcomes that are no CPU state. Violations are `VIOLATION - index`. */
const UNKNOWN = -1;
const IMPOSSIBLE = -2;
const VIOLATION = -3;

/** Values that are remembered for each action; a cell takes few of the 256. */
const INITIAL_STRIDE = 16;
const CELLS_PER_WORD = 4;
const NOTHING = -1;
/** A CPU mask, or the executed site with the fetched piece, per CPU state. */
const NOT_EXECUTING = -1;
const OWN_SHIFT = 1;
const SITE_SHIFT = 3;

/** Behind each successor's words: which CPU, which action, its violation (or -1), its cost. */
export const META_CPU = 0;
export const META_ACTION = 1;
export const META_VIOLATION = 2;
export const META_COST = 3;
const META_WORDS = 4;
const MAX_SUCCESSORS = 256;

export class Transitions {
  readonly semantics: CpuSemantics;
  /** Words of a state: shared memory, then a number per CPU. */
  readonly width: number;
  readonly cellWords: number;
  /** Distance between two successors in `out`. */
  readonly pitch: number;
  readonly out: Int32Array;
  readonly violations: Violation[] = [];

  readonly #cpus: Cpu[] = [];
  readonly #numbers = new Map<string, number>();
  readonly #actions: Action[] = [];
  readonly #firstAction = new IntList();
  readonly #actionCount = new IntList();
  readonly #quiet = new IntList();
  readonly #inNmi = new IntList();
  readonly #executing = new IntList();
  readonly #syncing = new IntList();
  readonly #actionCell = new IntList();
  readonly #actionFlags = new IntList();
  readonly #acknowledged = new Map<number, number>();
  /** By action and value: the CPU's new state, and what was written. */
  readonly #next = new IntList(UNKNOWN);
  readonly #written = new IntList(NOTHING);
  /** A dense number for every value that some cell took. */
  readonly #valueIndex = new Int32Array(256).fill(NOTHING);
  #values = 0;
  #stride = INITIAL_STRIDE;
  readonly #current: Int32Array;
  readonly #cells: Uint8Array;
  readonly #textCell: Int32Array;
  readonly #finalText: Uint8Array;
  readonly #cpuCount: number;
  readonly #breakpoint: number;
  readonly #neverOverlap: boolean;

  constructor(
    readonly program: Program,
    fuse: boolean,
  ) {
    this.semantics = new CpuSemantics(program, fuse);
    this.#cpuCount = program.machine.cpus;
    this.cellWords = Math.ceil(program.cells.length / CELLS_PER_WORD);
    this.width = this.cellWords + this.#cpuCount;
    this.pitch = this.width + META_WORDS;
    this.out = new Int32Array(this.pitch * MAX_SUCCESSORS);
    this.#current = new Int32Array(this.width);
    this.#cells = new Uint8Array(this.#current.buffer);
    this.#textCell = Int32Array.from(program.cells, (c) => (c.kind === 'text' ? c.site : NOTHING));
    this.#finalText = Uint8Array.from(program.finalText.flat());
    this.#breakpoint = program.breakpointPiece;
    this.#neverOverlap = program.machine.overlap === 'never';
  }

  /** The state in which every run starts. */
  initial(): { readonly words: Int32Array; readonly violation: Violation | undefined } {
    const words = new Int32Array(this.width);
    const cells = new Uint8Array(words.buffer);
    for (const [i, cell] of this.program.cells.entries()) cells[i] = cell.initial;
    let violation: Violation | undefined;
    for (let c = 0; c < this.#cpuCount; c++) {
      const outcome = this.semantics.initial(c === 0 ? 'patcher' : 'other');
      violation ??= outcome.violation;
      words[this.cellWords + c] = this.#intern(outcome.cpu);
    }
    return { words, violation };
  }

  cpu(words: Int32Array, index: number): Cpu {
    return this.#cpus[words[this.cellWords + index]];
  }

  action(number: number): Action {
    return this.#actions[number];
  }

  /** True if nothing is under way anywhere. */
  isQuiet(words: Int32Array): boolean {
    for (let c = 0; c < this.#cpuCount; c++)
      if (this.#quiet.items[words[this.cellWords + c]] === 0) return false;
    return true;
  }

  /** True if a context on the CPU has something left to do. */
  isBusy(words: Int32Array, cpu: number): boolean {
    return this.semantics.isBusy(this.cpu(words, cpu));
  }

  /** What the store buffers hold. */
  buffers(words: Int32Array): (readonly Pending[])[] {
    return Array.from({ length: this.#cpuCount }, (_, c) => this.cpu(words, c).buffer);
  }

  /** CPUs other than `cpu` in the midst of an instruction, as a mask. */
  executingOthers(words: Int32Array, cpu: number): number {
    let mask = 0;
    for (let c = 0; c < this.#cpuCount; c++)
      if (c !== cpu && this.#executing.items[words[this.cellWords + c]] !== NOT_EXECUTING) mask |= 1 << c;
    return mask;
  }

  /**
   * Writes the successors of a state into `out`, each `pitch` words, and returns their number. Steps that change
   * nothing (a wait that goes on) are left out. With `sort`, the CPUs that do the same are put in a fixed order: the
   * symmetry reduction.
   */
  expand(words: Int32Array, sort: boolean): number {
    const current = this.#current;
    const cells = this.#cells;
    const { out, width, pitch, cellWords } = this;
    const cpuCount = this.#cpuCount;
    for (let i = 0; i < width; i++) current[i] = words[i];
    let nmis = 0;
    if (this.#neverOverlap)
      for (let c = 0; c < cpuCount; c++) nmis += this.#inNmi.items[current[cellWords + c]];
    let produced = 0;
    for (let c = 0; c < cpuCount; c++) {
      const state = current[cellWords + c];
      if (this.#firstAction.items[state] === NOTHING) this.#enumerate(state);
      const first = this.#firstAction.items[state];
      const end = first + this.#actionCount.items[state];
      for (let a = first; a < end; a++) {
        const flags = this.#actionFlags.items[a];
        if (nmis > 0 && (flags & FLAG_ARRIVES) !== 0) continue;
        const cell = this.#actionCell.items[a];
        let value = cell < 0 ? 0 : cells[cell];
        let others = 0;
        if ((flags & FLAG_SYNC) !== 0) value = others = this.executingOthers(current, c);
        let valueIndex = this.#valueIndex[value];
        if (valueIndex === NOTHING) valueIndex = this.#addValue(value);
        const slot = a * this.#stride + valueIndex;
        let next = this.#next.items[slot];
        if (next === UNKNOWN) next = this.#compute(state, a, value, others, slot);
        if (next === IMPOSSIBLE) continue;
        const written = this.#written.items[slot];
        const changes = written >= 0 && cell >= 0 && written !== value;
        if (next === state && !changes) continue;
        const at = produced * pitch;
        for (let i = 0; i < width; i++) out[at + i] = current[i];
        let violation = NOTHING;
        if (next <= VIOLATION) violation = VIOLATION - next;
        else out[at + cellWords + c] = next;
        if (changes) {
          const shift = (cell & 3) << 3;
          const word = at + (cell >> 2);
          out[word] = (out[word] & ~(0xff << shift)) | (written << shift);
          if (this.#textCell[cell] !== NOTHING) {
            const landed = this.#landing(c, cell, value, written);
            if (landed !== NOTHING) violation = landed;
          }
        }
        if (violation === NOTHING) {
          if (this.#executing.items[state] !== NOT_EXECUTING && this.#executing.items[next] === NOT_EXECUTING)
            this.#acknowledge(at, c);
          if (this.#quiet.items[next] !== 0) violation = this.#wrongText(at);
          if (sort) this.#sort(at);
        }
        out[at + width + META_CPU] = c;
        out[at + width + META_ACTION] = a;
        out[at + width + META_VIOLATION] = violation;
        out[at + width + META_COST] = flags & FLAG_COST;
        produced++;
      }
    }
    return produced;
  }

  /** Puts the CPUs that do the same into a fixed order; `offset` is the state's place in `words`. */
  sort(words: Int32Array): void {
    const { cellWords } = this;
    for (let i = cellWords + 2; i < cellWords + this.#cpuCount; i++) {
      const moved = words[i];
      let at = i;
      for (; at > cellWords + 1 && words[at - 1] > moved; at--) words[at] = words[at - 1];
      words[at] = moved;
    }
  }

  #sort(offset: number): void {
    const { out } = this;
    const first = offset + this.cellWords + 1;
    const end = offset + this.cellWords + this.#cpuCount;
    for (let i = first + 1; i < end; i++) {
      const moved = out[i];
      let at = i;
      for (; at > first && out[at - 1] > moved; at--) out[at] = out[at - 1];
      out[at] = moved;
    }
  }

  /** Different bytes land in a site: does another CPU execute it? Returns the number of the violation, or -1. */
  #landing(writer: number, cell: number, before: number, after: number): number {
    const site = this.#textCell[cell];
    const piece = (cell - this.program.textBase) & 1;
    // One byte that makes or removes a breakpoint may change under a running CPU: it sees the old or the new byte.
    const breakpoint = piece === HEAD && (before === this.#breakpoint || after === this.#breakpoint);
    if (breakpoint) return NOTHING;
    for (let c = 0; c < this.#cpuCount; c++) {
      if (c === writer) continue;
      const executing = this.#executing.items[this.#current[this.cellWords + c]];
      if (executing === NOT_EXECUTING || executing >> SITE_SHIFT !== site) continue;
      if ((executing & (1 << (OWN_SHIFT + piece))) !== 0) continue;
      // While only the tail has been fetched, the head, which may be a breakpoint, decides what the tail was worth.
      if (piece !== HEAD && (executing & 1) !== HEAD) continue;
      return this.violations.push({ kind: 'written-while-executed', site, victim: c, piece }) - 1;
    }
    return NOTHING;
  }

  /** In a state in which nothing is under way: is the text what was asked for, and writable only where it was? */
  #wrongText(offset: number): number {
    const { out, cellWords } = this;
    for (let c = 0; c < this.#cpuCount; c++)
      if (this.#quiet.items[out[offset + cellWords + c]] === 0) return NOTHING;
    for (let i = 0; i < this.#finalText.length; i += 2) {
      const head = this.#outCell(offset, this.program.textBase + i);
      const tail = this.#outCell(offset, this.program.textBase + i + 1);
      if (head !== this.#finalText[i] || tail !== this.#finalText[i + 1])
        return this.violations.push({ kind: 'wrong-text', site: i / 2, head, tail }) - 1;
    }
    for (const [i, cell] of this.program.cells.entries()) {
      if (cell.kind === 'lock' && this.#outCell(offset, i) !== cell.initial)
        return this.violations.push({ kind: 'left-writable', site: cell.site }) - 1;
    }
    return NOTHING;
  }

  #outCell(offset: number, cell: number): number {
    return (this.out[offset + (cell >> 2)] >>> ((cell & 3) << 3)) & 0xff;
  }

  #acknowledge(offset: number, cpu: number): void {
    const { out, cellWords } = this;
    for (let c = 0; c < this.#cpuCount; c++) {
      if (c === cpu) continue;
      const state = out[offset + cellWords + c];
      if (this.#syncing.items[state] === 0) continue;
      const key = state * this.#cpuCount + cpu;
      let acknowledged = this.#acknowledged.get(key);
      if (acknowledged === undefined) {
        acknowledged = this.#intern(this.semantics.acknowledge(this.#cpus[state], cpu));
        this.#acknowledged.set(key, acknowledged);
      }
      out[offset + cellWords + c] = acknowledged;
    }
  }

  #intern(cpu: Cpu): number {
    const key = this.semantics.encode(cpu);
    const found = this.#numbers.get(key);
    if (found !== undefined) return found;
    const number = this.#cpus.push(cpu) - 1;
    this.#numbers.set(key, number);
    this.#firstAction.push(NOTHING);
    this.#actionCount.push(0);
    this.#quiet.push(this.semantics.isQuiet(cpu) ? 1 : 0);
    this.#inNmi.push(cpu.inNmi ? 1 : 0);
    const executing = this.semantics.executing(cpu);
    this.#executing.push(
      executing === undefined
        ? NOT_EXECUTING
        : (executing.site << SITE_SHIFT) | (executing.ownStores << OWN_SHIFT) | executing.fetched,
    );
    this.#syncing.push(this.semantics.isSyncing(cpu) ? 1 : 0);
    return number;
  }

  #enumerate(state: number): void {
    const actions = this.semantics.actions(this.#cpus[state]);
    this.#firstAction.items[state] = this.#actions.length;
    this.#actionCount.items[state] = actions.length;
    for (const action of actions) {
      this.#actions.push(action);
      this.#actionCell.push(action.cell);
      this.#actionFlags.push(
        action.cost | (action.arrives ? FLAG_ARRIVES : 0) | (action.sync ? FLAG_SYNC : 0),
      );
    }
    this.#next.reserve(this.#actions.length * this.#stride);
    this.#written.reserve(this.#actions.length * this.#stride);
  }

  #compute(state: number, action: number, value: number, others: number, slot: number): number {
    const outcome = this.semantics.perform(this.#cpus[state], this.#actions[action], value, others);
    let next = IMPOSSIBLE;
    if (outcome !== undefined) {
      next =
        outcome.violation === undefined
          ? this.#intern(outcome.cpu)
          : VIOLATION - (this.violations.push(outcome.violation) - 1);
      this.#written.items[slot] = outcome.written;
    }
    this.#next.items[slot] = next;
    return next;
  }

  #addValue(value: number): number {
    if (this.#values === this.#stride) {
      // Forget what was looked up: it is computed again under the new layout.
      this.#stride *= 2;
      this.#next.items = new Int32Array(this.#actions.length * this.#stride + 1).fill(UNKNOWN);
      this.#written.items = new Int32Array(this.#actions.length * this.#stride + 1).fill(NOTHING);
    }
    return (this.#valueIndex[value] = this.#values++);
  }
}

const FLAG_COST = 1;
const FLAG_ARRIVES = 2;
const FLAG_SYNC = 4;
