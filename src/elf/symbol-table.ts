import * as abi from './abi.js';
import { u64OrNaN, type ElfBytes, type FileRange } from './elf-bytes.js';
import type { ElfSymbol, SymbolBinding, SymbolKind } from './elf-file.js';
import { SparseBytes } from './sparse-bytes.js';
import type { StringTable } from './string-table.js';
import { SymbolVersions, withoutVersion, type VersionTables } from './symbol-versions.js';

const KINDS: Readonly<Record<number, SymbolKind>> = {
  [abi.STT_NOTYPE]: 'untyped',
  [abi.STT_OBJECT]: 'object',
  [abi.STT_FUNC]: 'function',
  [abi.STT_GNU_IFUNC]: 'ifunc',
};

/** Several times those of the largest programs: to go through them takes time, and each that is defined memory. */
const MOST_ENTRIES = 2 ** 25;
const MOST_SYMBOLS = 2 ** 23;

/** One symbol table of a file with its strings. */
export class SymbolTable {
  readonly count: number;
  readonly #file: ElfBytes;
  readonly #range: FileRange;
  readonly #strings: StringTable;
  /** For questions about single symbols. */
  readonly #entries: SparseBytes;
  readonly #which: 'symtab' | 'dynsym';
  readonly #versions: VersionTables | undefined;

  constructor(
    file: ElfBytes,
    which: 'symtab' | 'dynsym',
    range: FileRange,
    strings: StringTable,
    versions?: VersionTables,
  ) {
    file.requireRange('the symbol table', range.offset, range.size);
    this.count = Math.floor(range.size / abi.SYM_SIZE);
    if (this.count > MOST_ENTRIES) file.damaged(`it has more than ${MOST_ENTRIES} symbols`);
    this.#file = file;
    this.#which = which;
    this.#versions = versions;
    this.#range = range;
    this.#strings = strings;
    this.#entries = new SparseBytes(file.source, range.offset, range.size);
  }

  /** The defined symbols that have an address and a name. */
  *defined(): Generator<ElfSymbol> {
    let found = 0;
    const versions = this.#versions && new SymbolVersions(this.#file, this.#versions, this.count);
    for (const { view, first } of this.#file.pieces('the symbol table', this.#range, abi.SYM_SIZE)) {
      // Symbol 0 is none.
      for (let at = first === 0 ? abi.SYM_SIZE : 0; at < view.byteLength; at += abi.SYM_SIZE) {
        const sectionIndex = view.getUint16(at + abi.SYM.sectionIndex, true);
        if (sectionIndex === abi.SHN_UNDEF || sectionIndex === abi.SHN_ABS) continue;
        const name = view.getUint32(at + abi.SYM.name, true);
        if (name === 0) continue;
        const address = u64OrNaN(view, at + abi.SYM.value);
        const size = u64OrNaN(view, at + abi.SYM.size);
        if (Number.isNaN(address + size)) continue;
        if (++found > MOST_SYMBOLS) this.#file.damaged(`it has more than ${MOST_SYMBOLS} symbols`);
        const info = view.getUint8(at + abi.SYM.info);
        const version = versions?.hiddenAt(first + at / abi.SYM_SIZE);
        yield version === undefined
          ? new TableSymbol(this.#strings, this.#which, name, info, address, size)
          : new OldSymbol(version, this.#strings, this.#which, name, info, address, size);
      }
    }
  }

  /** Address of a symbol by index: undefined if another module defines it. */
  definedAddress(index: number): number | undefined {
    const entry = this.#entry(index);
    if (entry === undefined || entry.getUint16(abi.SYM.sectionIndex, true) === abi.SHN_UNDEF)
      return undefined;
    const address = u64OrNaN(entry, abi.SYM.value);
    return Number.isNaN(address) ? undefined : address;
  }

  /** False if none of the ASCII texts stands in any of its names. */
  mentions(texts: readonly string[]): boolean {
    return this.#strings.mentions(texts);
  }

  nameOf(index: number): string | undefined {
    const entry = this.#entry(index);
    return entry && withoutVersion(this.#strings.at(entry.getUint32(abi.SYM.name, true)));
  }

  #entry(index: number): DataView | undefined {
    const at = index * abi.SYM_SIZE;
    if (index >= this.count || !this.#entries.load(at, at + abi.SYM_SIZE)) return undefined;
    const { buffer, byteOffset } = this.#entries.bytes;
    return new DataView(buffer, byteOffset + at, abi.SYM_SIZE);
  }
}

/** The version that stands behind one `@`: what new programs get has two. */
function oldVersionIn(name: string): string | undefined {
  const version = name.indexOf('@', 1) + 1;
  return version === 0 || name[version] === '@' || version === name.length ? undefined : name.slice(version);
}

/** A symbol that reads its name when it is asked for: 10^5 of them are made, few are looked at closely. */
class TableSymbol implements ElfSymbol {
  #text: string | undefined;

  constructor(
    private readonly strings: StringTable,
    readonly table: 'symtab' | 'dynsym',
    private readonly nameOffset: number,
    private readonly info: number,
    readonly addressNumber: number,
    readonly size: number,
  ) {}

  get name(): string {
    return withoutVersion(this.#inTable);
  }

  get oldVersion(): string | undefined {
    return this.table === 'symtab' ? oldVersionIn(this.#inTable) : undefined;
  }

  /** The name with its version, as the table has it. */
  get #inTable(): string {
    return (this.#text ??= this.strings.at(this.nameOffset));
  }

  get address(): bigint {
    return BigInt(this.addressNumber);
  }

  get kind(): SymbolKind {
    return KINDS[this.info & 0xf] ?? 'other';
  }

  get binding(): SymbolBinding {
    const binding = this.info >> 4;
    return binding === abi.STB_LOCAL ? 'local' : binding === abi.STB_WEAK ? 'weak' : 'global';
  }
}

/** A symbol of a version that new programs do not get. */
class OldSymbol extends TableSymbol {
  constructor(
    private readonly version: string,
    ...rest: ConstructorParameters<typeof TableSymbol>
  ) {
    super(...rest);
  }

  override get oldVersion(): string {
    return this.version;
  }
}
