import { MemorySource, type ByteSource } from './byte-source.js';

/**
 * Read at once, in bytes; a power of two. Decoders serve pieces of the same size with the same ends, so that none holds what has not been
 * read yet (`PIECE_BYTES` in src/x86/instruction-flow.ts).
 */
export const BLOCK_BYTES = 256 * 1024;

/**
 * A part of a file in memory, of which only the blocks that were asked for are read. The array has the size of the whole part: memory
 * that nobody has written to costs nothing, as the kernel finds it only then.
 */
export class SparseBytes {
  readonly #source: ByteSource;
  readonly #offset: number;
  readonly #size: number;
  #bytes: Uint8Array | undefined;
  /** One for each block: it has been read. */
  #isRead: Uint8Array | undefined;
  /** One for each block: the file ended before it did. */
  readonly #isShort = new Set<number>();

  /** Of `source`, `size` bytes from `offset` on. */
  constructor(source: ByteSource, offset: number, size: number) {
    this.#source = source;
    this.#offset = offset;
    this.#size = size;
    if (source instanceof MemorySource) this.#bytes = source.bytes.subarray(offset, offset + size);
  }

  /** Indices count from the beginning of the part. What `load` has not been asked for is zero. It is always the same array. */
  get bytes(): Uint8Array {
    return this.#bytes ?? this.#make();
  }

  /** Reads what is not there yet from index `from` up to `to`. False: the part has no such bytes, or the file not any more. */
  load(from: number, to: number): boolean {
    if (!(from >= 0 && from <= to && to <= this.#size)) return false;
    const { bytes } = this;
    const isRead = this.#isRead;
    // All is there, or there is no array.
    if (isRead === undefined) return to <= bytes.length;
    const last = Math.floor((to - 1) / BLOCK_BYTES);
    for (let block = Math.floor(from / BLOCK_BYTES); block <= last; block++) {
      if (isRead[block] === 0) this.#read(isRead, block);
      if (this.#isShort.size > 0 && this.#isShort.has(block)) return false;
    }
    return true;
  }

  #make(): Uint8Array {
    try {
      this.#bytes = new Uint8Array(this.#size);
      this.#isRead = new Uint8Array(Math.ceil(this.#size / BLOCK_BYTES));
    } catch {
      // No such room in the address space, or more than an array may have: as if nothing could be read.
      this.#bytes = new Uint8Array(0);
    }
    return this.#bytes;
  }

  #read(isRead: Uint8Array, block: number): void {
    const start = block * BLOCK_BYTES;
    const into = this.bytes.subarray(start, Math.min(start + BLOCK_BYTES, this.#size));
    if (this.#source.read(into, this.#offset + start) < into.length) this.#isShort.add(block);
    isRead[block] = 1;
  }
}
