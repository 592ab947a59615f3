import { lowerBound, type ElfFile, type ElfSymbol } from '../elf/index.js';
import { CannotError } from '../errors/index.js';
import { demangle } from './demangle.js';
import type { FunctionKind, FunctionSymbol } from './function-symbol.js';

/**
 * How often all code may be covered by functions. Symbols within functions have sizes too; but where each of a million has nearly all of
 * the code there would be no end of looking at it.
 */
const MOST_COVERED = 8;

/** gcc: `f.cold`, `f.cold.1`; clang: `f.cold.1`. The part before it names the function. */
const COLD = /^(.+?)\.cold(?:\.\d+)*$/;

/**
 * The functions of a file, ascending by address, one per address: .symtab and .dynsym merged, symbols at one address
 * become names of one function. `module` is the base name of `elf.name` unless given.
 */
export function functionsOf(elf: ElfFile, module: string = baseName(elf.name)): FunctionSymbol[] {
  const symbols = elf.symbols.filter((symbol) => {
    const { kind } = symbol;
    return kind === 'function' || kind === 'ifunc';
  });
  symbols.sort((a, b) => a.addressNumber - b.addressNumber);

  const regions = codeRegions(elf);
  const nextSymbol = symbolAfter(elf);
  let bytes = regions.reduce((sum, { start, end }) => sum + end - start, 0) * MOST_COVERED;
  const functions: FunctionSymbol[] = [];
  for (let first = 0; first < symbols.length;) {
    const address = symbols[first].addressNumber;
    let next = first + 1;
    while (next < symbols.length && symbols[next].addressNumber === address) next++;
    const group = symbols.slice(first, next);
    const known = group.reduce((size, symbol) => Math.max(size, symbol.size), 0);
    const size = known > 0 ? known : sizeUpTo(nextSymbol(address), address, regions);
    if ((bytes -= size) < 0) throw overlapping(elf);
    functions.push(new MergedFunction(group, module, size, known > 0));
    first = next;
  }
  return functions;
}

/** The function of an ascending list whose bytes contain `address`. */
export function functionAt(
  functions: readonly FunctionSymbol[],
  address: bigint,
): FunctionSymbol | undefined {
  const wanted = Number(address);
  let low = 0;
  let high = functions.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (functions[middle].addressNumber <= wanted) low = middle + 1;
    else high = middle;
  }
  if (low === 0) return undefined;
  const found = functions[low - 1];
  return wanted < found.addressNumber + Math.max(found.size, 1) ? found : undefined;
}

class MergedFunction implements FunctionSymbol {
  #names: readonly string[] | undefined;
  #kind: FunctionKind | undefined;

  constructor(
    private readonly symbols: readonly ElfSymbol[],
    readonly module: string,
    readonly size: number,
    readonly sizeKnown: boolean,
  ) {}

  get names(): readonly string[] {
    // Names are read and compared only when asked for: most functions of a module are never looked at.
    this.#names ??= distinctNames(this.symbols);
    return this.#names;
  }

  get name(): string {
    return this.names[0];
  }

  get aliases(): readonly string[] {
    return this.names.slice(1);
  }

  get demangled(): string {
    return demangle(this.name);
  }

  get address(): bigint {
    return BigInt(this.addressNumber);
  }

  get addressNumber(): number {
    return this.symbols[0].addressNumber;
  }

  get kind(): FunctionKind {
    this.#kind ??= kindOf(this.symbols, this.name);
    return this.#kind;
  }

  get fragmentOf(): string | undefined {
    return coldOf(this.name);
  }

  get global(): boolean {
    return this.symbols.some((symbol) => symbol.binding !== 'local');
  }
}

function kindOf(symbols: readonly ElfSymbol[], name: string): FunctionKind {
  if (symbols.some((symbol) => symbol.kind === 'ifunc')) return 'ifunc';
  return coldOf(name) === undefined ? 'function' : 'fragment';
}

/** The name of the function whose cold part bears this name; undefined if it is no such part's. */
function coldOf(name: string): string | undefined {
  // The expression takes its time, and few of 10^5 names get to it.
  return name.includes('.cold') ? COLD.exec(name)?.[1] : undefined;
}

/** `f@VERSION` of a version that new programs do not get: what they get is `f`, another function. */
function versionedName({ name, oldVersion }: ElfSymbol): string {
  return oldVersion === undefined ? name : `${name}@${oldVersion}`;
}

/** Best first: not a fragment's name, global, of no old version, few leading underscores (`malloc`, not `__libc_malloc`), short. */
function distinctNames(symbols: readonly ElfSymbol[]): string[] {
  if (symbols.length === 1) return [versionedName(symbols[0])];
  const ranks = new Map<string, number>();
  for (const symbol of symbols) {
    const name = versionedName(symbol);
    const rank =
      (coldOf(name) === undefined ? 0 : 1000) +
      (symbol.binding === 'local' ? 100 : 0) +
      (symbol.oldVersion === undefined ? 0 : 50) +
      Math.min(/^_*/.exec(name)?.[0].length ?? 0, 49);
    ranks.set(name, Math.min(rank, ranks.get(name) ?? Infinity));
  }
  return [...ranks]
    .sort(([a, rankA], [b, rankB]) => rankA - rankB || a.length - b.length || (a < b ? -1 : 1))
    .map(([name]) => name);
}

interface Region {
  readonly start: number;
  readonly end: number;
}

/** Executable sections, or segments where there are none; ascending, and each begins behind the one before. */
function codeRegions(elf: ElfFile): Region[] {
  const sections = elf.sections
    .filter((section) => section.executable && section.hasBytes)
    .map(({ addressNumber, size }) => ({ start: addressNumber, end: addressNumber + size }));
  const segments = elf.loaded
    .filter(({ executable }) => executable)
    .map(({ addressNumber, fileSize }) => ({ start: addressNumber, end: addressNumber + fileSize }));
  const regions: Region[] = [];
  for (const { start, end } of (sections.length > 0 ? sections : segments).sort(
    (a, b) => a.start - b.start,
  )) {
    const from = Math.max(start, regions.at(-1)?.end ?? 0);
    if (from < end) regions.push({ start: from, end });
  }
  return regions;
}

function overlapping(elf: ElfFile): CannotError {
  return new CannotError('elf-damaged', {
    tried: `read the functions of ${elf.name}`,
    why: `together they are more than ${MOST_COVERED} times as long as its code`,
    next: 'check that the file is complete',
  });
}

/** The address of the next symbol of any kind: hand-written code may have data or unnamed parts behind it. */
function symbolAfter(elf: ElfFile): (address: number) => number {
  let sorted: Float64Array | undefined;
  return (address) => {
    // Most files never need it: their functions have sizes.
    sorted ??= Float64Array.from(elf.symbols, (symbol) => symbol.addressNumber).sort();
    const index = lowerBound(sorted, address + 1);
    return index < sorted.length ? sorted[index] : Infinity;
  };
}

function sizeUpTo(limit: number, address: number, regions: readonly Region[]): number {
  let low = 0;
  let high = regions.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (regions[middle].end <= address) low = middle + 1;
    else high = middle;
  }
  const region = low < regions.length ? regions[low] : undefined;
  return region === undefined || address < region.start ? 0 : Math.min(limit, region.end) - address;
}

function baseName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}
