import * as abi from './abi.js';
import type { ElfBytes } from './elf-bytes.js';

/** A part of the file: offset and length in bytes, checked to lie within it. */
export interface FileRange {
  readonly offset: number;
  readonly size: number;
}

/** What PT_DYNAMIC says, its addresses turned into ranges of the file. */
export interface DynamicTable {
  readonly soname: string | undefined;
  readonly needed: readonly string[];
  readonly strings: FileRange | undefined;
  /** Offset of the dynamic symbol table, whose length nothing states: see `countByHash`. */
  readonly symbolsOffset: number | undefined;
  readonly hashOffset: number | undefined;
  readonly gnuHashOffset: number | undefined;
  /** DT_RELA and DT_JMPREL, which may be the same or overlap. */
  readonly relocations: readonly FileRange[];
  readonly relativeRelocations: FileRange | undefined;
}

/** Reads PT_DYNAMIC at `range`; `offsetOf` maps a loaded address to its offset in the file. */
export function readDynamicTable(
  file: ElfBytes,
  range: FileRange,
  offsetOf: (address: number) => number | undefined,
): DynamicTable {
  const values = new Map<number, number>();
  const neededOffsets: number[] = [];
  for (let at = range.offset; at + abi.DYN_SIZE <= range.offset + range.size; at += abi.DYN_SIZE) {
    const tag = file.u64OrNaN(at);
    if (tag === abi.DT_NULL) break;
    const value = file.u64OrNaN(at + 8);
    if (Number.isNaN(tag) || Number.isNaN(value)) continue;
    if (tag === abi.DT_NEEDED) neededOffsets.push(value);
    else values.set(tag, value);
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
  const strings = rangeFor('the dynamic string table', abi.DT_STRTAB, abi.DT_STRSZ);
  const stringAt = (offset: number): string | undefined =>
    strings === undefined || offset >= strings.size
      ? undefined
      : file.stringAt(strings.offset + offset, strings.offset + strings.size);

  const soname = values.get(abi.DT_SONAME);
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
  };
}

/** The number of dynamic symbols, as the hash table over them implies; undefined without one. */
export function countByHash(file: ElfBytes, dynamic: DynamicTable): number | undefined {
  if (dynamic.hashOffset !== undefined) {
    // nbucket, nchain: one chain entry for each symbol.
    file.requireRange('the hash table', dynamic.hashOffset, 8);
    return file.view.getUint32(dynamic.hashOffset + 4, true);
  }
  if (dynamic.gnuHashOffset !== undefined) return countByGnuHash(file, dynamic.gnuHashOffset);
  return undefined;
}

/**
 * DT_GNU_HASH: nbuckets, symoffset, bloom_size, bloom_shift; bloom words (8 bytes each); buckets; chains. A bucket holds
 * the index of its first symbol, whose chain goes on through consecutive symbols until a hash with its lowest bit set.
 */
function countByGnuHash(file: ElfBytes, offset: number): number {
  const { view } = file;
  file.requireRange('the GNU hash table', offset, 16);
  const bucketCount = view.getUint32(offset, true);
  const firstHashed = view.getUint32(offset + 4, true);
  const buckets = offset + 16 + view.getUint32(offset + 8, true) * 8;
  file.requireRange('the buckets of the GNU hash table', buckets, bucketCount, 4);
  let last = 0;
  for (let i = 0; i < bucketCount; i++) last = Math.max(last, view.getUint32(buckets + i * 4, true));
  if (last < firstHashed) return firstHashed;
  const chains = buckets + bucketCount * 4;
  for (;;) {
    const at = chains + (last - firstHashed) * 4;
    file.requireRange('a chain of the GNU hash table', at, 4);
    if ((view.getUint32(at, true) & 1) !== 0) return last + 1;
    last++;
  }
}
