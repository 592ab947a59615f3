// Windows, blocks and longer entries as they are kept: little for each, and the rest is found in the file when it is asked for. There may be 10^6.
import type { ElfFile } from '../elf/index.js';
import { describeRun } from './displaced.js';
import type { ExitBlock, ExitKind, ExitMark, ExitWindow, FunctionExits } from './exit-sites.js';
import { SITE_LENGTH, type DisplacedInstruction, type SiteCandidate } from './sites.js';

/** Instructions of a file, from one index up to another. */
class Run {
  constructor(
    protected readonly elf: ElfFile,
    protected readonly base: number,
    readonly originalAt: number,
    readonly end: number,
  ) {}

  get addressNumber(): number {
    return this.base + this.originalAt;
  }

  get original(): Uint8Array {
    return this.elf.bytes.subarray(this.originalAt, this.end);
  }

  /** Who makes a run has seen that it can be described. */
  get displaced(): readonly DisplacedInstruction[] {
    const displaced = describeRun(this.elf.bytes, this.originalAt, this.end, this.base);
    return typeof displaced === 'string' ? [] : displaced;
  }
}

export class Window extends Run implements ExitWindow {
  constructor(
    elf: ElfFile,
    base: number,
    start: number,
    end: number,
    readonly displacedCount: number,
    readonly form: ExitWindow['form'],
    readonly exits: readonly ExitMark[],
  ) {
    super(elf, base, start, end);
  }

  get displacedLength(): number {
    return Math.max(this.end - this.originalAt, SITE_LENGTH);
  }
}

/** Where nothing of it may fault. */
export class Block extends Run implements ExitBlock {
  readonly depth = 0;

  constructor(
    elf: ElfFile,
    base: number,
    start: number,
    end: number,
    readonly kind: ExitKind,
  ) {
    super(elf, base, start, end);
  }
}

/** What the site at the entry displaces, and what stands behind that up to an index. */
export class LongerEntry implements NonNullable<FunctionExits['entry']> {
  constructor(
    private readonly elf: ElfFile,
    private readonly candidate: SiteCandidate,
    private readonly end: number,
    readonly displacedCount: number,
  ) {}

  get displacedLength(): number {
    return this.end - this.candidate.originalAt;
  }

  get displaced(): readonly DisplacedInstruction[] {
    const { elf, candidate } = this;
    const { originalAt, addressNumber, displacedLength } = candidate;
    const more = new Run(elf, addressNumber - originalAt, originalAt + displacedLength, this.end).displaced;
    const further = more.map((one) => ({ ...one, offset: one.offset + displacedLength }));
    return [...candidate.displaced, ...further];
  }
}

/** Where something of it may fault: nothing is displaced, those that jump there record before. */
export function earlyBlock(addressNumber: number, kind: ExitKind, depth: number): ExitBlock {
  return { addressNumber, original: new Uint8Array(0), displaced: [], kind, depth };
}

/** Most functions have few: nothing is kept for what is not there. */
export const NO_MARKS: readonly ExitMark[] = [];
export const NO_WINDOWS: readonly ExitWindow[] = [];

/** Marks that are nothing but a number and a kind, by both: most are. */
const MARKS = new Map<ExitKind, ExitMark[]>([
  ['return', []],
  ['tail', []],
]);

export function markOf(index: number, kind: ExitKind): ExitMark {
  const marks = MARKS.get(kind) ?? [];
  return (marks[index] ??= { index, kind });
}
