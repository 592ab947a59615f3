import * as abi from './abi.js';
import { MemorySource, type ByteSource } from './byte-source.js';
import { countByHash, readDynamicTable, type DynamicTable } from './dynamic-table.js';
import { ElfBytes, u64OrNaN, type FileRange } from './elf-bytes.js';
import type { ElfFile, ElfSection, ElfSegment, ElfSymbol, ElfType } from './elf-file.js';
import { readHeader, readSections, readSegments } from './headers.js';
import { lowerBound } from './lower-bound.js';
import { RelocationTable } from './relocation-table.js';
import { SparseBytes } from './sparse-bytes.js';
import { StringTable } from './string-table.js';
import { SymbolTable } from './symbol-table.js';

/**
 * Reads an ELF64 little-endian x86-64 executable or shared object. The headers are read at once; symbols and
 * relocations when they are first asked for. Both throw `CannotError`, and nothing else, when the file is not one
 * (`elf-not-elf`, `elf-not-64-bit`, `elf-not-x86-64`, `elf-not-loadable`), ends too early (`elf-truncated`) or
 * contradicts itself (`elf-damaged`). Of code and data only what is asked for is read; what cannot be read, since the file has become
 * shorter meanwhile, is as if it were not loaded. Bytes that are given as an array are kept, not copied, and must not change. `name` is
 * for messages.
 *
 * Not read: debug information, separate debug files, `.gnu_debugdata`.
 */
export function parseElf(from: Uint8Array | ByteSource, name: string): ElfFile {
  const source = from instanceof Uint8Array ? new MemorySource(from) : from;
  return new ParsedElf(new ElfBytes(source, name));
}

/** Bounds on what a damaged file can make us do; linkers write a handful of notes, and build ids of 8 to 32 bytes. */
const MOST_NOTE_BYTES = 64 * 1024;
const LONGEST_BUILD_ID = 64;
const NOTE_HEADER = 12;
/** PATH_MAX. */
const LONGEST_PATH = 4096;
/** One that is longer is none: the largest that compilers and interpreters have are some megabytes. */
const LONGEST_FUNCTION = 64 * 1024 * 1024;
/** Recorded places of all sections of one name, in bytes: many times those of a program with a million functions. */
const MOST_LOCATION_BYTES = 64 * 1024 * 1024;
const WORD = 8;
const HALF_WORD = 4;
const PAGE = 4096;

class ParsedElf implements ElfFile {
  readonly name: string;
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
  readonly loaded: readonly ElfSegment[];
  /** The file up to the end of what is loaded. */
  readonly #image: SparseBytes;
  readonly #dynamic: DynamicTable | undefined;
  readonly #staticSymbols: SymbolTable | undefined;
  readonly #dynamicSymbols: SymbolTable | undefined;
  #symbols: readonly ElfSymbol[] | undefined;
  #relocations: RelocationTable | undefined;
  #relocatedPointers: Float64Array | undefined;
  #patchableEntries: readonly bigint[] | undefined;
  #view: DataView | undefined;

  constructor(file: ElfBytes) {
    this.#file = file;
    this.name = file.name;
    const header = readHeader(file);
    this.type = header.type;
    this.entry = BigInt(header.entry);
    this.segments = readSegments(file, header);
    this.loaded = this.segments.filter((segment) => segment.type === abi.PT_LOAD);
    const end = this.loaded.reduce((most, { offset, fileSize }) => Math.max(most, offset + fileSize), 0);
    this.#image = new SparseBytes(file.source, 0, end);
    this.sections = readSections(file, header);
    this.buildId = this.#readBuildId();
    const interpreter = this.#segmentRange(abi.PT_INTERP);
    this.interpreter =
      interpreter && new StringTable(file, 'the name of the loader', interpreter).at(0, LONGEST_PATH);
    const dynamic = this.#segmentRange(abi.PT_DYNAMIC);
    this.#dynamic = dynamic && readDynamicTable(file, dynamic, (address) => this.#offsetOf(address));
    this.#staticSymbols = this.#symbolTable('symtab', abi.SHT_SYMTAB);
    this.#dynamicSymbols = this.#symbolTable('dynsym', abi.SHT_DYNSYM) ?? this.#symbolTableByHash();
    this.soname = this.#dynamic?.soname;
    this.needed = this.#dynamic?.needed ?? [];
    this.hasUnwindTables = this.segments.some((segment) => segment.type === abi.PT_GNU_EH_FRAME);
  }

  get bytes(): Uint8Array {
    return this.#image.bytes;
  }

  get symbols(): readonly ElfSymbol[] {
    if (this.#symbols === undefined) {
      const symbols: ElfSymbol[] = [];
      for (const table of [this.#staticSymbols, this.#dynamicSymbols])
        for (const symbol of table?.defined() ?? []) symbols.push(symbol);
      this.#symbols = symbols;
    }
    return this.#symbols;
  }

  get patchableEntries(): readonly bigint[] {
    return (this.#patchableEntries ??= this.#locations('__patchable_function_entries'));
  }

  get mcountLocations(): readonly bigint[] {
    return this.#locations('__mcount_loc');
  }

  get relocatedPointers(): Float64Array {
    this.#relocatedPointers ??= this.#relocationTable.relativeValues.slice().sort();
    return this.#relocatedPointers;
  }

  readTables(): number {
    return this.symbols.length + this.relocatedPointers.length + this.patchableEntries.length;
  }

  fileOffsetOf(address: bigint): number | undefined {
    return this.#offsetOf(Number(address));
  }

  addressOf(fileOffset: number): bigint | undefined {
    const segment = this.loaded.find(
      (candidate) => fileOffset >= candidate.offset && fileOffset < candidate.offset + candidate.fileSize,
    );
    return segment && BigInt(segment.addressNumber + (fileOffset - segment.offset));
  }

  bytesAt(address: bigint, length: number): Uint8Array | undefined {
    const from = Number(address);
    const segment = this.#segmentWith(from, length);
    if (segment === undefined) return undefined;
    const offset = segment.offset + (from - segment.addressNumber);
    if (length > LONGEST_FUNCTION || !this.#image.load(offset, offset + length)) return undefined;
    return this.bytes.subarray(offset, offset + length);
  }

  segmentBytes({ offset, fileSize }: ElfSegment): Uint8Array | undefined {
    return this.#image.load(offset, offset + fileSize)
      ? this.bytes.subarray(offset, offset + fileSize)
      : undefined;
  }

  pageAt(offset: number): Uint8Array | undefined {
    const page = new Uint8Array(PAGE);
    const wanted = Math.min(PAGE, this.#file.size - offset);
    return wanted > 0 && this.#file.source.read(page, offset) >= wanted ? page : undefined;
  }

  isExecutable(address: bigint, length: number): boolean {
    return this.#segmentWith(Number(address), length)?.executable ?? false;
  }

  codeOffset(address: number, length: number): number {
    for (const segment of this.loaded) {
      const from = address - segment.addressNumber;
      if (from < 0 || from + length > segment.fileSize) continue;
      const offset = segment.offset + from;
      const isThere =
        segment.executable && length <= LONGEST_FUNCTION && this.#image.load(offset, offset + length);
      return isThere ? offset : -1;
    }
    return -1;
  }

  mentions(...texts: readonly string[]): boolean {
    return [this.#staticSymbols, this.#dynamicSymbols].some((table) => table?.mentions(texts) ?? false);
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
    const word = this.#wordAt(at);
    return word === undefined || Number.isNaN(word) ? undefined : BigInt(word);
  }

  int32At(address: number): number | undefined {
    const offset = this.#offsetOfLoaded(address, HALF_WORD);
    return offset < 0 ? undefined : this.#viewOfImage.getInt32(offset, true);
  }

  /** The word that the file has for an address; NaN if it is too large for a number. */
  #wordAt(address: number): number | undefined {
    const offset = this.#offsetOfLoaded(address, WORD);
    return offset < 0 ? undefined : u64OrNaN(this.#viewOfImage, offset);
  }

  /** Offset in the image of bytes that are there; -1 if they are not. */
  #offsetOfLoaded(address: number, length: number): number {
    for (const { addressNumber, fileSize, offset } of this.loaded) {
      const from = address - addressNumber;
      if (from < 0 || from + length > fileSize) continue;
      return this.#image.load(offset + from, offset + from + length) ? offset + from : -1;
    }
    return -1;
  }

  get #viewOfImage(): DataView {
    const { buffer, byteOffset, byteLength } = this.bytes;
    return (this.#view ??= new DataView(buffer, byteOffset, byteLength));
  }

  get #relocationTable(): RelocationTable {
    this.#relocations ??= RelocationTable.read(this.#file, this.#dynamic, (address) => {
      const word = this.#wordAt(address);
      return Number.isNaN(word) ? undefined : word;
    });
    return this.#relocations;
  }

  /** The loaded segment from whose file bytes all `length` bytes at `address` come. */
  #segmentWith(address: number, length: number): ElfSegment | undefined {
    return this.loaded.find(
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
    return new SymbolTable(
      this.#file,
      which,
      section,
      new StringTable(this.#file, 'a string table', strings),
      which === 'dynsym' ? this.#dynamic?.versions : undefined,
    );
  }

  #symbolTableByHash(): SymbolTable | undefined {
    const dynamic = this.#dynamic;
    if (dynamic?.symbolsOffset === undefined || dynamic.strings === undefined) return undefined;
    const count = countByHash(this.#file, dynamic);
    if (count === undefined) return undefined;
    const range = { offset: dynamic.symbolsOffset, size: count * abi.SYM_SIZE };
    return new SymbolTable(this.#file, 'dynsym', range, dynamic.strings, dynamic.versions);
  }

  /** Note: name size, descriptor size, type; name and descriptor each padded to 4 bytes. */
  #readBuildId(): string | undefined {
    for (const segment of this.segments) {
      if (segment.type !== abi.PT_NOTE) continue;
      this.#file.requireRange('a note segment', segment.offset, segment.fileSize);
      const length = Math.min(segment.fileSize, MOST_NOTE_BYTES);
      const view = this.#file.table('the notes', segment.offset, length, 1, MOST_NOTE_BYTES);
      for (let at = 0; at + NOTE_HEADER <= length;) {
        const nameSize = view.getUint32(at, true);
        const descriptorSize = view.getUint32(at + 4, true);
        const type = view.getUint32(at + 8, true);
        const nameAt = at + NOTE_HEADER;
        const descriptorAt = nameAt + pad4(nameSize);
        at = descriptorAt + pad4(descriptorSize);
        if (at > length) break;
        if (type !== abi.NT_GNU_BUILD_ID || descriptorSize > LONGEST_BUILD_ID) continue;
        if (nameSize === GNU.length && GNU.every((byte, i) => view.getUint8(nameAt + i) === byte))
          return hex(new Uint8Array(view.buffer, view.byteOffset + descriptorAt, descriptorSize));
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
    let budget = MOST_LOCATION_BYTES;
    for (const section of this.sections) {
      if (section.name !== sectionName || !section.hasBytes) continue;
      budget -= section.size;
      if (budget < 0) this.#file.damaged(`the sections ${sectionName} overlap`);
      const { relativeAddresses, relativeValues, symbolSlots } = this.#relocationTable;
      let relative = lowerBound(relativeAddresses, section.addressNumber);
      for (const { view, first } of this.#file.pieces(`a section ${sectionName}`, section, WORD)) {
        for (let at = 0; at < view.byteLength; at += WORD) {
          const address = section.addressNumber + first * WORD + at;
          while (relativeAddresses[relative] < address) relative++;
          const slot = symbolSlots.get(address);
          const value =
            relativeAddresses[relative] === address
              ? relativeValues[relative]
              : slot !== undefined
                ? (this.#dynamicSymbols?.definedAddress(slot.symbol) ?? 0) + slot.addend
                : u64OrNaN(view, at);
          if (value > 0 && Number.isSafeInteger(value)) found.push(value);
        }
      }
    }
    return found.sort((a, b) => a - b).map(BigInt);
  }
}

/** The name of the notes of GNU, with its NUL. */
const GNU = [0x47, 0x4e, 0x55, 0];

function pad4(size: number): number {
  return Math.ceil(size / 4) * 4;
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
