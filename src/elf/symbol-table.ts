import * as abi from './abi.js';
import type { FileRange } from './dynamic-table.js';
import type { ElfBytes } from './elf-bytes.js';
import type { ElfSymbol, SymbolBinding, SymbolKind } from './elf-file.js';

const KINDS: Readonly<Record<number, SymbolKind>> = {
  [abi.STT_NOTYPE]: 'untyped',
  [abi.STT_OBJECT]: 'object',
  [abi.STT_FUNC]: 'function',
  [abi.STT_GNU_IFUNC]: 'ifunc',
};

/** One symbol table of a file with its strings; both ranges lie within the file. */
export class SymbolTable {
  readonly count: number;

  constructor(
    readonly file: ElfBytes,
    readonly which: 'symtab' | 'dynsym',
    private readonly symbols: FileRange,
    private readonly strings: FileRange,
  ) {
    this.count = Math.floor(symbols.size / abi.SYM_SIZE);
  }

  /** The defined symbols that have an address and a name. */
  defined(): ElfSymbol[] {
    const { view } = this.file;
    const found: ElfSymbol[] = [];
    for (let index = 1; index < this.count; index++) {
      const at = this.symbols.offset + index * abi.SYM_SIZE;
      const sectionIndex = view.getUint16(at + abi.SYM.sectionIndex, true);
      if (sectionIndex === abi.SHN_UNDEF || sectionIndex === abi.SHN_ABS) continue;
      if (view.getUint32(at + abi.SYM.name, true) === 0) continue;
      const address = this.file.u64OrNaN(at + abi.SYM.value);
      const size = this.file.u64OrNaN(at + abi.SYM.size);
      if (Number.isNaN(address + size)) continue;
      found.push(new TableSymbol(this, at, address, size));
    }
    return found;
  }

  /** Address of a symbol by index: undefined if another module defines it. */
  definedAddress(index: number): number | undefined {
    if (index >= this.count) return undefined;
    const at = this.symbols.offset + index * abi.SYM_SIZE;
    if (this.file.view.getUint16(at + abi.SYM.sectionIndex, true) === abi.SHN_UNDEF) return undefined;
    const address = this.file.u64OrNaN(at + abi.SYM.value);
    return Number.isNaN(address) ? undefined : address;
  }

  /** False if the ASCII text stands in none of its names. */
  mentions(text: string): boolean {
    return this.file.contains(text, this.strings.offset, this.strings.offset + this.strings.size);
  }

  nameOf(index: number): string | undefined {
    return index < this.count ? this.nameAt(this.symbols.offset + index * abi.SYM_SIZE) : undefined;
  }

  /** Name of the symbol whose entry is at this offset of the file, without its version (`@VERSION`, `@@VERSION`). */
  nameAt(entry: number): string {
    const offset = this.file.view.getUint32(entry + abi.SYM.name, true);
    if (offset >= this.strings.size) return '';
    const name = this.file.stringAt(this.strings.offset + offset, this.strings.offset + this.strings.size);
    const version = name.indexOf('@', 1);
    return version < 0 ? name : name.slice(0, version);
  }
}

/** A symbol that reads what it is asked for from its table: 10^5 of them are made, few are looked at closely. */
class TableSymbol implements ElfSymbol {
  #name: string | undefined;

  constructor(
    private readonly owner: SymbolTable,
    private readonly entry: number,
    readonly addressNumber: number,
    readonly size: number,
  ) {}

  get name(): string {
    return (this.#name ??= this.owner.nameAt(this.entry));
  }

  get address(): bigint {
    return BigInt(this.addressNumber);
  }

  get kind(): SymbolKind {
    return KINDS[this.#info & 0xf] ?? 'other';
  }

  get binding(): SymbolBinding {
    const binding = this.#info >> 4;
    return binding === abi.STB_LOCAL ? 'local' : binding === abi.STB_WEAK ? 'weak' : 'global';
  }

  get table(): 'symtab' | 'dynsym' {
    return this.owner.which;
  }

  get #info(): number {
    return this.owner.file.view.getUint8(this.entry + abi.SYM.info);
  }
}
