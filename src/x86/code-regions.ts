// The code of a file, and a byte of marks for each byte of it: what stands there, and who comes there.
import type { ElfFile } from '../elf/index.js';

/** What is known of a byte of code; bits. */
export const Mark = {
  /** Something may land here: a superset, for safety. */
  landing: 1,
  /** Something does land here, as far as code and data can be understood: never without `landing`. */
  known: 2,
  /** An instruction begins here, as the code around it is decoded. */
  instruction: 4,
  /** It is called, or its address is taken. */
  called: 8,
  /** Whoever lands here is not a direct jump within the same function. */
  foreign: 16,
  /** It is an entry of a table of addresses that a jump of the same function reads. */
  entry: 64,
} as const;

/** Executable bytes of a file that lie together. Indexes count from `start`. */
export class CodeRegion {
  readonly end: number;
  readonly marks: Uint8Array;

  constructor(
    readonly start: number,
    readonly bytes: Uint8Array,
  ) {
    this.end = start + bytes.length;
    this.marks = new Uint8Array(bytes.length);
  }
}

/** A part of a region that holds code and not data, as indexes into it. */
export interface CodeArea {
  readonly region: CodeRegion;
  readonly from: number;
  readonly to: number;
}

/** All executable bytes of a file, ascending by address. */
export class CodeRegions {
  readonly list: readonly CodeRegion[];
  #last: CodeRegion | undefined;

  constructor(elf: ElfFile) {
    const loaded = elf.loaded.filter(({ fileSize }) => fileSize > 0);
    // No byte of a sane file is loaded twice: a damaged one must not make us keep marks for more than its bytes.
    let left = loaded.reduce((end, { offset, fileSize }) => Math.max(end, offset + fileSize), 0);
    const list: CodeRegion[] = [];
    for (const segment of loaded.sort((a, b) => a.addressNumber - b.addressNumber)) {
      const { executable, addressNumber, fileSize } = segment;
      if (!executable || fileSize > left || addressNumber < (list.at(-1)?.end ?? 0)) continue;
      const bytes = elf.segmentBytes(segment);
      if (bytes === undefined) continue;
      left -= fileSize;
      list.push(new CodeRegion(addressNumber, bytes));
    }
    this.list = list;
  }

  /** The region that has a byte at `address`. */
  at(address: number): CodeRegion | undefined {
    const last = this.#last;
    if (last !== undefined && address >= last.start && address < last.end) return last;
    const found = this.list.find(({ start, end }) => address >= start && address < end);
    if (found !== undefined) this.#last = found;
    return found;
  }

  /** Adds marks to an address; one that is not of code is left out. */
  mark(address: number, marks: number): void {
    const region = this.at(address);
    if (region !== undefined) region.marks[address - region.start] |= marks;
  }

  marksAt(address: number): number {
    const region = this.at(address);
    return region === undefined ? 0 : region.marks[address - region.start];
  }

  /** All marks of the addresses from `from` up to below `to`, together. */
  marksWithin(from: number, to: number): number {
    const region = this.at(from);
    if (region === undefined) return 0;
    const { marks, start } = region;
    const end = Math.min(to - start, marks.length);
    let all = 0;
    for (let i = from - start; i < end; i++) all |= marks[i];
    return all;
  }

  /** The parts that hold code: by section, as some linkers put read-only data beside it; else whole regions. */
  areas(elf: ElfFile): CodeArea[] {
    const areas: CodeArea[] = [];
    const sections = elf.sections
      .filter(({ executable, hasBytes, allocated, size }) => executable && hasBytes && allocated && size > 0)
      .sort((a, b) => a.addressNumber - b.addressNumber);
    for (const region of this.list) {
      let at = 0;
      let any = false;
      for (const { addressNumber, size } of sections) {
        const from = Math.max(addressNumber - region.start, at);
        const to = Math.min(addressNumber + size - region.start, region.bytes.length);
        if (to <= from) continue;
        areas.push({ region, from, to });
        at = to;
        any = true;
      }
      if (!any) areas.push({ region, from: 0, to: region.bytes.length });
    }
    return areas;
  }
}
