/**
 * What the rest of safepoke knows of an ELF file. Addresses are those of the file ("vaddr"): add the load bias of a
 * running process to get its addresses. They are `bigint` at this border; the fields named `...Number` are the same
 * value as a number, exact because `parseElf` refuses files with addresses beyond 2^53, for loops over 10^5 symbols.
 */

/** ET_EXEC has a fixed address; ET_DYN is a position-independent executable or a shared object. */
export type ElfType = 'executable' | 'shared-object';

/** A program header. */
export interface ElfSegment {
  /** p_type: 1 is PT_LOAD. */
  readonly type: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly executable: boolean;
  readonly offset: number;
  readonly address: bigint;
  readonly addressNumber: number;
  /** Bytes that come from the file; the rest of `memorySize` is zero. */
  readonly fileSize: number;
  readonly memorySize: number;
}

/** A section header. `offset` and `size` lie within the file unless `hasBytes` is false (SHT_NOBITS). */
export interface ElfSection {
  readonly name: string;
  readonly type: number;
  readonly executable: boolean;
  readonly allocated: boolean;
  readonly hasBytes: boolean;
  readonly address: bigint;
  readonly addressNumber: number;
  readonly offset: number;
  readonly size: number;
  readonly link: number;
  readonly entrySize: number;
}

export type SymbolKind = 'function' | 'ifunc' | 'object' | 'untyped' | 'other';
export type SymbolBinding = 'local' | 'global' | 'weak';

/** A defined symbol. */
export interface ElfSymbol {
  /** Read from the string table when asked for; never carries a version. */
  readonly name: string;
  /** Only programs that were linked with this version of a library get this symbol: the name means another one to others. */
  readonly oldVersion: string | undefined;
  readonly kind: SymbolKind;
  readonly binding: SymbolBinding;
  readonly address: bigint;
  readonly addressNumber: number;
  /** Bytes; 0 when the symbol does not say (hand-written assembly). */
  readonly size: number;
  readonly table: 'symtab' | 'dynsym';
}

export interface ElfFile {
  /** As given to `parseElf`: a path or a module name, for messages. */
  readonly name: string;
  /**
   * What is loaded of the file, at its offsets; zero where nothing has been read yet: only what `codeOffset` and `bytesAt` have given is
   * there.
   */
  readonly bytes: Uint8Array;
  readonly type: ElfType;
  readonly entry: bigint;
  readonly segments: readonly ElfSegment[];
  /** Those of them that are loaded (PT_LOAD). */
  readonly loaded: readonly ElfSegment[];
  /** Empty when the file was stripped of its section headers. */
  readonly sections: readonly ElfSection[];
  /** Hexadecimal, lower case. */
  readonly buildId: string | undefined;
  /** The dynamic loader that the file asks for (PT_INTERP). */
  readonly interpreter: string | undefined;
  readonly soname: string | undefined;
  readonly needed: readonly string[];
  readonly hasUnwindTables: boolean;
  /** Defined symbols of .symtab, then of .dynsym (found through PT_DYNAMIC where sections are missing). */
  readonly symbols: readonly ElfSymbol[];
  /** Where the compiler left nops (`-fpatchable-function-entry`): the first nop of each function. Ascending. */
  readonly patchableEntries: readonly bigint[];
  /** Where the compiler left a call to mcount or `__fentry__`, or its nop (`-mrecord-mcount`). Ascending. */
  readonly mcountLocations: readonly bigint[];
  /** Every address within the module that the loader writes somewhere (relative relocations), ascending, as numbers. */
  readonly relocatedPointers: Float64Array;

  /**
   * Reads what is else read when it is asked for, and may be found damaged then: symbols, relocations, recorded places. Returns how many
   * there are. @throws CannotError
   */
  readTables(): number;

  /** Offset in the file of a loaded address; undefined if no byte of the file is loaded there. */
  fileOffsetOf(address: bigint): number | undefined;
  /** Address at which a byte of the file is loaded; undefined if none is. */
  addressOf(fileOffset: number): bigint | undefined;
  /** The page of the file at an offset, as a mapping has it: zero behind the file's end. Undefined if it cannot be read. */
  pageAt(offset: number): Uint8Array | undefined;
  /** A view (not a copy) of the bytes loaded at `address`; undefined unless all come from one segment of the file. */
  bytesAt(address: bigint, length: number): Uint8Array | undefined;
  /** A view of all bytes of the file that a segment loads, however many; undefined where they cannot be read. */
  segmentBytes(segment: ElfSegment): Uint8Array | undefined;
  /** The signed 4-byte word that the file has for an address; undefined if it has none. For hot loops. */
  int32At(address: number): number | undefined;
  /** True if all `length` bytes at `address` come from the file and are executable. */
  isExecutable(address: bigint, length: number): boolean;
  /** Offset in `bytes` of the executable bytes at `address` if all `length` of them come from the file; else -1. For hot loops. */
  codeOffset(address: number, length: number): number;
  /** False if no symbol's name contains any of the ASCII texts. Far faster than to look at all names. */
  mentions(...texts: readonly string[]): boolean;
  /** Name of the symbol that the loader puts into the 8-byte slot at `address` (GOT, PLT); undefined if it does not. */
  importAt(address: bigint): string | undefined;
  /**
   * The 8-byte word at `address` as it stands after relocation with a load bias of zero; undefined if it is not in the
   * file, or depends on another module.
   */
  pointerAt(address: bigint): bigint | undefined;
}
