// Who can land where in the code of a file: one answer for all of it, whatever was asked for.
import { UnwindTable, lowerBound, type ElfFile } from '../elf/index.js';
import { CodeRanges, Trait } from './code-ranges.js';
import { CodeRegions, Mark } from './code-regions.js';
import { judgeJumps, type JumpKind } from './computed-jumps.js';
import { findFragments } from './fragments.js';
import { withSharedDecoders } from './instruction-flow.js';
import type { FunctionRange } from './sites.js';
import { StackDepths } from './stack-depths.js';
import { scanCode, sweep, type IndirectJump, type LeavingJump } from './sweep.js';

const LAND = Mark.landing | Mark.known | Mark.foreign;

/**
 * Where code of a file may be entered. Made from the whole file before anything is patched, in this order:
 *
 * 1. near branches at every byte, and 32-bit addresses where code has a fixed place (`scanCode`)
 * 2. addresses that the loader writes, words of data where code has a fixed place, symbols, the entry point, landing pads
 * 3. a sweep over all code: its direct branches, short ones too, and `lea`
 * 4. which ranges are fragments of others, and jumps between functions
 * 5. indirect jumps, each alone, with the tables that they read
 *
 * `Mark.landing` is the conservative answer, for what must not break. `Mark.known` is the likely one, for what must be complete.
 */
export class ModuleLandings {
  readonly regions: CodeRegions;
  readonly ranges: CodeRanges;
  readonly depths: StackDepths;
  readonly leaving: readonly LeavingJump[];
  readonly indirect: readonly IndirectJump[];
  /** Of each of `indirect`. */
  readonly jumpKinds: readonly JumpKind[];

  private constructor(elf: ElfFile, functions: readonly FunctionRange[]) {
    const regions = new CodeRegions(elf);
    this.regions = regions;
    const unwind = new UnwindTable(elf);
    this.ranges = new CodeRanges(regions, functions, unwind);
    const isFixed = elf.type === 'executable';
    scanCode(regions, isFixed);
    markAddresses(elf, regions, functions, isFixed);
    unwind.forEachLandingPad((pad) => {
      regions.mark(pad, LAND);
    });
    const { leaving, indirect } = sweep(elf, regions, this.ranges, unwind, isFixed);
    this.leaving = leaving;
    this.indirect = indirect;
    this.depths = new StackDepths(regions, this.ranges, unwind);
    findFragments(
      regions,
      this.ranges,
      unwind,
      this.depths,
      leaving,
      (index) => functions[index].kind === 'fragment',
    );
    this.jumpKinds = judgeJumps(elf, regions, this.ranges, this.depths, indirect);
  }

  /** `functions`: all that are known of the file, ascending by address. */
  static of(elf: ElfFile, functions: readonly FunctionRange[]): ModuleLandings {
    return withSharedDecoders(() => new ModuleLandings(elf, functions));
  }

  /** True if something may land at an address from `from` up to below `to`. */
  landsWithin(from: number, to: number): boolean {
    return (this.regions.marksWithin(from, to) & Mark.landing) !== 0;
  }

  /** True if a function, or a part of one, begins at an address from `from` up to below `to`. */
  startsWithin(from: number, to: number): boolean {
    const { starts } = this.ranges;
    return starts[lowerBound(starts, from)] < to;
  }

  /** Index of the first range that begins at or behind an address. */
  firstRangeFrom(address: number): number {
    return lowerBound(this.ranges.starts, address);
  }

  /** What is known of the range at an address: `Trait` bits; 0 where none begins. */
  traitsAt(address: number): number {
    const index = this.ranges.startingAt(address);
    return index < 0 ? 0 : this.ranges.traits[index];
  }

  /** Whether a function computes a jump whose targets are not all known. */
  hasOpenJump(address: number): boolean {
    return (this.traitsAt(address) & Trait.openJump) !== 0;
  }
}

function markAddresses(
  elf: ElfFile,
  regions: CodeRegions,
  functions: readonly FunctionRange[],
  isFixed: boolean,
): void {
  for (const pointer of elf.relocatedPointers) regions.mark(pointer, LAND | Mark.called);
  for (const { addressNumber } of functions) regions.mark(addressNumber, LAND);
  for (const { addressNumber, table } of elf.symbols)
    regions.mark(addressNumber, table === 'dynsym' ? LAND | Mark.called : LAND);
  regions.mark(Number(elf.entry), LAND | Mark.called);
  if (!isFixed || regions.list.length === 0) return;
  const first = regions.list[0].start;
  const last = regions.list[regions.list.length - 1].end;
  for (const segment of elf.loaded) {
    const { executable, addressNumber, fileSize } = segment;
    // Words within code are found by the scan of code.
    if (executable || fileSize < 8) continue;
    const bytes = elf.segmentBytes(segment);
    if (bytes === undefined) continue;
    const skew = -addressNumber & 3;
    const words = wordsOf(bytes, skew);
    for (let i = 0; i + 1 < words.length; i++) {
      const word = words[i];
      if (word >= first && word < last && words[i + 1] === 0) regions.mark(word, LAND | Mark.called);
    }
  }
}

/** The 32-bit words of bytes from `skew` on; a copy where they do not lie as the processor wants them. */
function wordsOf(bytes: Uint8Array, skew: number): Uint32Array {
  const count = Math.floor((bytes.length - skew) / 4);
  const at = bytes.byteOffset + skew;
  if (at % 4 === 0) return new Uint32Array(bytes.buffer, at, count);
  return new Uint32Array(bytes.slice(skew, skew + count * 4).buffer);
}
