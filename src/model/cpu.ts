import { EFAULT } from '../protocol/index.js';
import { liveRegisters } from './live-registers.js';
import { STORE_BUFFER_ENTRIES } from './machine.js';
import type { Argument, ContextProgram, Instruction, Program } from './program.js';
import { HEAD, TAIL, foldWord, passes } from './program.js';
import { allows, isLocked } from './scenario.js';

/** NMIs that may still arrive, where their number has no bound. */
const UNBOUNDED = 0xff;
const BYTE_MASK = 0xff;
const FAULT = foldWord(-EFAULT);

/** What waits in a store buffer. A fence keeps what stands before it before what stands after it. */
export type Pending =
  | { readonly kind: 'store'; readonly cell: number; readonly value: number }
  | { readonly kind: 'add'; readonly cell: number; readonly value: number }
  | { readonly kind: 'fence' };

/** A context that runs on a CPU: the patcher or a thread below, an NMI on top of it. `pc` 0: nothing to do. */
export interface Context {
  pc: number;
  registers: number[];
}

/** All that is private to one CPU. */
export interface Cpu {
  readonly role: 'patcher' | 'other';
  nmisLeft: number;
  base: Context;
  nmi: Context;
  inNmi: boolean;
  buffer: Pending[];
}

/** Something that one CPU can do next. It reads or changes one cell of shared memory at most. */
export interface Action {
  readonly kind: 'operation' | 'arrival' | 'flush';
  /** The cell on whose value the outcome depends, or that is written; -1 if there is none. */
  readonly cell: number;
  /** An NMI arrives as part of this. */
  readonly arrives: boolean;
  /** Which instruction; for a flush, which entry of the buffer. */
  readonly index: number;
  /** 0 if nobody outside the context can tell when this happens: it does not count in the length of a run. */
  readonly cost: 0 | 1;
  /** The next instruction synchronises with the other CPUs, of which the search knows. */
  readonly sync: boolean;
}

export type Violation =
  | {
      /** A decoded mixture, or a whole instruction that does not belong at this site. */
      readonly kind: 'torn' | 'wrong-instruction';
      readonly site: number;
      readonly head: number;
      readonly tail: number;
    }
  | {
      readonly kind: 'written-while-executed';
      readonly site: number;
      readonly victim: number;
      readonly piece: number;
    }
  | { readonly kind: 'wrong-result'; readonly change: number; readonly result: number }
  | { readonly kind: 'wrong-emulation'; readonly site: number; readonly code: number }
  | { readonly kind: 'stray-breakpoint'; readonly site: number }
  | { readonly kind: 'wrong-text'; readonly site: number; readonly head: number; readonly tail: number }
  /** Text that was not writable before is so when all is done. */
  | { readonly kind: 'left-writable'; readonly site: number };

/** One thing that happened, for the timeline. */
export interface Happening {
  readonly what: 'executed' | 'arrived' | 'returned' | 'left-buffer' | 'blocked';
  readonly context: 'base' | 'nmi';
  /** The instruction, where one was executed. */
  readonly pc: number;
  readonly cell?: number;
  /** The value read. */
  readonly read?: number;
  /** The value written to shared memory. */
  readonly wrote?: number;
  /** The value put into the store buffer. */
  readonly buffered?: number;
}

export interface Outcome {
  readonly cpu: Cpu;
  /** New value of the action's cell, or -1. */
  readonly written: number;
  readonly violation?: Violation;
}

/** Thrown when a store buffer needs more entries than the machine has: the search ends with `unknown`. */
export class StoreBufferFull extends Error {
  constructor() {
    super(`a store buffer would need more than ${STORE_BUFFER_ENTRIES} entries`);
    this.name = 'StoreBufferFull';
  }
}

/**
 * What one CPU can do, given what is private to it and the value of one cell of shared memory. It knows nothing of
 * the other CPUs; the search does.
 *
 * With `fuse`, steps that nobody outside the context can tell the time of are made as part of the step before them (the
 * partial-order reduction: each such step is an ample set by itself), and an NMI arrives together with its first
 * visible step.
 */
export class CpuSemantics {
  readonly #live: Int32Array;
  readonly #arrivesFused: boolean;

  constructor(
    readonly program: Program,
    readonly fuse: boolean,
  ) {
    this.#live = liveRegisters(program.instructions);
    this.#arrivesFused = this.#firstStepIsVisible();
  }

  /** The CPU at the start of a run. */
  initial(role: 'patcher' | 'other'): Outcome {
    const { program } = this;
    const { nmis } = program.machine;
    const bound = nmis === 'unbounded' ? UNBOUNDED : nmis;
    let nmisLeft = bound;
    if (program.scenario.storm) nmisLeft = UNBOUNDED;
    if (role === 'patcher' && (program.scenario.storm || program.patcherMasked)) nmisLeft = 0;
    const cpu: Cpu = {
      role,
      nmisLeft,
      base: context(role === 'patcher' ? program.patcher : program.other),
      nmi: { pc: 0, registers: zeros(program.nmi) },
      inNmi: false,
      buffer: [],
    };
    const violation = this.fuse ? this.#settle(cpu, undefined) : undefined;
    this.#forget(cpu);
    return { cpu, written: -1, ...(violation === undefined ? {} : { violation }) };
  }

  /** Everything that is private to the CPU as bytes: equal bytes, equal CPUs. */
  encode(cpu: Cpu): string {
    const numbers = [
      cpu.role === 'patcher' ? 0 : 1,
      cpu.nmisLeft,
      cpu.base.pc,
      ...cpu.base.registers,
      cpu.inNmi ? 1 : 0,
      cpu.nmi.pc,
      ...cpu.nmi.registers,
    ];
    for (const p of cpu.buffer) {
      if (p.kind === 'fence') numbers.push(0);
      else numbers.push(p.kind === 'store' ? 1 : 2, p.cell, p.value);
    }
    return String.fromCharCode(...numbers);
  }

  /** True if the CPU has nothing under way: its own program is done, no NMI runs, its store buffer is empty. */
  isQuiet(cpu: Cpu): boolean {
    return !cpu.inNmi && cpu.buffer.length === 0 && this.#instruction(cpu.base).kind === 'end';
  }

  /**
   * The site in the midst of whose instruction the CPU is, the piece that it has fetched, and the pieces (as a mask)
   * for which it has a store of its own in its buffer: it fetches those from there, so what others write to them now
   * does not reach it.
   */
  executing(
    cpu: Cpu,
  ): { readonly site: number; readonly fetched: number; readonly ownStores: number } | undefined {
    const i = this.#instruction(top(cpu));
    if (i.kind !== 'fetch-second') return undefined;
    let ownStores = 0;
    for (const piece of [HEAD, TAIL]) {
      const cell = this.#textCell(i.site, piece);
      if (cpu.buffer.some((p) => p.kind === 'store' && p.cell === cell)) ownStores |= 1 << piece;
    }
    return { site: i.site, fetched: i.piece === HEAD ? TAIL : HEAD, ownStores };
  }

  /** True if a context of this CPU waits for others to synchronise. */
  isSyncing(cpu: Cpu): boolean {
    return this.#syncWaits(cpu).length > 0;
  }

  /** CPU number `other` has been between two instructions: whoever waits for that here goes on waiting without it. */
  acknowledge(cpu: Cpu, other: number): Cpu {
    const copy = clone(cpu);
    for (const { at, register } of this.#syncWaits(copy)) at.registers[register] &= ~(1 << other);
    if (this.fuse) this.#settle(copy, undefined);
    this.#forget(copy);
    return copy;
  }

  /** True if the running context has something left to do. */
  isBusy(cpu: Cpu): boolean {
    return cpu.inNmi || this.#instruction(cpu.base).kind !== 'end';
  }

  actions(cpu: Cpu): readonly Action[] {
    const actions: Action[] = [];
    const running = top(cpu);
    const instruction = this.#instruction(running);
    this.#operations(cpu, running.pc, false, actions);
    if (cpu.nmisLeft > 0 && !cpu.inNmi && instruction.kind !== 'fetch-second') {
      if (!this.fuse || !this.#arrivesFused) {
        const cost = this.#arrivesFused ? 0 : 1;
        actions.push({ kind: 'arrival', cell: -1, arrives: true, index: 0, cost, sync: false });
      } else {
        const entered = clone(cpu);
        this.#arrive(entered, undefined);
        if (this.#settle(entered, undefined) === undefined)
          this.#operations(entered, entered.nmi.pc, true, actions);
      }
    }
    this.#flushes(cpu, actions);
    return actions;
  }

  /**
   * What comes of an action. `value` is what the action's cell holds. Undefined if the action cannot be made now.
   * `others` is a mask of the other CPUs that are in the midst of an instruction: what a `sync` must wait for.
   */
  perform(
    before: Cpu,
    action: Action,
    value: number,
    others: number,
    log?: Happening[],
  ): Outcome | undefined {
    const cpu = clone(before);
    let written = -1;
    let violation: Violation | undefined;
    if (action.kind === 'flush') {
      const [pending] = cpu.buffer.splice(action.index, 1);
      if (pending.kind === 'fence') throw new Error('a fence does not leave a store buffer');
      written = pending.kind === 'store' ? pending.value : (value + pending.value) & BYTE_MASK;
      const context = cpu.inNmi ? 'nmi' : 'base';
      log?.push({ what: 'left-buffer', context, pc: 0, cell: pending.cell, wrote: written });
      normalise(cpu.buffer);
    } else {
      if (action.arrives) {
        this.#arrive(cpu, log);
        if (action.kind === 'operation') violation = this.#settle(cpu, log);
      }
      if (action.kind === 'operation' && violation === undefined) {
        const result = this.#step(cpu, action.index, value, others, log);
        if (result === undefined) return undefined;
        written = result.written;
        violation = result.violation;
      }
    }
    if (violation === undefined && this.fuse) violation = this.#settle(cpu, log);
    this.#forget(cpu);
    return { cpu, written, ...(violation === undefined ? {} : { violation }) };
  }

  #instruction(c: Context): Instruction {
    return this.program.instructions[c.pc];
  }

  #operations(cpu: Cpu, pc: number, arrives: boolean, actions: Action[]): void {
    const i = this.program.instructions[pc];
    const running = top(cpu);
    if (i.kind === 'end' && !cpu.inNmi) return;
    const cost = this.#isInvisible(cpu, i) ? 0 : 1;
    const cell = this.#cellRead(cpu, running, i);
    if (cell === BLOCKED) return;
    actions.push({ kind: 'operation', cell, arrives, index: pc, cost, sync: i.kind === 'sync' });
    if (i.kind === 'fetch-first' && i.alternative !== 0) {
      const alternative = this.program.instructions[i.alternative];
      actions.push({
        kind: 'operation',
        cell: this.#cellRead(cpu, running, alternative),
        arrives,
        index: i.alternative,
        cost,
        sync: false,
      });
    }
  }

  /** What may leave the store buffer now. */
  #flushes(cpu: Cpu, actions: Action[]): void {
    const fifo = this.program.machine.memory === 'tso';
    const seen = new Set<number>();
    for (const [index, pending] of cpu.buffer.entries()) {
      if (pending.kind === 'fence') return;
      if (!seen.has(pending.cell))
        actions.push({ kind: 'flush', cell: pending.cell, arrives: false, index, cost: 1, sync: false });
      if (fifo) return;
      seen.add(pending.cell);
    }
  }

  /** The cell that an instruction reads or writes in shared memory; NO_CELL, or BLOCKED if it must wait for the buffer. */
  #cellRead(cpu: Cpu, running: Context, i: Instruction): number {
    const { memory } = this.program.machine;
    const buffered = memory !== 'sc';
    switch (i.kind) {
      case 'load':
      case 'wait':
        return this.#loadCell(cpu, i.cell);
      case 'load-code': {
        const code = argument(running, i.code);
        if (!this.#isStatic(code)) return NO_CELL;
        return this.#loadCell(cpu, this.program.staticBase + i.piece);
      }
      case 'load-text':
        return this.#loadCell(cpu, this.#textCell(argument(running, i.at) - 1, i.piece));
      case 'fetch-first':
      case 'fetch-second':
        return this.#loadCell(cpu, this.#textCell(i.site, i.piece));
      case 'check-lock':
      case 'set-lock':
        return this.program.lockBase + argument(running, i.at) - 1;
      case 'store':
        return buffered ? NO_CELL : i.cell;
      case 'store-text':
        return buffered ? NO_CELL : this.#textCell(argument(running, i.at) - 1, i.piece);
      case 'add':
        if (memory === 'relaxed') return NO_CELL;
        return cpu.buffer.length === 0 ? i.cell : BLOCKED;
      case 'fetch-add':
      case 'compare-swap':
        if (memory !== 'relaxed') return cpu.buffer.length === 0 ? i.cell : BLOCKED;
        return cpu.buffer.some((p) => p.kind === 'fence' || p.cell === i.cell) ? BLOCKED : i.cell;
      case 'full-fence':
      case 'sync':
        return cpu.buffer.length === 0 ? NO_CELL : BLOCKED;
      case 'sync-wait':
        return running.registers[i.register] === 0 ? NO_CELL : BLOCKED;
      default:
        return NO_CELL;
    }
  }

  /** A load takes its own CPU's latest store to the cell; it waits for a buffered addition to be applied. */
  #loadCell(cpu: Cpu, cell: number): number {
    const latest = cpu.buffer.findLast((p) => p.kind !== 'fence' && p.cell === cell);
    if (latest === undefined) return cell;
    return latest.kind === 'store' ? NO_CELL : BLOCKED;
  }

  #loaded(cpu: Cpu, cell: number, value: number): number {
    const latest = cpu.buffer.findLast((p) => p.kind !== 'fence' && p.cell === cell);
    return latest?.kind === 'store' ? latest.value : value;
  }

  /**
   * True if nobody outside the context can tell when the instruction is executed, so that it may be made at once.
   * A store into the buffer is one only where no NMI can arrive before it: an NMI on the same CPU would see it.
   */
  #isInvisible(cpu: Cpu, i: Instruction): boolean {
    const { memory } = this.program.machine;
    const undisturbed = cpu.inNmi || cpu.nmisLeft === 0;
    switch (i.kind) {
      case 'set':
      case 'calculate':
      case 'branch':
      case 'jump':
      case 'check-access':
      case 'expect':
      case 'emulate':
        return true;
      case 'end':
        return cpu.inNmi;
      case 'full-fence':
        return cpu.buffer.length === 0;
      case 'sync-wait':
        return top(cpu).registers[i.register] === 0;
      case 'write-fence':
        return memory === 'sc' || memory === 'tso' || undisturbed || cpu.buffer.length === 0;
      case 'store':
      case 'store-text':
        return memory !== 'sc' && undisturbed;
      case 'add':
        return memory === 'relaxed' && undisturbed;
      case 'load-code':
        return !this.#isStatic(argument(top(cpu), i.code));
      default:
        return false;
    }
  }

  /** Makes all invisible steps that come next. */
  #settle(cpu: Cpu, log: Happening[] | undefined): Violation | undefined {
    for (;;) {
      const running = top(cpu);
      const i = this.#instruction(running);
      if (!this.#isInvisible(cpu, i)) return undefined;
      const result = this.#step(cpu, running.pc, 0, 0, log);
      if (result === undefined) return undefined;
      if (result.violation !== undefined) return result.violation;
    }
  }

  #arrive(cpu: Cpu, log: Happening[] | undefined): void {
    if (cpu.nmisLeft !== UNBOUNDED) cpu.nmisLeft--;
    cpu.inNmi = true;
    cpu.nmi.pc = this.program.nmi.start;
    log?.push({ what: 'arrived', context: 'nmi', pc: cpu.nmi.pc });
  }

  #step(
    cpu: Cpu,
    pc: number,
    value: number,
    others: number,
    log: Happening[] | undefined,
  ): { readonly written: number; readonly violation?: Violation } | undefined {
    const running = top(cpu);
    const i = this.program.instructions[pc];
    const { registers } = running;
    const contextName = cpu.inNmi ? 'nmi' : 'base';
    const get = (a: Argument): number => argument(running, a);
    let next = i.next;
    let written = -1;
    let violation: Violation | undefined;
    let happening: Happening = { what: 'executed', context: contextName, pc };
    switch (i.kind) {
      case 'set':
        registers[i.register] = get(i.value);
        break;
      case 'calculate': {
        const left = get(i.left);
        const right = get(i.right);
        registers[i.register] =
          (i.by === 'plus' ? left + right : i.by === 'and' ? left & right : left | right) & BYTE_MASK;
        break;
      }
      case 'branch':
        if (passes(get(i.left), i.test, get(i.right))) next = i.target;
        break;
      case 'load': {
        const loaded = this.#loaded(cpu, i.cell, value);
        registers[i.register] = loaded;
        happening = { ...happening, cell: i.cell, read: loaded };
        break;
      }
      case 'load-code': {
        const code = get(i.code);
        if (this.#isStatic(code)) {
          const cell = this.program.staticBase + i.piece;
          const loaded = this.#loaded(cpu, cell, value);
          registers[i.register] = loaded;
          happening = { ...happening, cell, read: loaded };
        } else registers[i.register] = this.program.bufferPieces[code][i.piece];
        break;
      }
      case 'load-text': {
        const cell = this.#textCell(get(i.at) - 1, i.piece);
        const loaded = this.#loaded(cpu, cell, value);
        registers[i.register] = loaded;
        happening = { ...happening, cell, read: loaded };
        break;
      }
      case 'store':
      case 'store-text': {
        const cell = i.kind === 'store' ? i.cell : this.#textCell(get(i.at) - 1, i.piece);
        const stored = get(i.value);
        if (this.program.machine.memory === 'sc') {
          written = stored;
          happening = { ...happening, cell, wrote: stored };
        } else {
          push(cpu.buffer, { kind: 'store', cell, value: stored });
          happening = { ...happening, cell, buffered: stored };
        }
        break;
      }
      case 'add':
        if (this.program.machine.memory === 'relaxed') {
          push(cpu.buffer, { kind: 'add', cell: i.cell, value: get(i.value) });
          happening = { ...happening, cell: i.cell, buffered: get(i.value) };
        } else {
          written = (value + get(i.value)) & BYTE_MASK;
          happening = { ...happening, cell: i.cell, read: value, wrote: written };
        }
        break;
      case 'fetch-add':
        written = (value + get(i.value)) & BYTE_MASK;
        registers[i.register] = value;
        happening = { ...happening, cell: i.cell, read: value, wrote: written };
        break;
      case 'compare-swap':
        happening = { ...happening, cell: i.cell, read: value };
        if (value === get(i.expected)) {
          written = get(i.desired);
          happening = { ...happening, wrote: written };
        }
        registers[i.register] = value;
        break;
      case 'full-fence':
        if (cpu.buffer.length > 0) return undefined;
        break;
      case 'write-fence':
        if (this.program.machine.memory === 'pso' || this.program.machine.memory === 'relaxed')
          push(cpu.buffer, { kind: 'fence' });
        break;
      case 'wait': {
        const loaded = this.#loaded(cpu, i.cell, value);
        if (!passes(loaded, i.test, get(i.value))) return undefined;
        happening = { ...happening, cell: i.cell, read: loaded };
        break;
      }
      case 'check-access': {
        const site = get(i.at) - 1;
        const { sites } = this.program.scenario;
        const page = site in sites ? sites[site].page : 'unmapped';
        const code = get(i.code);
        const isThere = page !== 'unmapped' && code > 0 && code < this.program.buffers.length;
        if (!isThere || !allows(page, i.access, cpu.inNmi)) {
          registers[i.register] = FAULT;
          next = i.target;
        }
        break;
      }
      case 'check-lock':
        happening = { ...happening, cell: this.program.lockBase + get(i.at) - 1, read: value };
        if (value === 0) {
          registers[i.register] = FAULT;
          next = i.target;
        }
        break;
      case 'set-lock': {
        const site = get(i.at) - 1;
        written = isLocked(this.program.scenario.sites[site]) ? get(i.value) : value;
        happening = { ...happening, cell: this.program.lockBase + site, wrote: written };
        break;
      }
      case 'fetch-first': {
        const cell = this.#textCell(i.site, i.piece);
        const fetched = this.#loaded(cpu, cell, value);
        happening = { ...happening, cell, read: fetched };
        if (fetched === this.program.breakpointPiece) {
          // One byte is the whole instruction: nothing else is fetched.
          if (i.trap === 0) violation = { kind: 'stray-breakpoint', site: i.site };
          next = i.trap;
        } else registers[i.register] = fetched;
        break;
      }
      case 'fetch-second': {
        const cell = this.#textCell(i.site, i.piece);
        const fetched = this.#loaded(cpu, cell, value);
        happening = { ...happening, cell, read: fetched };
        if (fetched === this.program.breakpointPiece) {
          if (i.trap === 0) violation = { kind: 'stray-breakpoint', site: i.site };
          next = i.trap;
        } else {
          const first = get(i.first);
          violation =
            i.piece === TAIL ? this.#decode(i.site, first, fetched) : this.#decode(i.site, fetched, first);
        }
        break;
      }
      case 'emulate': {
        const code = get(i.code);
        const [head, tail] = this.program.bufferPieces[code];
        if (!this.program.validImages[i.site].some((v) => v[0] === head && v[1] === tail))
          violation = { kind: 'wrong-emulation', site: i.site, code };
        break;
      }
      case 'sync':
        if (cpu.buffer.length > 0) return undefined;
        registers[i.register] = others;
        break;
      case 'sync-wait':
        if (registers[i.register] !== 0) return undefined;
        break;
      case 'expect':
        if (get(i.value) !== i.result)
          violation = { kind: 'wrong-result', change: i.change, result: get(i.value) };
        break;
      case 'end':
        if (!cpu.inNmi) return undefined;
        cpu.inNmi = false;
        cpu.nmi = { pc: 0, registers: zeros(this.program.nmi) };
        log?.push({ what: 'returned', context: 'nmi', pc });
        return { written: -1 };
      case 'jump':
        break;
    }
    running.pc = next;
    log?.push(happening);
    return { written, ...(violation === undefined ? {} : { violation }) };
  }

  #decode(site: number, head: number, tail: number): Violation | undefined {
    const valid = this.program.validImages[site];
    if (valid.some((v) => v[0] === head && v[1] === tail)) return undefined;
    const whole = this.program.bufferPieces.some((v) => v[0] === head && v[1] === tail);
    return { kind: whole ? 'wrong-instruction' : 'torn', site, head, tail };
  }

  #textCell(site: number, piece: number): number {
    return this.program.textBase + 2 * site + piece;
  }

  #isStatic(code: number): boolean {
    return code > 0 && this.program.staticBase >= 0 && this.program.buffers[code] === undefined;
  }

  #syncWaits(cpu: Cpu): { readonly at: Context; readonly register: number }[] {
    const waits: { at: Context; register: number }[] = [];
    for (const at of [cpu.base, cpu.nmi]) {
      const i = this.#instruction(at);
      if (i.kind === 'sync-wait') waits.push({ at, register: i.register });
    }
    return waits;
  }

  /** Zeroes the registers that nobody will read. */
  #forget(cpu: Cpu): void {
    for (const c of [cpu.base, cpu.nmi]) {
      const live = this.#live[c.pc];
      for (let r = 0; r < c.registers.length; r++) if ((live & (1 << r)) === 0) c.registers[r] = 0;
    }
    if (this.program.machine.memory !== 'tso') order(cpu.buffer);
  }

  /**
   * True if the first step of an NMI is one that other CPUs can see, so that nothing is lost by letting the NMI arrive
   * together with it: until then an NMI does nothing but keep its own CPU's program from running.
   */
  #firstStepIsVisible(): boolean {
    const cpu: Cpu = {
      role: 'other',
      nmisLeft: 0,
      base: { pc: 0, registers: zeros(this.program.other) },
      nmi: { pc: this.program.nmi.start, registers: zeros(this.program.nmi) },
      inNmi: true,
      buffer: [],
    };
    for (;;) {
      const i = this.#instruction(cpu.nmi);
      if (!this.#isInvisible(cpu, i)) return true;
      if (i.kind === 'store' || i.kind === 'store-text' || i.kind === 'add' || i.kind === 'end') return false;
      if (this.#step(cpu, cpu.nmi.pc, 0, 0, undefined)?.violation !== undefined) return false;
    }
  }
}

const NO_CELL = -1;
const BLOCKED = -2;

function context(program: ContextProgram): Context {
  return { pc: program.start, registers: zeros(program) };
}

function zeros(program: ContextProgram): number[] {
  return program.registers.map(() => 0);
}

function clone(cpu: Cpu): Cpu {
  return {
    role: cpu.role,
    nmisLeft: cpu.nmisLeft,
    base: { pc: cpu.base.pc, registers: cpu.base.registers.slice() },
    nmi: { pc: cpu.nmi.pc, registers: cpu.nmi.registers.slice() },
    inNmi: cpu.inNmi,
    buffer: cpu.buffer.slice(),
  };
}

function top(cpu: Cpu): Context {
  return cpu.inNmi ? cpu.nmi : cpu.base;
}

function argument(running: Context, a: Argument): number {
  return a < 0 ? running.registers[-a - 1] : a;
}

function push(buffer: Pending[], pending: Pending): void {
  if (pending.kind === 'fence' && (buffer.length === 0 || buffer[buffer.length - 1].kind === 'fence')) return;
  if (buffer.length === STORE_BUFFER_ENTRIES) throw new StoreBufferFull();
  buffer.push(pending);
}

/** A fence at the head of a buffer holds nothing back any more. */
function normalise(buffer: Pending[]): void {
  while (buffer.length > 0 && buffer[0].kind === 'fence') buffer.shift();
  for (let i = buffer.length - 1; i > 0; i--)
    if (buffer[i].kind === 'fence' && buffer[i - 1].kind === 'fence') buffer.splice(i, 1);
}

/** Between two fences, entries for different cells leave in any order: hold them in one. */
function order(buffer: Pending[]): void {
  for (let i = 1; i < buffer.length; i++) {
    const moved = buffer[i];
    if (moved.kind === 'fence') continue;
    let at = i;
    for (; at > 0; at--) {
      const before = buffer[at - 1];
      if (before.kind === 'fence' || before.cell <= moved.cell) break;
      buffer[at] = before;
    }
    buffer[at] = moved;
  }
}
