// A shared object that a dynamic loader takes, written from code and data. It has no sections, as loaders want none:
//
//   0             headers, dynamic symbols, their names, hash table, relocations, unwind tables    r-x
//   text.address  the code                                                                         r-x
//   data.address  the dynamic section, then the data                                               rw-
//
// Code finds data by distances from itself, so the loader has nothing to relocate but the slots of imports and of the
// thread-local storage. The unwind tables say of each range of code what its frame is, and whose personality is told of an exception that
// goes through it.
import {
  DF_1_INITFIRST,
  DF_STATIC_TLS,
  DT_FLAGS,
  DT_FLAGS_1,
  DT_HASH,
  DT_INIT,
  DT_NULL,
  DT_RELA,
  DT_RELAENT,
  DT_RELASZ,
  DT_SONAME,
  DT_STRSZ,
  DT_STRTAB,
  DT_SYMENT,
  DT_SYMTAB,
  DYN_SIZE,
  EHDR_SIZE,
  ET_DYN,
  PF_R,
  PF_W,
  PF_X,
  PHDR_SIZE,
  PT_DYNAMIC,
  PT_GNU_EH_FRAME,
  PT_GNU_STACK,
  PT_LOAD,
  PT_TLS,
  RELA,
  RELA_SIZE,
  R_X86_64_GLOB_DAT,
  R_X86_64_TPOFF64,
  SHN_UNDEF,
  STB_GLOBAL,
  STB_WEAK,
  STT_FUNC,
  STT_NOTYPE,
  SYM,
  SYM_SIZE,
} from './abi.js';
import { PAGE, writeHeaders, type ProgramHeader } from './elf-writer.js';

/** What a shared object is to have. Addresses count from where it will be loaded. */
export interface SharedObject {
  readonly soname: string;
  readonly text: { readonly address: number; readonly bytes: Uint8Array };
  /** The first DYNAMIC_ROOM bytes belong to the dynamic section; `bytes` lie behind them. */
  readonly data: { readonly address: number; readonly bytes: Uint8Array };
  readonly exports: readonly { readonly name: string; readonly address: number; readonly size: number }[];
  /** Symbols of others: the loader puts their addresses into the slots, or 0 where there is none of that name. */
  readonly imports: readonly { readonly name: string; readonly slot: number }[];
  /** Zeroed bytes that each thread has of its own; the loader puts their distance from the thread pointer into the slot. */
  readonly threadLocal: { readonly size: number; readonly slot: number };
  /** Called before the initialisers of all other objects. */
  readonly init: number;
  /** In ascending order. */
  readonly unwind: readonly UnwindRange[];
}

/** Code that unwinders find their way through. */
export interface UnwindRange {
  readonly address: number;
  readonly length: number;
  /** It begins with "push rbp; mov rbp, rsp", and the frame is that all along; else nothing is ever pushed. */
  readonly hasFrame: boolean;
  /** Address of the personality routine (C++ ABI for Itanium, exception handling, 2.5.2). */
  readonly personality?: number;
}

/** Room for the dynamic section at the beginning of the data. */
export const DYNAMIC_ROOM = 512;
const HEADERS = 6;
/** Section index of symbols that are defined: there are no sections, but it must not be SHN_UNDEF. */
const DEFINED = 1;
const WORD = 4;

/** DWARF 5, 6.4.1 and 7.24, and the eh_frame of the System V ABI for x86-64. */
const DW_CFA_ADVANCE_LOC = 0x40;
const DW_CFA_OFFSET = 0x80;
const DW_CFA_DEF_CFA = 0x0c;
const DW_CFA_DEF_CFA_REGISTER = 0x0d;
const DW_CFA_DEF_CFA_OFFSET = 0x0e;
const DW_RBP = 6;
const DW_RSP = 7;
const DW_RETURN_ADDRESS = 16;
const DW_EH_PE_PCREL_SDATA4 = 0x1b;
const DW_EH_PE_UDATA4 = 0x03;
const DW_EH_PE_DATAREL_SDATA4 = 0x3b;

function alignUp(size: number, alignment: number): number {
  return Math.ceil(size / alignment) * alignment;
}

/** The hash function of the gABI, "Hash Table". */
function hashOf(name: string): number {
  let hash = 0;
  for (const byte of new TextEncoder().encode(name)) {
    hash = ((hash << 4) + byte) >>> 0;
    const high = hash & 0xf000_0000;
    hash = (hash ^ (high >>> 24)) & ~high;
  }
  return hash >>> 0;
}

/** Bytes of a common information entry and a frame description, for each range its own; of the end mark behind all: eh_frame. */
const CIE_BYTES = 32;
const FDE_BYTES = 28;
/** Where the rules of a frame description begin: behind the length of its augmentation, 0. */
const FDE_RULES = 17;
const RANGE_BYTES = CIE_BYTES + FDE_BYTES;
/** Bytes of the header, and of an entry of its table. */
const EH_FRAME_HDR_BYTES = 12;
const EH_FRAME_HDR_ENTRY = 8;

const unwindHeaderBytes = (ranges: number): number => EH_FRAME_HDR_BYTES + ranges * EH_FRAME_HDR_ENTRY;
const unwindBytes = (ranges: number): number => unwindHeaderBytes(ranges) + ranges * RANGE_BYTES + WORD;

/** At a function's first instruction: CFA = rsp + 8, the return address at CFA-8. */
const FIRST_RULES = [DW_CFA_DEF_CFA, DW_RSP, 8, DW_CFA_OFFSET | DW_RETURN_ADDRESS, 1];
/** Behind push rbp, of one byte: rbp at CFA-16. Behind mov rbp, rsp, of three: CFA = rbp + 16. */
const FRAME_RULES = [
  ...[DW_CFA_ADVANCE_LOC | 1, DW_CFA_DEF_CFA_OFFSET, 16, DW_CFA_OFFSET | DW_RBP, 2],
  ...[DW_CFA_ADVANCE_LOC | 3, DW_CFA_DEF_CFA_REGISTER, DW_RBP],
];

function writeUnwindTables(file: Uint8Array, at: number, ranges: SharedObject['unwind']): void {
  const view = new DataView(file.buffer);
  const put = (offset: number, value: number): void => {
    view.setInt32(at + offset, value, true);
  };
  // Header: version, encodings, where eh_frame is, and a table to search in.
  const frame = unwindHeaderBytes(ranges.length);
  file.set([1, DW_EH_PE_PCREL_SDATA4, DW_EH_PE_UDATA4, DW_EH_PE_DATAREL_SDATA4], at);
  put(4, frame - 4);
  put(8, ranges.length);
  ranges.forEach(({ address, length, hasFrame, personality }, i) => {
    const cie = frame + i * RANGE_BYTES;
    const fde = cie + CIE_BYTES;
    put(EH_FRAME_HDR_BYTES + i * EH_FRAME_HDR_ENTRY, address - at);
    put(EH_FRAME_HDR_BYTES + i * EH_FRAME_HDR_ENTRY + 4, fde);
    // CIE: "zR" or "zPR", code alignment 1, data alignment -8.
    put(cie, CIE_BYTES - WORD);
    put(cie + 4, 0);
    const alignments = [1, 0x78, DW_RETURN_ADDRESS];
    if (personality === undefined) {
      file.set([1, 0x7a, 0x52, 0, ...alignments, 1, DW_EH_PE_PCREL_SDATA4, ...FIRST_RULES], at + cie + 8);
    } else {
      const start = [1, 0x7a, 0x50, 0x52, 0, ...alignments, 6, DW_EH_PE_PCREL_SDATA4];
      file.set(start, at + cie + 8);
      const pointer = cie + 8 + start.length;
      put(pointer, personality - (at + pointer));
      file.set([DW_EH_PE_PCREL_SDATA4, ...FIRST_RULES], at + pointer + WORD);
    }
    put(fde, FDE_BYTES - WORD);
    put(fde + 4, CIE_BYTES + WORD);
    put(fde + 8, address - (at + fde + 8));
    put(fde + 12, length);
    if (hasFrame) file.set(FRAME_RULES, at + fde + FDE_RULES);
  });
}

/** Writes the file. @throws Error where the parts do not fit before each other: a defect of the caller */
export function writeSharedObject(object: SharedObject): Uint8Array {
  const { text, data, exports, imports, threadLocal } = object;
  const names = ['', object.soname, ...exports.map((e) => e.name), ...imports.map((i) => i.name)];
  const encoded = names.map((name) => new TextEncoder().encode(`${name}\0`));
  const nameOffsets: number[] = [];
  let nameBytes = 0;
  for (const { length } of encoded) {
    nameOffsets.push(nameBytes);
    nameBytes += length;
  }
  const symbolCount = 1 + exports.length + imports.length;
  const buckets = exports.length;
  const symbolsAt = EHDR_SIZE + HEADERS * PHDR_SIZE;
  const hashAt = symbolsAt + symbolCount * SYM_SIZE;
  const relocationsAt = alignUp(hashAt + (2 + buckets + symbolCount) * WORD, 8);
  const relocationBytes = (imports.length + 1) * RELA_SIZE;
  const unwindAt = relocationsAt + relocationBytes;
  const namesAt = unwindAt + unwindBytes(object.unwind.length);
  const textEnd = text.address + text.bytes.length;
  if (namesAt + nameBytes > text.address || textEnd > data.address || data.address % PAGE !== 0)
    throw new Error('the parts of the shared object overlap');

  const dataSize = DYNAMIC_ROOM + data.bytes.length;
  const file = new Uint8Array(data.address + dataSize);
  const view = new DataView(file.buffer);
  encoded.forEach((bytes, i) => file.set(bytes, namesAt + nameOffsets[i]));
  const symbol = (index: number, name: number, binding: number, type: number): number => {
    const at = symbolsAt + index * SYM_SIZE;
    view.setUint32(at + SYM.name, nameOffsets[name], true);
    file[at + SYM.info] = (binding << 4) | type;
    return at;
  };
  const firstName = 2;
  exports.forEach(({ address, size }, i) => {
    const at = symbol(1 + i, firstName + i, STB_GLOBAL, STT_FUNC);
    view.setUint16(at + SYM.sectionIndex, DEFINED, true);
    view.setBigUint64(at + SYM.value, BigInt(address), true);
    view.setBigUint64(at + SYM.size, BigInt(size), true);
  });
  imports.forEach((_, i) => {
    const index = 1 + exports.length + i;
    const at = symbol(index, firstName + exports.length + i, STB_WEAK, STT_NOTYPE);
    view.setUint16(at + SYM.sectionIndex, SHN_UNDEF, true);
  });
  view.setUint32(hashAt, buckets, true);
  view.setUint32(hashAt + WORD, symbolCount, true);
  const bucketsAt = hashAt + 2 * WORD;
  const chainsAt = bucketsAt + buckets * WORD;
  exports.forEach(({ name }, i) => {
    const bucket = bucketsAt + (hashOf(name) % buckets) * WORD;
    view.setUint32(chainsAt + (1 + i) * WORD, view.getUint32(bucket, true), true);
    view.setUint32(bucket, 1 + i, true);
  });
  const relocation = (index: number, slot: number, type: number, of: number): void => {
    const at = relocationsAt + index * RELA_SIZE;
    view.setBigUint64(at + RELA.offset, BigInt(slot), true);
    view.setUint32(at + RELA.type, type, true);
    view.setUint32(at + RELA.symbol, of, true);
  };
  imports.forEach(({ slot }, i) => {
    relocation(i, slot, R_X86_64_GLOB_DAT, 1 + exports.length + i);
  });
  relocation(imports.length, threadLocal.slot, R_X86_64_TPOFF64, 0);
  writeUnwindTables(file, unwindAt, object.unwind);
  file.set(text.bytes, text.address);

  const dynamic: readonly (readonly [number, number])[] = [
    [DT_SONAME, nameOffsets[1]],
    [DT_HASH, hashAt],
    [DT_SYMTAB, symbolsAt],
    [DT_SYMENT, SYM_SIZE],
    [DT_STRTAB, namesAt],
    [DT_STRSZ, nameBytes],
    [DT_RELA, relocationsAt],
    [DT_RELASZ, relocationBytes],
    [DT_RELAENT, RELA_SIZE],
    [DT_INIT, object.init],
    [DT_FLAGS, DF_STATIC_TLS],
    [DT_FLAGS_1, DF_1_INITFIRST],
    [DT_NULL, 0],
  ];
  dynamic.forEach(([tag, value], i) => {
    view.setBigUint64(data.address + i * DYN_SIZE, BigInt(tag), true);
    view.setBigUint64(data.address + i * DYN_SIZE + 8, BigInt(value), true);
  });
  file.set(data.bytes, data.address + DYNAMIC_ROOM);

  const header = (
    type: number,
    flags: number,
    at: number,
    fileSize: number,
    memorySize: number,
    alignment: number,
  ): ProgramHeader => ({ type, flags, offset: at, address: BigInt(at), fileSize, memorySize, alignment });
  writeHeaders(file, ET_DYN, 0n, [
    header(PT_LOAD, PF_R | PF_X, 0, textEnd, textEnd, PAGE),
    header(PT_LOAD, PF_R | PF_W, data.address, dataSize, dataSize, PAGE),
    header(PT_DYNAMIC, PF_R | PF_W, data.address, dynamic.length * DYN_SIZE, dynamic.length * DYN_SIZE, 8),
    header(PT_TLS, PF_R, data.address, 0, threadLocal.size, 8),
    header(
      PT_GNU_EH_FRAME,
      PF_R,
      unwindAt,
      unwindHeaderBytes(object.unwind.length),
      unwindHeaderBytes(object.unwind.length),
      WORD,
    ),
    // Without it loaders take the stack to have to be executable.
    header(PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 16),
  ]);
  return file;
}
