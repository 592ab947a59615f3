import { lowerBound, type ElfFile } from '../elf/index.js';
import { AddressSet } from './address-set.js';
import { common } from './common-instructions.js';
import { Flow } from './flow.js';
import { branchTarget, decodeFlow, int32At } from './instruction-flow.js';
import { jumpTableTargets } from './jump-tables.js';
import type { FunctionRange } from './sites.js';

/** Bounds on following jumps into code that no symbol covers. A fragment of a function is far smaller. */
const LONGEST_UNNAMED = 64 * 1024;
const MOST_UNNAMED = 2 * 1024 * 1024;

/** `f.cold`, `f.cold.1`. */
const COLD = /\.cold(?:\.\d+)*$/;

/** What a sweep over all instructions of a function found. */
export interface SweptFunction {
  /** False if some bytes are no instruction. */
  readonly decodable: boolean;
  /** False if a switch's jump table could not be found. */
  readonly tablesFound: boolean;
  /** True if the function, or a fragment of it, jumps to its own entry or to the site. */
  readonly reentered: boolean;
}

/**
 * Where code jumps to, for the functions that were swept, their fragments, and whatever unnamed code they jump to.
 * Addresses are numbers here: these are the loops over every instruction.
 */
export class CodeMap {
  readonly #elf: ElfFile;
  readonly #functions: readonly FunctionRange[];
  readonly #starts: Float64Array;
  readonly #fragments: ReadonlyMap<string, readonly FunctionRange[]>;
  readonly #targets: AddressSet;
  /** Those that are led to by other means than jumps within a function. */
  readonly #others: AddressSet;
  readonly #sweptStarts = new Set<number>();
  readonly #pending: number[] = [];
  /** Where the function that is swept jumps to; used again for the next one. */
  readonly #own: number[] = [];
  #unnamedLeft = MOST_UNNAMED;

  /** `functions`: all that are known of the file, ascending. */
  constructor(elf: ElfFile, functions: readonly FunctionRange[]) {
    this.#elf = elf;
    this.#functions = functions;
    this.#starts = Float64Array.from(functions, (range) => range.addressNumber);
    this.#fragments = elf.mentions('.cold') ? fragmentsByFunction(functions) : new Map();
    this.#targets = new AddressSet(elf);
    this.#others = new AddressSet(elf);
    for (const pointer of elf.relocatedPointers) this.#addOther(pointer);
  }

  /** Sweeps a function, whose site is at `site`, with the fragments that bear its name. */
  sweep(range: FunctionRange, site: number): SweptFunction {
    const ranges = this.partsOf(range);
    const own = this.#own;
    own.length = 0;
    let decodable = true;
    let indirect = false;
    for (const part of ranges) {
      const found = this.#sweepRange(part.addressNumber, part.size, own);
      decodable &&= found.decodable;
      indirect ||= found.indirect;
    }
    let tablesFound = true;
    const jumps = own.length;
    if (indirect && decodable) {
      const tables = jumpTableTargets(this.#elf, ranges);
      tablesFound = tables.complete;
      // Not by one push of all: an interpreter's tables have more targets than a call may have arguments.
      for (const target of tables.targets) own.push(target);
    }
    let reentered = false;
    for (let i = 0; i < own.length; i++) {
      const target = own[i];
      if (i < jumps && isInside(ranges, target)) this.#targets.add(target);
      else this.#addOther(target);
      if (target === site || target === range.addressNumber) reentered = true;
      if (!isInside(ranges, target)) this.#pending.push(target);
    }
    return { decodable, tablesFound, reentered };
  }

  /** True if swept code, or a pointer that the loader relocates, leads to an address from `from` up to below `to`. */
  leadsInto(from: number, to: number): boolean {
    this.#followPending();
    return this.#targets.hasWithin(from, to);
  }

  /**
   * True if something leads to an address from `from` up to below `to` that is not a jump within the function there: a table, a
   * pointer, a call.
   */
  landsOtherwise(from: number, to: number): boolean {
    this.#followPending();
    return this.#others.hasWithin(from, to);
  }

  #addOther(target: number): void {
    this.#targets.add(target);
    this.#others.add(target);
  }

  /** True if a function begins at an address from `from` up to below `to`. */
  functionStartsWithin(from: number, to: number): boolean {
    return contains(this.#starts, from, to);
  }

  /** True if a function begins there that is no part of another. */
  isEntry(address: number): boolean {
    const range = this.#functions.at(Math.max(this.indexAt(address), 0));
    return range?.addressNumber === address && range.kind !== 'fragment';
  }

  /** A function's range, and those of the fragments that bear its name. */
  partsOf(range: FunctionRange): readonly FunctionRange[] {
    if (this.#fragments.size === 0) return [range];
    return [range, ...range.names.flatMap((name) => this.#fragments.get(name) ?? [])];
  }

  /** Index of the last function that begins at or before `address`; -1 if there is none. */
  indexAt(address: number): number {
    return lowerBound(this.#starts, address + 1) - 1;
  }

  #sweepRange(address: number, size: number, targets: number[]): { decodable: boolean; indirect: boolean } {
    this.#sweptStarts.add(address);
    const first = this.#elf.codeOffset(address, size);
    if (first < 0) return { decodable: false, indirect: false };
    const { bytes } = this.#elf;
    const limit = first + size;
    // What an index into the file lacks to be an address.
    const base = address - first;
    let indirect = false;
    for (let start = first; start < limit; start = common.end) {
      decodeFlow(bytes, start, limit);
      const { flow, end } = common;
      if (flow === Flow.next || flow === Flow.end) continue;
      if (flow === Flow.invalid || end > limit) return { decodable: false, indirect };
      if (flow === Flow.jump || flow === Flow.conditionalJump) {
        targets.push(base + branchTarget(bytes, start, end));
      } else if (flow === Flow.call) {
        // A call is no jump into a function unless it goes to its middle: kept apart from what must be followed.
        this.#addOther(base + branchTarget(bytes, start, end));
      } else if (flow === Flow.indirectJump) {
        indirect = true;
      } else if (flow === Flow.leaRelative && common.displacement >= 0) {
        const target = end + int32At(bytes, common.displacement);
        // Only the address of code matters: of a label that a computed jump may use.
        if (target >= first && target < limit) this.#addOther(base + target);
      }
    }
    return { decodable: true, indirect };
  }

  /**
   * Jumps out of swept code: a tail call to a function needs no following; a fragment, named or not, may jump back and
   * is swept too.
   */
  #followPending(): void {
    for (let target = this.#pending.pop(); target !== undefined; target = this.#pending.pop()) {
      const index = this.indexAt(target);
      const range = index < 0 ? undefined : this.#functions[index];
      if (range !== undefined && target < range.addressNumber + range.size) {
        const isEntry = target === range.addressNumber && range.kind !== 'fragment';
        if (!isEntry && !this.#sweptStarts.has(range.addressNumber)) {
          const found: number[] = [];
          this.#sweepRange(range.addressNumber, range.size, found);
          for (const inner of found) this.#addOther(inner);
        }
      } else if (!this.#sweptStarts.has(target)) {
        this.#sweepUnnamed(target, this.#functions[index + 1]?.addressNumber ?? Infinity);
      }
    }
  }

  /** Follows code that no symbol covers from `address` to the next jump, return or known function. */
  #sweepUnnamed(address: number, limit: number): void {
    this.#sweptStarts.add(address);
    const size = Math.min(
      limit - address,
      LONGEST_UNNAMED,
      this.#unnamedLeft,
      this.#segmentBytesFrom(address),
    );
    const first = size > 0 ? this.#elf.codeOffset(address, size) : -1;
    if (first < 0) return;
    const { bytes } = this.#elf;
    const base = address - first;
    for (let start = first; start < first + size; start = common.end) {
      decodeFlow(bytes, start, first + size);
      const { flow, end } = common;
      this.#unnamedLeft -= end - start;
      if (flow === Flow.jump || flow === Flow.conditionalJump) {
        const target = base + branchTarget(bytes, start, end);
        this.#addOther(target);
        this.#pending.push(target);
      }
      const goesOn = flow !== Flow.jump && flow !== Flow.indirectJump && flow !== Flow.end;
      if (!goesOn || flow === Flow.invalid || this.#sweptStarts.has(base + end)) return;
    }
  }

  #segmentBytesFrom(address: number): number {
    const segment = this.#elf.segments.find(
      ({ executable, addressNumber, fileSize }) =>
        executable && address >= addressNumber && address < addressNumber + fileSize,
    );
    return segment === undefined ? 0 : segment.addressNumber + segment.fileSize - address;
  }
}

function fragmentsByFunction(functions: readonly FunctionRange[]): Map<string, FunctionRange[]> {
  const fragments = new Map<string, FunctionRange[]>();
  for (const range of functions) {
    if (range.kind !== 'fragment') continue;
    const name = range.name.replace(COLD, '');
    const known = fragments.get(name);
    if (known === undefined) fragments.set(name, [range]);
    else known.push(range);
  }
  return fragments;
}

function isInside(ranges: readonly FunctionRange[], address: number): boolean {
  for (const { addressNumber, size } of ranges) {
    if (address >= addressNumber && address < addressNumber + size) return true;
  }
  return false;
}

function contains(sorted: Float64Array, from: number, to: number): boolean {
  return sorted[lowerBound(sorted, from)] < to;
}
