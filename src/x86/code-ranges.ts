// What code is divided into: functions that symbols name, and what unwind tables know besides.
import { lowerBound, type UnwindTable } from '../elf/index.js';
import type { CodeRegions } from './code-regions.js';
import { endbrLength } from './displaced.js';
import type { FunctionRange } from './sites.js';

/** What the sweep finds out about a range; bits. */
export const Trait = {
  /** Some of its bytes are no instruction. */
  undecodable: 1,
  /** It, or a part of it, jumps to its own entry. */
  reentered: 2,
  /** It is a part of another function: nobody calls it. */
  fragment: 4,
  /** It computes a jump whose targets are not all known. */
  openJump: 8,
  /** It uses memory below its stack pointer. */
  redZone: 16,
  /** It reads or changes its own return address. */
  ownReturn: 32,
  /** Its last instruction goes on into what follows. */
  fallsThrough: 64,
  /** Another function jumps into its middle. */
  enteredInside: 128,
  /** It jumps into the middle of another function. */
  leavesInside: 256,
  /** Its stack pointer goes ways that cannot be followed. */
  oddStack: 512,
  /** It has jumps whose target is in a register or in memory. */
  indirect: 1024,
} as const;

/** Ranges that do not overlap, ascending by address. */
export class CodeRanges {
  readonly starts: Float64Array;
  readonly ends: Float64Array;
  readonly traits: Uint16Array;
  /** Of the function that a fragment is a part of; else its own index. */
  readonly owners: Int32Array;
  /** Index of the function that a symbol names; -1: only an unwind table knows the range. */
  readonly functions: Int32Array;
  /** Index of the entry of the unwind table that covers its start; -1: none. */
  readonly unwind: Int32Array;

  /** `functions`: all that are known of the file, ascending. */
  constructor(regions: CodeRegions, functions: readonly FunctionRange[], unwind: UnwindTable) {
    const starts: number[] = [];
    const ends: number[] = [];
    const named: number[] = [];
    const entries: number[] = [];
    const add = (start: number, end: number, index: number): void => {
      const region = regions.at(start);
      if (region === undefined) return;
      const last = starts.length - 1;
      if (last >= 0 && ends[last] > start) ends[last] = start;
      starts.push(start);
      ends.push(Math.min(end, region.end));
      named.push(index);
      entries.push(unwind.indexAt(start));
    };
    let next = 0;
    let isGuess = false;
    const addUnnamed = (limit: number): void => {
      for (; next < unwind.count && unwind.starts[next] < limit; next++) {
        const start = unwind.starts[next];
        const isInside =
          starts.length > 0 &&
          start < ends[ends.length - 1] &&
          !(isGuess && start > starts[starts.length - 1]);
        // The PLT is one entry for all of its stubs, with a frame that only an expression describes, and nobody's function.
        if (isInside || unwind.isCallFrame(next, start) === undefined || isPlt(regions, start)) continue;
        add(start, Math.min(start + unwind.sizes[next], limit), -1);
        isGuess = false;
      }
    };
    for (let i = 0; i < functions.length; i++) {
      const { addressNumber, size, sizeKnown } = functions[i];
      addUnnamed(addressNumber);
      if (!(size > 0) || addressNumber === starts.at(-1)) continue;
      let end = addressNumber + size;
      const entry = unwind.indexAt(addressNumber);
      if (sizeKnown === false && entry >= 0) end = Math.min(end, unwind.starts[entry] + unwind.sizes[entry]);
      add(addressNumber, end, i);
      isGuess = sizeKnown === false;
    }
    addUnnamed(Infinity);
    this.starts = Float64Array.from(starts);
    this.ends = Float64Array.from(ends);
    this.functions = Int32Array.from(named);
    this.unwind = Int32Array.from(entries);
    this.traits = new Uint16Array(starts.length);
    this.owners = Int32Array.from(starts.keys());
  }

  get count(): number {
    return this.starts.length;
  }

  /** Index of the range that contains an address; -1: none does. */
  indexAt(address: number): number {
    const index = lowerBound(this.starts, address + 1) - 1;
    return index >= 0 && address < this.ends[index] ? index : -1;
  }

  /** Index of the range that begins at an address; -1: none does. */
  startingAt(address: number): number {
    const index = lowerBound(this.starts, address);
    return this.starts[index] === address ? index : -1;
  }

  has(index: number, trait: number): boolean {
    return (this.traits[index] & trait) !== 0;
  }

  /** Where a call comes in: the start of a range, or behind the `endbr64` there. */
  isEntry(index: number, address: number, regions: CodeRegions): boolean {
    const start = this.starts[index];
    if (address === start) return true;
    const region = regions.at(start);
    return region !== undefined && address === start + endbrLength(region.bytes, start - region.start);
  }
}

/** True where the PLT begins: push and jump through the slots of the GOT that the loader fills, perhaps with a bnd prefix. */
function isPlt(regions: CodeRegions, address: number): boolean {
  const region = regions.at(address);
  if (region === undefined) return false;
  const { bytes } = region;
  const at = address - region.start;
  const jump = at + (bytes[at + 6] === 0xf2 ? 7 : 6);
  return bytes[at] === 0xff && bytes[at + 1] === 0x35 && bytes[jump] === 0xff && bytes[jump + 1] === 0x25;
}
