import { CannotError } from '../errors/index.js';
import { MemorySource, type ByteSource } from './byte-source.js';

const TWO_TO_32 = 0x1_0000_0000;
/** 2^53 / 2^32: with as much in its upper half or more a number would be rounded. */
const TOO_LARGE = 0x20_0000;
/** Bytes of a table that are read at once when it is gone through from end to end. */
const CHUNK_BYTES = 1024 * 1024;

/** An unsigned 64-bit value as a number; NaN where a number cannot hold it. */
export function u64OrNaN(view: DataView, offset: number): number {
  const high = view.getUint32(offset + 4, true);
  return high >= TOO_LARGE ? NaN : high * TWO_TO_32 + view.getUint32(offset, true);
}

/** A part of the file: offset and length in bytes. */
export interface FileRange {
  readonly offset: number;
  readonly size: number;
}

/**
 * The bytes of a file that may be damaged on purpose, larger than memory, and changing: every range is checked before it is read, and
 * only what is asked for is read.
 */
export class ElfBytes {
  readonly size: number;

  constructor(
    readonly source: ByteSource,
    readonly name: string,
  ) {
    this.size = source.size;
  }

  /** Throws the error for a file that contradicts itself. */
  damaged(why: string): never {
    throw new CannotError('elf-damaged', {
      tried: `read ${this.name}`,
      why: `its ELF tables are damaged: ${why}`,
      next: 'check that the file is complete',
    });
  }

  /** Throws unless `count` entries of `entrySize` bytes at `offset` lie within the file. */
  requireRange(what: string, offset: number, count: number, entrySize = 1): void {
    const length = count * entrySize;
    if (!(offset >= 0 && length >= 0 && offset + length <= this.size)) {
      this.#truncated(what, offset, length, `the file has ${this.size}`);
    }
  }

  /** A table of which all is needed; with more than `most` entries the file is damaged, since no linker writes so many. */
  table(what: string, offset: number, count: number, entrySize: number, most: number): DataView {
    this.requireRange(what, offset, count, entrySize);
    if (count > most) this.damaged(`${what} has ${count} entries, more than ${most}`);
    return this.#read(what, offset, count * entrySize);
  }

  /** The entries of a table, some at a time, so that one of any length needs the same memory. `first` is the index of a piece's first. */
  *pieces(
    what: string,
    { offset, size }: FileRange,
    entrySize: number,
  ): Generator<{ readonly view: DataView; readonly first: number; readonly count: number }> {
    const total = Math.floor(size / entrySize);
    this.requireRange(what, offset, total, entrySize);
    const most = Math.floor(CHUNK_BYTES / entrySize);
    for (let first = 0; first < total; first += most) {
      const count = Math.min(most, total - first);
      yield { view: this.#read(what, offset + first * entrySize, count * entrySize), first, count };
    }
  }

  #read(what: string, offset: number, length: number): DataView {
    const { source } = this;
    if (source instanceof MemorySource)
      return new DataView(source.bytes.buffer, source.bytes.byteOffset + offset, length);
    const bytes = new Uint8Array(length);
    const count = source.read(bytes, offset);
    if (count < length) this.#truncated(what, offset, length, `it has ended before since it was opened`);
    return new DataView(bytes.buffer);
  }

  #truncated(what: string, offset: number, length: number, but: string): never {
    throw new CannotError('elf-truncated', {
      tried: `read ${this.name}`,
      why: `${what} should be ${length} bytes at offset ${offset}, but ${but}`,
      next: 'check that the file is complete',
    });
  }

  /** An unsigned 64-bit value that must be an offset, a size or a user-space address. */
  u64(what: string, view: DataView, offset: number): number {
    const value = u64OrNaN(view, offset);
    if (Number.isNaN(value)) this.damaged(`${what} is beyond 2^53`);
    return value;
  }
}
