import type { ElfBytes, FileRange } from './elf-bytes.js';
import { SparseBytes } from './sparse-bytes.js';

/** Far longer than any name that a compiler writes; a table without an end mark would else be one name of its whole length. */
const LONGEST_NAME = 4 * 1024 * 1024;
/** More than the names of any program take together: those of a browser with all its symbols are a tenth. */
const MOST_BYTES = 2 ** 31;
/** Read first for a name: nearly all end there. */
const SHORT_NAME = 256;
/** Bytes that are looked through at once for a text. */
const CHUNK_BYTES = 1024 * 1024;

const utf8 = new TextDecoder('utf-8');

/** A string table. Of a table of any size only those blocks are read in which there are strings that were asked for. */
export class StringTable {
  readonly size: number;
  readonly #file: ElfBytes;
  readonly #range: FileRange;
  readonly #part: SparseBytes;
  /** The part's bytes, once some are there. */
  #buffer: Buffer | undefined;
  readonly #mentions = new Map<string, boolean>();
  /**
   * Bytes that long names may still have together; then they are cut off. Names share their ends in tables of linkers, but no more than
   * that: where each of a million begins one byte further within one long name, they would fill all memory.
   */
  #left: number;

  constructor(file: ElfBytes, what: string, range: FileRange) {
    file.requireRange(what, range.offset, range.size);
    if (range.size > MOST_BYTES) file.damaged(`${what} has ${range.size} bytes, more than ${MOST_BYTES}`);
    this.size = range.size;
    this.#file = file;
    this.#range = range;
    this.#part = new SparseBytes(file.source, range.offset, range.size);
    this.#left = 2 * range.size + LONGEST_NAME;
  }

  /** The string at `offset`, cut off after `most` bytes; empty if there is none. */
  at(offset: number, most = LONGEST_NAME): string {
    // Once too much has been read of long names they are cut off: to look for their ends takes time as well.
    const end = Math.min(this.size, offset + most, offset + Math.max(SHORT_NAME, this.#left));
    let length = SHORT_NAME;
    for (;;) {
      const limit = Math.min(end, offset + length);
      if (limit <= offset || !this.#part.load(offset, limit)) return '';
      const { bytes } = this.#part;
      let stop = offset;
      let bits = 0;
      for (let byte = 0; stop < limit && (byte = bytes[stop]) !== 0; stop++) bits |= byte;
      if (stop === limit && limit < end) {
        length *= 16;
        continue;
      }
      if (stop === offset) return '';
      if (stop - offset > SHORT_NAME) this.#left -= stop - offset;
      // Names are nearly always ASCII, and 10^5 of them are read: the decoder takes far longer.
      if (bits >= 0x80) return utf8.decode(bytes.subarray(offset, stop));
      this.#buffer ??= Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      return this.#buffer.toString('latin1', offset, stop);
    }
  }

  /** False if none of the ASCII texts stands in it. */
  mentions(texts: readonly string[]): boolean {
    const unknown = texts.filter((text) => !this.#mentions.has(text));
    if (unknown.length > 0) this.#lookFor(unknown);
    return texts.some((text) => this.#mentions.get(text));
  }

  #lookFor(texts: readonly string[]): void {
    for (const text of texts) this.#mentions.set(text, false);
    let missing = texts;
    const overlap = texts.reduce((longest, text) => Math.max(longest, text.length - 1), 0);
    for (let at = 0; at < this.size && missing.length > 0; at += CHUNK_BYTES) {
      const chunk = new Uint8Array(Math.min(CHUNK_BYTES + overlap, this.size - at));
      const count = this.#file.source.read(chunk, this.#range.offset + at);
      const found = Buffer.from(chunk.buffer, 0, count);
      missing = missing.filter((text) => {
        const isThere = found.includes(text, 0, 'latin1');
        if (isThere) this.#mentions.set(text, true);
        return !isThere;
      });
      if (count < chunk.length) break;
    }
  }
}
