import * as abi from './abi.js';
import { countByHash, readDynamicTable, type DynamicTable, type FileRange } from './dynamic-table.js';
import { ElfBytes } from './elf-bytes.js';
import type { ElfFile, ElfSection, ElfSegment, ElfSymbol, ElfType } from './elf-file.js';
import { readHeader, readSections, readSegments } from './headers.js';
import { lowerBound } from './lower-bound.js';
import { RelocationTable } from './relocation-table.js';
import { SymbolTable } from './symbol-table.js';

/**
 * Reads an ELF64 little-endian x86-64 executable or shared object. The headers are read at once; symbols and
 * relocations when they are first asked for. Both throw `CannotError`, and nothing else, when the file is not one
 * (`elf-not-elf`, `elf-not-64-bit`, `elf-not-x86-64`, `elf-not-loadable`), ends too early (`elf-truncated`) or
 * contradicts itself (`elf-damaged`). `bytes` is kept, not copied, and must not change. `name` is for messages.
 *
 * Not read: debug information, separate debug files, `.gnu_debugdata`.
 */
export function parseElf(bytes: Uint8Array, name: string): ElfFile {
  // A plain array: `slice` of a Node Buffer is no copy, and changing what it gives would change the file.
  const plain = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return new ParsedElf(new ElfBytes(plain, name));
}

/** Bounds on what a damaged file can make us do; linkers write a handful of notes, and build ids of 8 to 32 bytes. */
const MOST_NOTES = 4096;
const LONGEST_BUILD_ID = 64;

class ParsedElf implements ElfFile {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly type: ElfType;
  readonly entry: bigint;
  readonly segments: readonly ElfSegment[];
  readonly sections: readonly ElfSection[];
  readonly buildId: string | undefined;
  readonly interpreter: string | undefined;
  readonly soname: string | undefined;
  readonly needed: readonly string[];
  readonly hasUnwindTables: boolean;
  readonly #file: ElfBytes;
  readonly #loaded: readonly ElfSegment[];
  readonly #dynamic: DynamicTable | undefined;
  readonly #dynamicSymbols: SymbolTable | undefined;
  #symbols: readonly ElfSymbol[] | undefined;
  #relocations: RelocationTable | undefined;
  #relocatedPointers: Float64Array | undefined;

  constructor(file: ElfBytes) {
    this.#file = file;
    this.name = file.name;
    this.bytes = file.bytes;
    const header = readHeader(file);
    this.type = header.type;
    this.entry = BigInt(header.entry);
    this.segments = readSegments(file, header);
    this.#loaded = this.segments.filter((segment) => segment.type === abi.PT_LOAD);
    this.sections = readSections(file, header);
    this.buildId = this.#readBuildId();
    const interpreter = this.#segmentRange(abi.PT_INTERP);
    this.interpreter =
      interpreter && file.stringAt(interpreter.offset, interpreter.offset + interpreter.size);
    const dynamic = this.#segmentRange(abi.PT_DYNAMIC);
    this.#dynamic = dynamic && readDynamicTable(file, dynamic, (address) => this.#offsetOf(address));
    this.#dynamicSymbols = this.#symbolTable('dynsym', abi.SHT_DYNSYM) ?? this.#symbolTableByHash();
    this.soname = this.#dynamic?.soname;
    this.needed = this.#dynamic?.needed ?? [];
    this.hasUnwindTables = this.segments.some((segment) => segment.type === abi.PT_GNU_EH_FRAME);
  }

  get symbols(): readonly ElfSymbol[] {
    this.#symbols ??= [
      ...(this.#symbolTable('symtab', abi.SHT_SYMTAB)?.defined() ?? []),
      ...(this.#dynamicSymbols?.defined() ?? []),
    ];
    return this.#symbols;
  }

  get patchableEntries(): readonly bigint[] {
    return this.#locations('__patchable_function_entries');
  }

  get mcountLocations(): readonly bigint[] {
    return this.#locations('__mcount_loc');
  }

  get relocatedPointers(): Float64Array {
    this.#relocatedPointers ??= this.#relocationTable.relativeValues.slice().sort();
    return this.#relocatedPointers;
  }

  fileOffsetOf(address: bigint): number | undefined {
    return this.#offsetOf(Number(address));
  }

  addressOf(fileOffset: number): bigint | undefined {
    const segment = this.#loaded.find(
      (candidate) => fileOffset >= candidate.offset && fileOffset < candidate.offset + candidate.fileSize,
    );
    return segment && BigInt(segment.addressNumber + (fileOffset - segment.offset));
  }

  bytesAt(address: bigint, length: number): Uint8Array | undefined {
    const from = Number(address);
    const segment = this.#segmentWith(from, length);
    if (segment === undefined) return undefined;
    const offset = segment.offset + (from - segment.addressNumber);
    return this.bytes.subarray(offset, offset + length);
  }

  isExecutable(address: bigint, length: number): boolean {
    return this.#segmentWith(Number(address), length)?.executable ?? false;
  }

  codeOffset(address: number, length: number): number {
    for (const segment of this.#loaded) {
      const from = address - segment.addressNumber;
      if (from < 0 || from + length > segment.fileSize) continue;
      return segment.executable ? segment.offset + from : -1;
    }
    return -1;
  }

  mentions(text: string): boolean {
    const isIn = (table: SymbolTable | undefined): boolean => table?.mentions(text) ?? false;
    return isIn(this.#symbolTable('symtab', abi.SHT_SYMTAB)) || isIn(this.#dynamicSymbols);
  }

  importAt(address: bigint): string | undefined {
    const slot = this.#relocationTable.symbolSlots.get(Number(address));
    return slot && this.#dynamicSymbols?.nameOf(slot.symbol);
  }

  pointerAt(address: bigint): bigint | undefined {
    const at = Number(address);
    const relative = this.#relocationTable.relativeValueAt(at);
    if (relative !== undefined) return BigInt(relative);
    const slot = this.#relocationTable.symbolSlots.get(at);
    if (slot !== undefined) {
      const symbol = this.#dynamicSymbols?.definedAddress(slot.symbol);
      const value = symbol === undefined ? NaN : symbol + slot.addend;
      return Number.isSafeInteger(value) ? BigInt(value) : undefined;
    }
    const segment = this.#segmentWith(at, 8);
    if (segment === undefined) return undefined;
    return this.#file.view.getBigUint64(segment.offset + (at - segment.addressNumber), true);
  }

  get #relocationTable(): RelocationTable {
    this.#relocations ??= RelocationTable.read(this.#file, this.#dynamic, (address) =>
      this.#offsetOf(address),
    );
    return this.#relocations;
  }

  /** The loaded segment from whose file bytes all `length` bytes at `address` come. */
  #segmentWith(address: number, length: number): ElfSegment | undefined {
    return this.#loaded.find(
      (segment) =>
        address >= segment.addressNumber && address + length <= segment.addressNumber + segment.fileSize,
    );
  }

  #offsetOf(address: number): number | undefined {
    const segment = this.#segmentWith(address, 1);
    return segment && segment.offset + (address - segment.addressNumber);
  }

  #segmentRange(type: number): FileRange | undefined {
    const segment = this.segments.find((candidate) => candidate.type === type);
    if (segment === undefined) return undefined;
    this.#file.requireRange(`the segment of type ${type}`, segment.offset, segment.fileSize);
    return { offset: segment.offset, size: segment.fileSize };
  }

  #symbolTable(which: 'symtab' | 'dynsym', type: number): SymbolTable | undefined {
    const section = this.sections.find((candidate) => candidate.type === type);
    if (section === undefined) return undefined;
    const strings = this.sections.at(section.link);
    if (strings?.hasBytes !== true) this.#file.damaged(`${section.name} has no string table`);
    return new SymbolTable(this.#file, which, section, strings);
  }

  #symbolTableByHash(): SymbolTable | undefined {
    const dynamic = this.#dynamic;
    if (dynamic?.symbolsOffset === undefined || dynamic.strings === undefined) return undefined;
    const count = countByHash(this.#file, dynamic);
    if (count === undefined) return undefined;
    this.#file.requireRange('the dynamic symbols', dynamic.symbolsOffset, count, abi.SYM_SIZE);
    const range = { offset: dynamic.symbolsOffset, size: count * abi.SYM_SIZE };
    return new SymbolTable(this.#file, 'dynsym', range, dynamic.strings);
  }

  /** Note: name size, descriptor size, type; name and descriptor each padded to 4 bytes. */
  #readBuildId(): string | undefined {
    let notes = 0;
    for (const segment of this.segments) {
      if (segment.type !== abi.PT_NOTE) continue;
      this.#file.requireRange('a note segment', segment.offset, segment.fileSize);
      const end = segment.offset + segment.fileSize;
      for (let at = segment.offset; at + 12 <= end;) {
        const nameSize = this.#file.view.getUint32(at, true);
        const descriptorSize = this.#file.view.getUint32(at + 4, true);
        const type = this.#file.view.getUint32(at + 8, true);
        const nameAt = at + 12;
        const descriptorAt = nameAt + pad4(nameSize);
        at = descriptorAt + pad4(descriptorSize);
        if (at > end || ++notes > MOST_NOTES) break;
        if (descriptorSize > LONGEST_BUILD_ID) continue;
        if (type === abi.NT_GNU_BUILD_ID && this.#file.stringAt(nameAt, nameAt + nameSize) === 'GNU') {
          return hex(this.bytes.subarray(descriptorAt, descriptorAt + descriptorSize));
        }
      }
    }
    return undefined;
  }

  /**
   * The addresses in all sections of this name (there is one for each text section where garbage collection of sections
   * is wanted). In a position-independent file the words are relocations and mostly zero in the file itself.
   */
  #locations(sectionName: string): bigint[] {
    const found: number[] = [];
    let budget = this.bytes.length;
    for (const section of this.sections) {
      if (section.name !== sectionName || !section.hasBytes) continue;
      budget -= section.size;
      if (budget < 0) this.#file.damaged(`the sections ${sectionName} overlap`);
      const { relativeAddresses, relativeValues, symbolSlots } = this.#relocationTable;
      let relative = lowerBound(relativeAddresses, section.addressNumber);
      for (let at = 0; at + 8 <= section.size; at += 8) {
        const address = section.addressNumber + at;
        while (relativeAddresses[relative] < address) relative++;
        const slot = symbolSlots.get(address);
        const value =
          relativeAddresses[relative] === address
            ? relativeValues[relative]
            : slot !== undefined
              ? (this.#dynamicSymbols?.definedAddress(slot.symbol) ?? 0) + slot.addend
              : this.#file.u64OrNaN(section.offset + at);
        if (value > 0 && Number.isSafeInteger(value)) found.push(value);
      }
    }
    return found.sort((a, b) => a - b).map(BigInt);
  }
}

function pad4(size: number): number {
  return Math.ceil(size / 4) * 4;
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
