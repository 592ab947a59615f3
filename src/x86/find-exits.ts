// Where functions are left, and which bytes are overwritten for it. Five bytes are wanted, ending in the exit or in filling behind it, and
// nothing may land within. Where an exit has no room, as others jump close before it (`pop rbp; ret` at the end of many paths), its
// last instructions are a *block* that is given to each of its predecessors: their stubs execute a copy of it, and the block itself
// stays as it is, reached by nobody.
import type { ElfFile } from '../elf/index.js';
import { Trait } from './code-ranges.js';
import { Mark } from './code-regions.js';
import { common } from './common-instructions.js';
import { LINKAGE_ENTRY_BYTES, describeRun, linkageJump } from './displaced.js';
import type { ExitBlock, ExitKind, ExitMark, ExitRefusal, ExitWindow, FunctionExits } from './exit-sites.js';
import { Block, LongerEntry, NO_MARKS, NO_WINDOWS, Window, earlyBlock, markOf } from './exit-windows.js';
import { Flow, endsFlow } from './flow.js';
import { branchTarget, decodeFlow, isPrefix } from './instruction-flow.js';
import type { ModuleLandings } from './landings.js';
import { mayFault, takesLong } from './may-fault.js';
import { SITE_LENGTH, type SiteCandidate } from './sites.js';

const RET = 0xc3;
const RET_IMM16 = 0xc2;
const INT3 = 0xcc;
const JMP_INDIRECT = 0xff;
/** ModRM of `jmp *disp32(%rip)`. */
const RIP_RELATIVE_JMP = 0x25;
const JCC_LONG_LENGTH = 6;
/** Instructions that are displaced on either side of one: five bytes are two as a rule. */
const MOST_BESIDE = 8;
/** Blocks are copied to each predecessor. */
const LONGEST_BLOCK = 32;

/** An instruction; indices are into the bytes of the file. */
interface Step {
  readonly start: number;
  readonly end: number;
  readonly flow: Flow;
  readonly isNop: boolean;
  /** How it leaves the function, if it does. */
  readonly exit: ExitKind | undefined;
  /** Address to which it jumps, if it is a direct jump. */
  readonly target: number | undefined;
  /** May stand in a stub, as far as its flow goes. */
  readonly isMovable: boolean;
}

/** Steps of one part, displaced together: from one number up to another. */
interface Range {
  readonly from: number;
  to: number;
  /** By the site at the entry. */
  readonly isEntry: boolean;
  /** Behind it an exit follows, which is recorded before what may fault. */
  early?: EarlyEnd;
}

/** How an exit is recorded before it is reached. */
type EarlyEnd = Pick<ExitBlock, 'kind' | 'depth'>;

/** A contiguous piece of a function. */
class Part {
  readonly steps: Step[] = [];
  readonly ranges: Range[] = [];

  constructor(
    /** Number among those of the file. */
    readonly range: number,
    readonly first: number,
    readonly limit: number,
    /** What an index into the file lacks to be an address. */
    readonly base: number,
  ) {}

  /** Number of the step that begins at an address; -1: none does. */
  stepAt(address: number): number {
    const start = address - this.base;
    let low = 0;
    let high = this.steps.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.steps[middle].start < start) low = middle + 1;
      else high = middle;
    }
    return low < this.steps.length && this.steps[low].start === start ? low : -1;
  }

  rangeOf(step: number): Range | undefined {
    return this.ranges.find(({ from, to }) => step >= from && step < to);
  }
}

/** A range of code that belongs to a function. */
interface CodeRange {
  /** Number among those of the file. */
  readonly range: number;
  readonly addressNumber: number;
  readonly size: number;
}

/** Traits of a range of which it is not known where all exits are, or what the stack is like there. */
const REFUSED: readonly (readonly [trait: number, why: ExitRefusal])[] = [
  [Trait.undecodable | Trait.openJump, 'computed-jump'],
  [Trait.fallsThrough, 'falls-through'],
  [Trait.enteredInside | Trait.leavesInside, 'landing'],
  [Trait.oddStack | Trait.ownReturn, 'odd-stack'],
];

/** Finds where functions of one file are left. */
export class ExitFinder {
  readonly #elf: ElfFile;
  readonly #landings: ModuleLandings;
  /** Ranges by the function that they are fragments of, as indexes. */
  readonly #fragments = new Map<number, number[]>();
  /** Kinds of indirect jumps by their addresses. */
  readonly #jumpKinds = new Map<number, string>();

  constructor(elf: ElfFile, landings: ModuleLandings) {
    this.#elf = elf;
    this.#landings = landings;
    landings.ranges.owners.forEach((owner, index) => {
      if (owner === index) return;
      const others = this.#fragments.get(owner);
      if (others === undefined) this.#fragments.set(owner, [index]);
      else others.push(index);
    });
    landings.indirect.forEach(({ address }, i) => {
      this.#jumpKinds.set(address, landings.jumpKinds[i]);
    });
  }

  /** All exits of a function whose site at the entry is known. */
  find(candidate: SiteCandidate): FunctionExits | ExitRefusal {
    const { ranges } = this.#landings;
    const index = ranges.startingAt(candidate.function.addressNumber);
    if (index < 0) return 'landing';
    const parts = [index, ...(this.#fragments.get(index) ?? [])];
    for (const part of parts) for (const [trait, why] of REFUSED) if (ranges.has(part, trait)) return why;
    const code = parts.map((part) => ({
      range: part,
      addressNumber: ranges.starts[part],
      size: ranges.ends[part] - ranges.starts[part],
    }));
    return new OneFunction(this.#elf, this.#landings, this.#jumpKinds, candidate, code).find();
  }
}

class OneFunction {
  readonly #parts: Part[] = [];
  /** The steps that jump to an address. */
  readonly #sources = new Map<number, { readonly part: Part; readonly step: number }[]>();
  /** Blocks by the address at which they begin. */
  readonly #blocks = new Map<number, ExitBlock>();
  #entry: { readonly part: Part; readonly range: Range } | undefined;
  #labels: boolean | undefined;

  constructor(
    private readonly elf: ElfFile,
    private readonly landings: ModuleLandings,
    private readonly jumpKinds: ReadonlyMap<number, string>,
    private readonly candidate: SiteCandidate,
    private readonly ranges: readonly CodeRange[],
  ) {}

  find(): FunctionExits | ExitRefusal {
    const refusal = this.#decode();
    if (refusal !== undefined) return refusal;
    for (const part of this.#parts) {
      for (let step = 0; step < part.steps.length; step++) {
        if (part.steps[step].exit === undefined) continue;
        const why = this.#cover(part, step) ? undefined : this.#giveToPredecessors(part, step);
        if (why !== undefined && !this.#recordEarly(part, step)) return why;
      }
    }
    const windows: ExitWindow[] = [];
    for (const part of this.#parts) {
      for (const range of part.ranges) {
        if (range.isEntry) continue;
        const window = this.#windowOf(part, range);
        if (window === undefined) return 'no-room';
        windows.push(window);
      }
    }
    const entry = this.#longerEntry();
    if (entry === null) return 'no-room';
    const entryExits = this.#entryMarks(entry?.displaced ?? this.candidate.displaced);
    return {
      entry,
      entryExits: entryExits.length === 0 ? NO_MARKS : entryExits,
      windows: windows.length === 0 ? NO_WINDOWS : windows,
    };
  }

  #decode(): ExitRefusal | undefined {
    const { bytes } = this.elf;
    for (const { range, addressNumber, size } of this.ranges) {
      const first = this.elf.codeOffset(addressNumber, size);
      if (first < 0) return 'falls-through';
      const part = new Part(range, first, first + size, addressNumber - first);
      this.#parts.push(part);
      for (let start = first, end = first; start < part.limit; start = end) {
        decodeFlow(bytes, start, part.limit);
        const { flow, isNop } = common;
        end = common.end;
        if (flow === Flow.invalid || end > part.limit) return 'falls-through';
        const isDirect = flow === Flow.jump || flow === Flow.conditionalJump;
        const target = isDirect ? part.base + branchTarget(bytes, start, end) : undefined;
        const exit = this.#exitOf(start, part.base, flow, target);
        if (exit === 'odd') return 'computed-jump';
        const isMovable = flow === Flow.next || flow === Flow.leaRelative || isDirect || exit !== undefined;
        if (target !== undefined && exit === undefined) {
          const sources = this.#sources.get(target) ?? [];
          sources.push({ part, step: part.steps.length });
          this.#sources.set(target, sources);
        }
        part.steps.push({ start, end, flow, isNop, exit, target, isMovable });
      }
      this.#findEntry(part);
      const last = part.steps.findLast(({ isNop }) => !isNop);
      // A call at the end does not come back.
      if (last === undefined || !(endsFlow(last.flow) || last.flow === Flow.call)) return 'falls-through';
    }
    return undefined;
  }

  /** Notes which steps the site at the entry displaces, if they are of that part. */
  #findEntry(part: Part): void {
    const { addressNumber, displacedLength } = this.candidate;
    const from = part.stepAt(addressNumber);
    if (from < 0) return;
    const end = addressNumber + displacedLength - part.base;
    let to = from;
    while (to < part.steps.length && part.steps[to].start < end) to++;
    const range = { from, to, isEntry: true };
    part.ranges.push(range);
    this.#entry = { part, range };
  }

  /** `odd`: perhaps. */
  #exitOf(start: number, base: number, flow: Flow, target: number | undefined): ExitKind | 'odd' | undefined {
    const { bytes } = this.elf;
    if (target !== undefined) {
      const isInside = this.ranges.some(
        ({ addressNumber, size }) => target >= addressNumber && target < addressNumber + size,
      );
      if (isInside) return undefined;
      return this.#isEntry(target) || this.#isLinkage(target) ? 'tail' : 'odd';
    }
    if (flow !== Flow.end && flow !== Flow.indirectJump) return undefined;
    let at = start;
    while (isPrefix(bytes[at])) at++;
    if (flow === Flow.end) return bytes[at] === RET || bytes[at] === RET_IMM16 ? 'return' : undefined;
    if (bytes[at] !== JMP_INDIRECT) return 'odd';
    if (bytes[at + 1] === RIP_RELATIVE_JMP) return 'tail';
    // A table's jumps stay within; what is in a register, or at a known place, may do either.
    const kind = this.jumpKinds.get(base + start);
    if (kind === 'table') return undefined;
    return kind === undefined || kind === 'open' || this.#hasLabels() || hasIndex(bytes, at + 1)
      ? 'odd'
      : 'tail';
  }

  /** True if a function begins there that is no part of another. */
  #isEntry(address: number): boolean {
    const { ranges } = this.landings;
    const index = ranges.startingAt(address);
    return index >= 0 && !ranges.has(index, Trait.fragment);
  }

  /** True if what stands there is an entry of the procedure linkage table: nothing but a jump through a slot that the loader fills. */
  #isLinkage(address: number): boolean {
    const at = this.elf.codeOffset(address, LINKAGE_ENTRY_BYTES);
    return at >= 0 && linkageJump(this.elf.bytes, at) >= 0;
  }

  /** True if something lands there that is no direct jump of this function's. */
  #landsOtherwise(from: number, to: number): boolean {
    return (this.landings.regions.marksWithin(from, to) & (Mark.foreign | Mark.called)) !== 0;
  }

  /** True if somebody knows an address within the function: a computed jump may stay in it. */
  #hasLabels(): boolean {
    this.#labels ??= this.ranges.some(({ addressNumber, size }, i) =>
      this.#landsOtherwise(addressNumber + (i === 0 ? 1 : 0), addressNumber + size),
    );
    return this.#labels;
  }

  /** True if something lands on a step. */
  #isLanded(part: Part, step: number): boolean {
    const { start, end } = part.steps[step];
    return this.landings.landsWithin(part.base + start, part.base + end);
  }

  /** True if the stub of the entry, or of a range that is chosen already, executes a step. */
  #isTaken(part: Part, step: number): boolean {
    return part.rangeOf(step) !== undefined;
  }

  /** True if a step may stand in a stub: there it must not fault. */
  #canMove(part: Part, step: number): boolean {
    const { bytes } = this.elf;
    const { start, end, isMovable } = part.steps[step];
    if (!isMovable) return false;
    const rare = decodeFlow(bytes, start, end);
    const hasFrame = (): boolean => this.landings.depths.hasFramePointer(part.range, part.base + start);
    return !mayFault(bytes, start, rare, hasFrame);
  }

  /** Chooses steps around one that are to be displaced. False: there is no room. */
  #cover(part: Part, step: number): boolean {
    if (this.#isTaken(part, step)) return true;
    const { steps } = part;
    const { start, end, flow } = steps[step];
    if (!this.#canMove(part, step)) return false;
    if (flow === Flow.conditionalJump && end - start === JCC_LONG_LENGTH) {
      part.ranges.push({ from: step, to: step + 1, isEntry: false });
      return true;
    }
    const behind = endsFlow(steps[step].flow) ? this.#paddingEnd(part, end) : end;
    let from = step;
    for (;;) {
      if (behind - steps[from].start >= SITE_LENGTH) {
        part.ranges.push({ from, to: step + 1, isEntry: false });
        return true;
      }
      // What something lands on can begin what is overwritten, and be no other part of it.
      if (from === 0 || step - from >= MOST_BESIDE || this.#isLanded(part, from)) break;
      if (!this.#canGoBefore(part, from)) break;
      from--;
    }
    if (!this.#isLanded(part, from) && this.#goOn(part, from, step + 1)) return true;
    if (endsFlow(steps[step].flow)) return false;
    for (let to = step + 1; to < steps.length && to - step < MOST_BESIDE; to++) {
      if (!this.#canMove(part, to) || this.#isLanded(part, to) || this.#isTaken(part, to)) return false;
      if (steps[to].end - steps[from].start < SITE_LENGTH) {
        if (endsFlow(steps[to].flow)) return false;
        continue;
      }
      part.ranges.push({ from, to: to + 1, isEntry: false });
      return true;
    }
    return false;
  }

  /** Has a range that ends before a step go on up to another. False: there is none, or its stub does not come back. */
  #goOn(part: Part, from: number, to: number): boolean {
    const before = from === 0 ? undefined : part.rangeOf(from - 1);
    if (before?.to !== from || before.early !== undefined || !comesBack(part.steps[from - 1])) return false;
    before.to = to;
    return true;
  }

  /** True if the step before one may be displaced together with it. */
  #canGoBefore(part: Part, step: number): boolean {
    return (
      this.#canMove(part, step - 1) && !endsFlow(part.steps[step - 1].flow) && !this.#isTaken(part, step - 1)
    );
  }

  /** The exit and what stands before it, from where others jump to on, is executed by those instead. */
  #giveToPredecessors(part: Part, exit: number): ExitRefusal | undefined {
    const { steps, base } = part;
    let first = exit;
    while (!this.#isLanded(part, first)) {
      if (first === 0 || !this.#canGoBefore(part, first) || exit - first >= MOST_BESIDE) return 'no-room';
      first--;
      if (steps[first].flow === Flow.conditionalJump) return 'no-room';
    }
    const address = base + steps[first].start;
    const { end, exit: kind } = steps[exit];
    if (kind === undefined || !this.#canMove(part, exit) || steps[exit].flow === Flow.conditionalJump)
      return 'no-room';
    const landed = steps.slice(first + 1, exit + 1).some((_, i) => this.#isLanded(part, first + 1 + i));
    if (landed || end - steps[first].start > LONGEST_BLOCK) return 'landing';
    // Somebody may come who is no jump of this function's: a table, an address in data, a call.
    if (this.#landsOtherwise(address, address + 1) || address === this.candidate.function.addressNumber)
      return 'landing';
    const displaced = describeRun(this.elf.bytes, steps[first].start, end, base);
    if (typeof displaced === 'string') return 'no-room';
    this.#blocks.set(address, new Block(this.elf, base, steps[first].start, end, kind));
    for (const source of this.#sources.get(address) ?? [])
      if (!this.#cover(source.part, source.step)) return 'no-room';
    if (first === 0) return undefined;
    const before = steps[first - 1];
    if (endsFlow(before.flow)) return undefined;
    if (this.#isTaken(part, first - 1)) {
      // What is taken already goes on behind: it would have to end right here.
      return this.#extend(part, first, exit);
    }
    return this.#coverThrough(part, first, exit) ? undefined : 'no-room';
  }

  /** The range in which the step before the block stands ends there, and goes on through the block. */
  #extend(part: Part, first: number, exit: number): ExitRefusal | undefined {
    const range = part.rangeOf(first - 1);
    if (range === undefined || part.steps[first].start - part.steps[range.from].start < SITE_LENGTH)
      return 'no-room';
    return this.#goOn(part, first, exit + 1) ? undefined : 'no-room';
  }

  /** Displaces what falls into the block, together with the block: what is overwritten ends before it. */
  #coverThrough(part: Part, first: number, exit: number): boolean {
    const { steps } = part;
    for (let from = first - 1; ; from--) {
      const step = steps[from];
      if (!this.#canMove(part, from) || endsFlow(step.flow) || this.#isTaken(part, from)) return false;
      if (steps[first].start - step.start >= SITE_LENGTH) {
        part.ranges.push({ from, to: exit + 1, isEntry: false });
        return true;
      }
      if (from === 0 || first - from >= MOST_BESIDE || this.#isLanded(part, from)) return false;
    }
  }

  /**
   * What may fault right before an exit, and an exit that may fault itself, stay where they are: the exit is recorded before those. Nobody
   * jumps in between.
   *
   *     xor %edx, %edx             displaced: five bytes at least
   *     mov %rsi, %rax             behind it the exit is recorded, and the stub goes back
   *     mov %rdx, 8(%rdi)          stays
   *     ret
   */
  #recordEarly(part: Part, exit: number): boolean {
    const { steps } = part;
    if (steps[exit].flow === Flow.conditionalJump) return false;
    for (let first = exit; first > 0 && exit - first < MOST_BESIDE; first--) {
      const { flow, start, end } = steps[first];
      if (first !== exit && flow !== Flow.next && flow !== Flow.leaRelative) return false;
      if (first !== exit && takesLong(this.elf.bytes, start)) return false;
      if (this.#isTaken(part, first)) return false;
      const { base, range } = part;
      const depth = this.landings.depths.pushedAt(range, base + start);
      const { exit: kind } = steps[exit];
      if (depth === undefined || depth < 0 || kind === undefined) return false;
      const early = { kind, depth };
      if (!this.#isLanded(part, first)) {
        if (this.#coverBefore(part, first, early)) return true;
        continue;
      }
      const address = base + start;
      if (this.landings.landsWithin(address + 1, base + end)) return false;
      if (this.#landsOtherwise(address, address + 1)) return false;
      this.#blocks.set(address, earlyBlock(address, kind, depth));
      for (const source of this.#sources.get(address) ?? [])
        if (!this.#cover(source.part, source.step)) return false;
      return endsFlow(steps[first - 1].flow) || this.#coverBefore(part, first, early);
    }
    return false;
  }

  /** Has an exit recorded by what is displaced right before a step. */
  #coverBefore(part: Part, to: number, early: EarlyEnd): boolean {
    const { steps } = part;
    const before = part.rangeOf(to - 1);
    if (before !== undefined) {
      if (before.to !== to || before.early !== undefined || !comesBack(steps[to - 1])) return false;
      before.early = early;
      return true;
    }
    for (let from = to; this.#canGoBefore(part, from);) {
      from--;
      if (steps[to].start - steps[from].start >= SITE_LENGTH) {
        part.ranges.push({ from, to, isEntry: false, early });
        return true;
      }
      if (from === 0 || to - from >= MOST_BESIDE || this.#isLanded(part, from)) return false;
    }
    return false;
  }

  /** Where the filling behind an exit ends, which nobody executes; within reach. */
  #paddingEnd({ base, limit }: Part, at: number): number {
    const { bytes } = this.elf;
    let end = at;
    while (end < at + SITE_LENGTH) {
      if (this.landings.landsWithin(base + end, base + end + 1)) return end;
      if (this.landings.startsWithin(base + end, base + end + 1)) return end;
      if (this.elf.codeOffset(base + end, 1) < 0) return end;
      if (bytes[end] === INT3) end++;
      else {
        decodeFlow(bytes, end, Math.max(limit, end + 16));
        if (!common.isNop || this.landings.landsWithin(base + end, base + common.end)) return end;
        end = common.end;
      }
    }
    return end;
  }

  /** How a step leaves the function, by itself or by a block that it leads to. */
  #markOf(step: Step, index: number): ExitMark | undefined {
    if (step.exit !== undefined) return markOf(index, step.exit);
    const block = step.target === undefined ? undefined : this.#blocks.get(step.target);
    return block === undefined ? undefined : { index, kind: block.kind, block };
  }

  #windowOf(part: Part, { from, to, early }: Range): ExitWindow | undefined {
    const { steps, base } = part;
    const { start, end: firstEnd, flow } = steps[from];
    const { end } = steps[to - 1];
    const displaced = describeRun(this.elf.bytes, start, end, base);
    if (typeof displaced === 'string') return undefined;
    const exits: ExitMark[] = [];
    for (let step = from; step < to; step++) {
      const mark = this.#markOf(steps[step], step - from);
      if (mark !== undefined) exits.push(mark);
    }
    if (early !== undefined) exits.push({ index: displaced.length, ...early });
    const isBranch =
      early === undefined &&
      to === from + 1 &&
      flow === Flow.conditionalJump &&
      firstEnd - start === JCC_LONG_LENGTH;
    return new Window(this.elf, base, start, end, displaced.length, isBranch ? 'branch' : 'jump', exits);
  }

  /** What the site at the entry displaces, if it goes on further than it must; null: it cannot. */
  #longerEntry(): FunctionExits['entry'] | null {
    const { candidate } = this;
    if (this.#entry === undefined) return undefined;
    const { part, range } = this.#entry;
    const end = candidate.originalAt + candidate.displacedLength;
    const newEnd = part.steps[range.to - 1].end;
    if (newEnd <= end) return undefined;
    const more = describeRun(this.elf.bytes, end, newEnd, part.base);
    if (typeof more === 'string') return null;
    return new LongerEntry(this.elf, candidate, newEnd, candidate.displacedCount + more.length);
  }

  #entryMarks(displaced: SiteCandidate['displaced']): ExitMark[] {
    const marks: ExitMark[] = [];
    if (this.#entry === undefined) return marks;
    const { part, range } = this.#entry;
    for (const step of part.steps.slice(range.from, range.to)) {
      const offset = step.start - this.candidate.originalAt;
      const index = displaced.findIndex((one) => one.offset === offset);
      const mark = index < 0 ? undefined : this.#markOf(step, index);
      if (mark !== undefined) marks.push(mark);
    }
    if (range.early !== undefined) marks.push({ index: displaced.length, ...range.early });
    return marks;
  }
}

/** True if the memory operand with that ModRM has an index: Intel SDM, vol. 2, table 2-3. */
function hasIndex(bytes: Uint8Array, modrmAt: number): boolean {
  const modrm = bytes[modrmAt];
  const isMemory = modrm >> 6 !== 3;
  const hasSib = isMemory && (modrm & 7) === 4;
  const NO_INDEX = 4;
  return hasSib && ((bytes[modrmAt + 1] >> 3) & 7) !== NO_INDEX;
}

/** False of a call, which is executed as a jump to the callee. */
function comesBack(step: Step): boolean {
  return !endsFlow(step.flow) && step.flow !== Flow.call && step.flow !== Flow.indirectCall;
}
