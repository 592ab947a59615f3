import {
  BREAKPOINT,
  SKIP,
  HEAD_SIZE,
  MCOUNT_INSN_SIZE,
  TRAPPED_IP,
  describeOperation,
  routineOf,
  withoutSteps,
} from '../protocol/index.js';
import type { Operand, Operation, Protocol } from '../protocol/index.js';
import type { Machine } from './machine.js';
import type { Argument, Cell, ContextProgram, Instruction, Program, Where } from './program.js';
import { HEAD, TAIL, foldWord } from './program.js';
import type { Change, Image, Scenario } from './scenario.js';
import { NOP, allows, isLocked, pieceBytes } from './scenario.js';

/** The breakpoint instruction of x86. */
const INT3 = 0xcc;
/** The code buffer that holds it. */
const BREAKPOINT_BUFFER = 1;

/**
 * Flattens a protocol (from which steps may have been left out) and a scenario for the model machine. Routines are
 * expanded where they are called, so none may call itself. Throws `Error` on a protocol that is not well formed: a
 * defect of its definition.
 */
export function compile(protocol: Protocol, machine: Machine, scenario: Scenario): Program {
  // Also removes what would stand in the place of steps that are not left out.
  return new Compiler(withoutSteps(protocol, []), machine, scenario).compile();
}

/** How a trap handler that is being expanded leaves. */
interface Trap {
  readonly site: number;
  readonly retry: number;
  readonly done: Label;
}

/** A place to which jumps are resolved once it is known. */
interface Label {
  at: number | undefined;
  readonly uses: ((at: number) => void)[];
}

type Draft = Instruction extends infer I
  ? I extends Instruction
    ? Omit<I, 'next' | 'where'>
    : never
  : never;

class Compiler {
  readonly #instructions: Instruction[] = [];
  readonly #cells: Cell[] = [];
  readonly #cellOf = new Map<string, number>();
  readonly #buffers: (Image | undefined)[] = [undefined];
  readonly #bufferPieces: (readonly [number, number])[] = [[0, 0]];
  readonly #pieces: (readonly number[])[] = [[]];
  readonly #changes: readonly Change[];
  #registers = new Map<string, number>();
  #depth = 0;

  constructor(
    readonly protocol: Protocol,
    readonly machine: Machine,
    readonly scenario: Scenario,
  ) {
    this.#changes = protocol.unit === 'span' ? scenario.changes : scenario.changes.flatMap(bySites(scenario));
  }

  compile(): Program {
    const { protocol, scenario } = this;
    const live = protocol.thread !== undefined;
    // Instruction 0 is where every context that has nothing (more) to do stands.
    this.#emit({ kind: 'end' }, { routine: 'idle', text: 'end' });
    this.#instructions[0].next = 0;
    for (const word of protocol.words) {
      if (word.use === 'statistic') continue;
      this.#cellOf.set(word.name, this.#cells.length);
      this.#cells.push({ kind: 'word', name: word.name, initial: foldWord(word.initial), use: word.use });
    }
    const textBase = this.#cells.length;
    scenario.sites.forEach((site, index) => {
      const [head, tail] = this.#piecesOf(site.initial);
      this.#cells.push({ kind: 'text', site: index, piece: HEAD, initial: head });
      this.#cells.push({ kind: 'text', site: index, piece: TAIL, initial: tail });
    });
    const breakpointPiece = this.#pieceNumber([INT3]);
    this.#buffers.push({ name: 'int3', bytes: [INT3] });
    this.#bufferPieces.push([breakpointPiece, 0]);
    let staticBase = -1;
    if (scenario.staticBuffer) {
      staticBase = this.#cells.length;
      this.#cells.push(
        { kind: 'buffer', piece: HEAD, initial: 0 },
        { kind: 'buffer', piece: TAIL, initial: 0 },
      );
      this.#buffers.push(undefined);
      this.#bufferPieces.push([0, 0]);
    }
    let lockBase = -1;
    if (this.#hasLocks) {
      lockBase = this.#cells.length;
      scenario.sites.forEach((site, index) => {
        this.#cells.push({ kind: 'lock', site: index, initial: isLocked(site) ? 0 : 1 });
      });
    }
    const patcher = this.#context(() => {
      const { length } = this.#changes;
      const isOne = protocol.begin === undefined || scenario.isSeries === true;
      for (let from = 0; from < length; from += isOne ? length : 1)
        this.#series(from, isOne ? length : from + 1);
    });
    const other = this.#context(() => {
      if (protocol.thread !== undefined) this.#expand(protocol.thread, undefined);
    });
    const nmi = this.#context(() => this.#expand(protocol.nmi, undefined));
    const validImages = scenario.sites.map((site, index) => [
      this.#piecesOf(site.initial),
      ...this.#imagesOf(index).map((image) => this.#piecesOf(image)),
    ]);
    const finalText = scenario.sites.map((site, index) => {
      return this.#piecesOf(this.#imagesOf(index).at(-1) ?? site.initial);
    });
    return {
      name: protocol.name,
      without: protocol.without ?? [],
      machine: this.machine,
      scenario,
      changes: this.#changes,
      instructions: this.#instructions,
      cells: this.#cells,
      textBase,
      staticBase,
      lockBase,
      patcher,
      other,
      nmi,
      buffers: this.#buffers,
      bufferPieces: this.#bufferPieces,
      pieces: this.#pieces,
      validImages,
      finalText,
      breakpointPiece,
      patcherMasked: protocol.patcherMasked === true,
      live,
    };
  }

  #context(body: () => void): ContextProgram {
    this.#registers = new Map();
    const start = this.#instructions.length;
    body();
    const end = this.#emit({ kind: 'end' }, { routine: 'idle', text: 'end' });
    this.#instructions[end].next = end;
    return { start, registers: [...this.#registers.keys()] };
  }

  /** What a site becomes, one after the other. */
  #imagesOf(site: number): Image[] {
    return this.#changes.flatMap((c) => {
      const image = c.to.at(site - c.site);
      return c.result === 0 && site >= c.site && site < c.site + c.to.length && image !== undefined
        ? [image]
        : [];
    });
  }

  /** Changes that are made one after the other, and what stands around them. */
  #series(from: number, to: number): void {
    const { begin, end } = this.protocol;
    const changes = this.#changes.slice(from, to);
    const failed: Label = { at: undefined, uses: [] };
    const done: Label = { at: undefined, uses: [] };
    if (begin !== undefined) {
      const first = Math.min(...changes.map((c) => c.site));
      const sites = Math.max(...changes.map((c) => c.site + c.to.length)) - first;
      const prepare: Where = { routine: 'stop_machine', text: 'begin' };
      this.#emit({ kind: 'set', register: this.#register('region'), value: first + 1 }, prepare);
      this.#emit({ kind: 'set', register: this.#register('region_length'), value: sites }, prepare);
      this.#expand(begin, undefined);
      const result = this.#argument('result', undefined);
      this.#branch({ left: result, test: 'not-equal', right: 0 }, failed, prepare);
    }
    changes.forEach((change, i) => {
      this.#change(change, from + i);
    });
    if (end !== undefined) this.#expand(end, undefined);
    if (begin === undefined) return;
    this.#nextTo(this.#emit({ kind: 'jump' }, { routine: 'stop_machine', text: 'end' }), done);
    this.#place(failed);
    changes.forEach((change, i) => {
      this.#expect(change, from + i);
    });
    this.#place(done);
  }

  #expect(change: Change, index: number): void {
    const value = this.#argument('result', undefined);
    const result = foldWord(change.result);
    const where: Where = { routine: 'stop_machine', text: `change ${index + 1} returns` };
    this.#emit({ kind: 'expect', value, result, change: index }, where);
  }

  /** Some text is writable at times only, and the protocol knows of that. */
  get #hasLocks(): boolean {
    return this.scenario.sites.some(isLocked);
  }

  #change(change: Change, index: number): void {
    const { scenario } = this;
    const where = (text: string): Where => ({ routine: 'stop_machine', text });
    const count = change.to.length;
    const name = (images: readonly Image[]): string => images.map((image) => image.name).join(', ');
    const site = scenario.sites
      .slice(change.site, change.site + count)
      .map((s) => s.name)
      .join(', ');
    const [head, tail] = this.#piecesOf(change.to[0]);
    let newCode = this.#buffersOf(change.to);
    if (scenario.staticBuffer) {
      newCode = this.#buffers.lastIndexOf(undefined);
      const fill = where(`static buffer = ${name(change.to)}`);
      const base = this.#cells.findIndex((c) => c.kind === 'buffer');
      this.#emit({ kind: 'store', cell: base + HEAD, value: head }, fill);
      this.#emit({ kind: 'store', cell: base + TAIL, value: tail }, fill);
    }
    const prepare = where(`change ${index + 1}: ${site} to ${name(change.to)}`);
    this.#emit({ kind: 'set', register: this.#register('ip'), value: change.site + 1 }, prepare);
    this.#emit(
      { kind: 'set', register: this.#register('old_code'), value: this.#buffersOf(change.from) },
      prepare,
    );
    this.#emit({ kind: 'set', register: this.#register('new_code'), value: newCode }, prepare);
    if (this.protocol.unit === 'span')
      this.#emit({ kind: 'set', register: this.#register('length'), value: count }, prepare);
    this.#expand(this.protocol.patch, undefined);
    this.#expect(change, index);
  }

  #expand(name: string, trap: Trap | undefined): void {
    if (++this.#depth > 20) throw new Error(`protocol ${this.protocol.name}: ${name} calls itself`);
    const routine = routineOf(this.protocol, name);
    const labels = new Map<string, Label>();
    const labelOf = (text: string): Label => {
      let found = labels.get(text);
      if (found === undefined) labels.set(text, (found = { at: undefined, uses: [] }));
      return found;
    };
    const end: Label = { at: undefined, uses: [] };
    for (const operation of routine.operations) this.#operation(operation, name, labelOf, end, trap);
    this.#place(end);
    for (const [text, l] of labels)
      if (l.at === undefined) throw new Error(`protocol ${this.protocol.name}: ${name} has no label ${text}`);
    this.#depth--;
  }

  #operation(
    o: Operation,
    routine: string,
    labelOf: (name: string) => Label,
    end: Label,
    trap: Trap | undefined,
  ): void {
    const where: Where = {
      routine,
      text: describeOperation(o),
      ...(o.number === undefined ? {} : { number: o.number }),
    };
    const argument = (operand: Operand): Argument => this.#argument(operand, trap);
    switch (o.op) {
      case 'set':
        this.#emit({ kind: 'set', value: argument(o.value), register: this.#register(o.to) }, where);
        return;
      case 'calculate':
        this.#emit(
          {
            kind: 'calculate',
            left: argument(o.left),
            by: o.by,
            right: argument(o.right),
            register: this.#register(o.to),
          },
          where,
        );
        return;
      case 'load':
        this.#emit({ kind: 'load', register: this.#register(o.to), cell: this.#cell(o.word) }, where);
        return;
      case 'store':
        this.#emit({ kind: 'store', cell: this.#cell(o.word), value: argument(o.value) }, where);
        return;
      case 'fetch-add':
        if (o.old === undefined)
          this.#emit({ kind: 'add', cell: this.#cell(o.word), value: argument(o.value) }, where);
        else
          this.#emit(
            {
              kind: 'fetch-add',
              register: this.#register(o.old),
              cell: this.#cell(o.word),
              value: argument(o.value),
            },
            where,
          );
        return;
      case 'compare-swap':
        this.#emit(
          {
            kind: 'compare-swap',
            register: this.#register(o.old),
            cell: this.#cell(o.word),
            expected: argument(o.expected),
            desired: argument(o.desired),
          },
          where,
        );
        return;
      case 'fence':
        if (o.kind === 'full') this.#emit({ kind: 'full-fence' }, where);
        else if (o.kind === 'write') this.#emit({ kind: 'write-fence' }, where);
        return;
      case 'wait-until':
        this.#emit({ kind: 'wait', cell: this.#cell(o.word), test: o.test, value: argument(o.value) }, where);
        return;
      case 'write-text':
        this.#writeText(o, where, argument);
        return;
      case 'compare-text':
        this.#compareText(o, where, argument);
        return;
      case 'unlock-text':
      case 'lock-text':
        if (this.#hasLocks) this.#changeLock(o, where, argument);
        else if (o.op === 'unlock-text')
          this.#emit({ kind: 'set', register: this.#register(o.status), value: 0 }, where);
        return;
      case 'execute':
        for (const site of this.scenario.functions[o.function]) this.#execute(site, o.function);
        return;
      case 'emulate': {
        const { site, done } = insideTrap(trap, o);
        const at = this.#emit({ kind: 'emulate', site, code: argument(o.code) }, where);
        this.#nextTo(at, done);
        return;
      }
      case 'retry': {
        const at = this.#emit({ kind: 'jump' }, where);
        this.#instructions[at].next = insideTrap(trap, o).retry;
        return;
      }
      case 'sync-all': {
        const mask = this.#register(`(sync of ${routine})`);
        this.#emit({ kind: 'sync', register: mask }, where);
        this.#emit({ kind: 'sync-wait', register: mask }, where);
        return;
      }
      case 'call':
        this.#expand(o.routine, trap);
        return;
      case 'branch': {
        const at = this.#emit(
          {
            kind: 'branch',
            left: argument(o.left),
            test: o.test,
            right: argument(o.right),
            target: 0,
          },
          where,
        );
        this.#use(labelOf(o.to), (target) => {
          const i = this.#instructions[at];
          if (i.kind === 'branch') i.target = target;
        });
        return;
      }
      case 'jump':
        this.#nextTo(this.#emit({ kind: 'jump' }, where), labelOf(o.to));
        return;
      case 'return':
        this.#nextTo(this.#emit({ kind: 'jump' }, where), end);
        return;
      case 'label':
        this.#place(labelOf(o.name));
        return;
      case 'count': // nobody reads a statistic
      case 'read-clock':
      case 'note-longest':
      case 'sync-core': // a CPU sees its own stores to text as soon as they are made
        return;
    }
  }

  #writeText(
    o: Operation & { op: 'write-text' },
    where: Where,
    argument: (operand: Operand) => Argument,
  ): void {
    const at = argument(o.at);
    const code = argument(o.code);
    const status = this.#register(o.status);
    const done: Label = { at: undefined, uses: [] };
    const byte = this.#register('(bytes)');
    const isSpan = typeof o.length === 'string';
    const end = typeof o.length === 'string' ? Infinity : o.offset + o.length;
    this.#eachSite(at, code, isSpan ? argument(o.length) : undefined, where, (site, image) => {
      this.#checkAccess(site, 'write', image, status, where, done);
      for (const piece of [HEAD, TAIL]) {
        const from = piece === HEAD ? 0 : HEAD_SIZE;
        const to = piece === HEAD ? HEAD_SIZE : MCOUNT_INSN_SIZE;
        if (to <= o.offset || from >= end) continue;
        this.#emit({ kind: 'load-code', register: byte, code: image, piece }, where);
        if (this.#hasLocks) this.#checkLock(site, status, where, done);
        this.#emit({ kind: 'store-text', at: site, piece, value: -byte - 1 }, where);
      }
    });
    this.#emit({ kind: 'set', register: status, value: 0 }, where);
    this.#place(done);
  }

  /** Of each site of a span, up to one of which that is refused. */
  #changeLock(
    o: Operation & { op: 'unlock-text' | 'lock-text' },
    where: Where,
    argument: (operand: Operand) => Argument,
  ): void {
    const at = argument(o.at);
    const done: Label = { at: undefined, uses: [] };
    const status = this.#register(o.op === 'unlock-text' ? o.status : '(lock)');
    const value = o.op === 'unlock-text' ? 1 : 0;
    this.#eachSite(at, at, argument(o.length), where, (site) => {
      this.#checkAccess(site, 'unlock', BREAKPOINT_BUFFER, status, where, done);
      this.#emit({ kind: 'set-lock', at: site, value }, where);
    });
    this.#emit({ kind: 'set', register: status, value: 0 }, where);
    this.#place(done);
  }

  #checkLock(at: Argument, register: number, where: Where, failed: Label): void {
    const check = this.#emit({ kind: 'check-lock', at, register, target: 0 }, where);
    this.#use(failed, (target) => {
      const i = this.#instructions[check];
      if (i.kind === 'check-lock') i.target = target;
    });
  }

  #compareText(
    o: Operation & { op: 'compare-text' },
    where: Where,
    argument: (operand: Operand) => Argument,
  ): void {
    const at = argument(o.at);
    const code = argument(o.code);
    const result = this.#register(o.result);
    const seen = this.#register('(bytes)');
    const wanted = this.#register('(wanted)');
    const done: Label = { at: undefined, uses: [] };
    const differs: Label = { at: undefined, uses: [] };
    const length = o.length === undefined ? undefined : argument(o.length);
    this.#eachSite(at, code, length, where, (site, image) => {
      this.#checkAccess(site, 'read', image, result, where, done);
      for (const piece of [HEAD, TAIL]) {
        this.#emit({ kind: 'load-text', register: seen, at: site, piece }, where);
        this.#emit({ kind: 'load-code', register: wanted, code: image, piece }, where);
        this.#branch({ left: -seen - 1, test: 'not-equal', right: -wanted - 1 }, differs, where);
      }
    });
    this.#nextTo(this.#emit({ kind: 'set', register: result, value: 0 }, where), done);
    this.#place(differs);
    this.#emit({ kind: 'set', register: result, value: 1 }, where);
    this.#place(done);
  }

  /**
   * The sites of a span, one after the other, each with its part of the code buffer: here both are numbered. Without a length it is
   * one site.
   */
  #eachSite(
    at: Argument,
    code: Argument,
    length: Argument | undefined,
    where: Where,
    body: (site: Argument, image: Argument) => void,
  ): void {
    body(at, code);
    if (length === undefined) return;
    const end: Label = { at: undefined, uses: [] };
    const site = this.#register('(site)');
    const image = this.#register('(image)');
    // What lies between the first and the last of a series belongs to the region around it.
    const isSeries = this.scenario.isSeries === true;
    const longest = isSeries
      ? this.scenario.sites.length
      : Math.max(...this.#changes.map((c) => c.to.length));
    for (let done = 1; done < longest; done++) {
      this.#branch({ left: length, test: 'equal', right: done }, end, where);
      this.#emit({ kind: 'calculate', register: site, left: at, by: 'plus', right: done }, where);
      this.#emit({ kind: 'calculate', register: image, left: code, by: 'plus', right: done }, where);
      body(-site - 1, -image - 1);
    }
    this.#place(end);
  }

  #branch(
    condition: Pick<Instruction & { kind: 'branch' }, 'left' | 'test' | 'right'>,
    to: Label,
    where: Where,
  ): void {
    const branch = this.#emit({ kind: 'branch', ...condition, target: 0 }, where);
    this.#use(to, (target) => {
      const i = this.#instructions[branch];
      if (i.kind === 'branch') i.target = target;
    });
  }

  #checkAccess(
    at: Argument,
    access: 'read' | 'write' | 'unlock',
    code: Argument,
    register: number,
    where: Where,
    failed: Label,
  ): void {
    const check = this.#emit({ kind: 'check-access', at, access, code, register, target: 0 }, where);
    this.#use(failed, (target) => {
      const i = this.#instructions[check];
      if (i.kind === 'check-access') i.target = target;
    });
  }

  #execute(site: number, routine: string): void {
    const name = this.scenario.sites[site].name;
    const where = (what: string): Where => ({ routine, text: `${what} of site ${name}` });
    const done: Label = { at: undefined, uses: [] };
    const trapped: Label = { at: undefined, uses: [] };
    const fetched = this.#register('(fetched)');
    const start = this.#instructions.length;
    const live = this.protocol.thread !== undefined;
    const orders = live
      ? ([
          [HEAD, TAIL],
          [TAIL, HEAD],
        ] as const)
      : ([[HEAD, TAIL]] as const);
    for (const [first, second] of orders) {
      const one = this.#emit(
        { kind: 'fetch-first', site, piece: first, register: fetched, alternative: 0, trap: 0 },
        where(`fetch the ${first === HEAD ? 'head' : 'tail'}`),
      );
      const two = this.#emit(
        { kind: 'fetch-second', site, piece: second, first: -fetched - 1, trap: 0 },
        where(`fetch the ${second === HEAD ? 'head' : 'tail'}`),
      );
      this.#nextTo(two, done);
      for (const at of [one, two])
        this.#use(trapped, (target) => {
          const i = this.#instructions[at];
          if (i.kind === 'fetch-first' || i.kind === 'fetch-second') i.trap = target;
        });
    }
    const head = this.#instructions[start];
    if (live && head.kind === 'fetch-first') head.alternative = start + 2;
    if (this.protocol.trap !== undefined) {
      this.#place(trapped);
      this.#expand(this.protocol.trap, { site, retry: start, done });
    } else {
      for (const use of trapped.uses) use(0);
    }
    this.#place(done);
  }

  #argument(operand: Operand, trap: Trap | undefined): Argument {
    if (typeof operand === 'number') return foldWord(operand);
    if (operand === BREAKPOINT) return BREAKPOINT_BUFFER;
    if (operand === SKIP) return this.#bufferOf(NOP);
    if (operand === TRAPPED_IP) return insideTrap(trap, operand).site + 1;
    return -this.#register(operand) - 1;
  }

  #register(name: string): number {
    let found = this.#registers.get(name);
    if (found === undefined) this.#registers.set(name, (found = this.#registers.size));
    return found;
  }

  #cell(word: string): number {
    const found = this.#cellOf.get(word);
    if (found === undefined)
      throw new Error(`protocol ${this.protocol.name} has no word ${word} to read or write`);
    return found;
  }

  #bufferOf(image: Image): number {
    const found = this.#buffers.findIndex((b) => b?.name === image.name);
    if (found > 0) return found;
    this.#bufferPieces.push(this.#piecesOf(image));
    return this.#buffers.push(image) - 1;
  }

  /** Code buffers that follow each other, for a span; each site's part is numbered. */
  #buffersOf(images: readonly Image[]): number {
    if (images.length === 1) return this.#bufferOf(images[0]);
    const first = this.#buffers.length;
    for (const image of images) {
      this.#bufferPieces.push(this.#piecesOf(image));
      this.#buffers.push(image);
    }
    return first;
  }

  #piecesOf(image: Image): readonly [number, number] {
    const [head, tail] = pieceBytes(image);
    return [this.#pieceNumber(head), this.#pieceNumber(tail)];
  }

  #pieceNumber(bytes: readonly number[]): number {
    const found = this.#pieces.findIndex(
      (p) => p.length === bytes.length && p.every((b, i) => b === bytes[i]),
    );
    return found > 0 ? found : this.#pieces.push(bytes) - 1;
  }

  #emit(draft: Draft, where: Where): number {
    const at = this.#instructions.length;
    this.#instructions.push({ ...draft, next: at + 1, where });
    return at;
  }

  #nextTo(at: number, l: Label): void {
    this.#use(l, (target) => {
      this.#instructions[at].next = target;
    });
  }

  #use(l: Label, use: (at: number) => void): void {
    if (l.at !== undefined) use(l.at);
    else l.uses.push(use);
  }

  #place(l: Label): void {
    l.at = this.#instructions.length;
    for (const use of l.uses) use(l.at);
    l.uses.length = 0;
  }
}

/** A change of several sites as one change of each: what cannot be done to all may be done to some. */
function bySites({ sites }: Scenario): (change: Change) => readonly Change[] {
  return (change) =>
    change.to.length === 1
      ? [change]
      : change.to.map((to, i) => {
          const site = change.site + i;
          const isProtected = !allows(sites[site].page, 'write', false);
          return { site, from: [change.from[i]], to: [to], result: isProtected ? change.result : 0 };
        });
}

function insideTrap(trap: Trap | undefined, what: unknown): Trap {
  if (trap === undefined) throw new Error(`${JSON.stringify(what)} stands outside a trap handler`);
  return trap;
}
