import * as abi from './abi.js';
import { u64OrNaN, type ElfBytes, type FileRange } from './elf-bytes.js';
import { StringTable } from './string-table.js';
import type { VersionTables } from './symbol-versions.js';

/** PATH_MAX: what a loader can open is no longer. */
const LONGEST_PATH = 4096;
/** More than any linker writes, of entries and of libraries that are needed. */
const MOST_ENTRIES = 65_536;
const MOST_NEEDED = 4096;

/** What PT_DYNAMIC says, its addresses turned into ranges of the file. */
export interface DynamicTable {
  readonly soname: string | undefined;
  readonly needed: readonly string[];
  readonly strings: StringTable | undefined;
  /** Offset of the dynamic symbol table, whose length nothing states: see `countByHash`. */
  readonly symbolsOffset: number | undefined;
  readonly hashOffset: number | undefined;
  readonly gnuHashOffset: number | undefined;
  /** DT_RELA and DT_JMPREL, which may be the same or overlap. */
  readonly relocations: readonly FileRange[];
  readonly relativeRelocations: FileRange | undefined;
  /** Of the dynamic symbols; undefined if they have none. */
  readonly versions: VersionTables | undefined;
}

/** Reads PT_DYNAMIC at `range`; `offsetOf` maps a loaded address to its offset in the file. */
export function readDynamicTable(
  file: ElfBytes,
  range: FileRange,
  offsetOf: (address: number) => number | undefined,
): DynamicTable {
  const values = new Map<number, number>();
  const neededOffsets: number[] = [];
  const count = Math.floor(range.size / abi.DYN_SIZE);
  const view = file.table('the dynamic section', range.offset, count, abi.DYN_SIZE, MOST_ENTRIES);
  for (let at = 0; at < view.byteLength; at += abi.DYN_SIZE) {
    const tag = u64OrNaN(view, at);
    if (tag === abi.DT_NULL) break;
    const value = u64OrNaN(view, at + 8);
    if (Number.isNaN(tag) || Number.isNaN(value)) continue;
    if (tag === abi.DT_NEEDED) {
      if (neededOffsets.length === MOST_NEEDED) file.damaged(`it needs more than ${MOST_NEEDED} libraries`);
      neededOffsets.push(value);
    } else values.set(tag, value);
  }

  const offsetFor = (tag: number): number | undefined => {
    const address = values.get(tag);
    return address === undefined ? undefined : offsetOf(address);
  };
  const rangeFor = (what: string, tag: number, sizeTag: number): FileRange | undefined => {
    const offset = offsetFor(tag);
    const size = values.get(sizeTag);
    if (offset === undefined || size === undefined) return undefined;
    file.requireRange(what, offset, size);
    return { offset, size };
  };
  const what = 'the dynamic string table';
  const stringsRange = rangeFor(what, abi.DT_STRTAB, abi.DT_STRSZ);
  const strings = stringsRange && new StringTable(file, what, stringsRange);
  const stringAt = (offset: number): string | undefined =>
    strings === undefined || offset >= strings.size ? undefined : strings.at(offset, LONGEST_PATH);

  const soname = values.get(abi.DT_SONAME);
  const versionsOffset = offsetFor(abi.DT_VERSYM);
  const definitionsOffset = offsetFor(abi.DT_VERDEF);
  const definitionCount = values.get(abi.DT_VERDEFNUM);
  const hasVersions =
    strings !== undefined &&
    versionsOffset !== undefined &&
    definitionsOffset !== undefined &&
    definitionCount !== undefined;
  return {
    soname: soname === undefined ? undefined : stringAt(soname),
    needed: neededOffsets.map(stringAt).filter((name) => name !== undefined),
    strings,
    symbolsOffset: offsetFor(abi.DT_SYMTAB),
    hashOffset: offsetFor(abi.DT_HASH),
    gnuHashOffset: offsetFor(abi.DT_GNU_HASH),
    relocations: [
      rangeFor('the relocation table', abi.DT_RELA, abi.DT_RELASZ),
      rangeFor('the PLT relocation table', abi.DT_JMPREL, abi.DT_PLTRELSZ),
    ].filter((table) => table !== undefined),
    relativeRelocations: rangeFor('the packed relocation table', abi.DT_RELR, abi.DT_RELRSZ),
    versions: hasVersions
      ? { symbolsOffset: versionsOffset, definitionsOffset, definitionCount, strings }
      : undefined,
  };
}

/** The number of dynamic symbols, as the hash table over them implies; undefined without one. */
export function countByHash(file: ElfBytes, dynamic: DynamicTable): number | undefined {
  if (dynamic.hashOffset !== undefined) {
    // nbucket, nchain: one chain entry for each symbol.
    return file.table('the hash table', dynamic.hashOffset, 2, WORD, 2).getUint32(WORD, true);
  }
  if (dynamic.gnuHashOffset !== undefined) return countByGnuHash(file, dynamic.gnuHashOffset);
  return undefined;
}

const WORD = 4;
const GNU_HASH_WORDS = 4;
const BLOOM_WORD = 8;

/**
 * DT_GNU_HASH: nbuckets, symoffset, bloom_size, bloom_shift; bloom words (8 bytes each); buckets; chains. A bucket holds
 * the index of its first symbol, whose chain goes on through consecutive symbols until a hash with its lowest bit set.
 */
function countByGnuHash(file: ElfBytes, offset: number): number {
  const header = file.table('the GNU hash table', offset, GNU_HASH_WORDS, WORD, GNU_HASH_WORDS);
  const bucketCount = header.getUint32(0, true);
  const firstHashed = header.getUint32(WORD, true);
  const buckets = offset + GNU_HASH_WORDS * WORD + header.getUint32(2 * WORD, true) * BLOOM_WORD;
  const bucketBytes = bucketCount * WORD;
  let last = 0;
  const range = { offset: buckets, size: bucketBytes };
  for (const { view, count } of file.pieces('the buckets of the GNU hash table', range, WORD))
    for (let i = 0; i < count; i++) last = Math.max(last, view.getUint32(i * WORD, true));
  if (last < firstHashed) return firstHashed;
  const what = 'a chain of the GNU hash table';
  const chain = buckets + bucketBytes + (last - firstHashed) * WORD;
  file.requireRange(what, chain, 1, WORD);
  // A chain without an end ends with the file.
  for (const { view, first, count } of file.pieces(what, { offset: chain, size: file.size - chain }, WORD))
    for (let i = 0; i < count; i++)
      if ((view.getUint32(i * WORD, true) & 1) !== 0) return last + first + i + 1;
  return file.damaged(`${what} has no end`);
}
