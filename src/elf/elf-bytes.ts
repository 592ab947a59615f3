import { CannotError } from '../errors/index.js';

const TWO_TO_32 = 0x1_0000_0000;
/** No name that a compiler writes is longer; a damaged string table would otherwise be one name of its whole length. */
const LONGEST_NAME = 32 * 1024;

const utf8 = new TextDecoder('utf-8');

/** The bytes of a file that may be damaged on purpose: every range is checked before it is read. */
export class ElfBytes {
  readonly view: DataView;
  readonly #buffer: Buffer;

  constructor(
    readonly bytes: Uint8Array,
    readonly name: string,
  ) {
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
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
    if (!(offset >= 0 && length >= 0 && offset + length <= this.bytes.length)) {
      throw new CannotError('elf-truncated', {
        tried: `read ${this.name}`,
        why: `${what} should be ${length} bytes at offset ${offset}, but the file has ${this.bytes.length}`,
        next: 'check that the file is complete',
      });
    }
  }

  /** An unsigned 64-bit value as a number; NaN where a number cannot hold it. The caller has checked the range. */
  u64OrNaN(offset: number): number {
    const high = this.view.getUint32(offset + 4, true);
    // 2^53 / 2^32: beyond, a number would be rounded.
    if (high >= 0x20_0000) return NaN;
    return high * TWO_TO_32 + this.view.getUint32(offset, true);
  }

  /** The same for a field that must be an offset, a size or a user-space address. */
  u64(what: string, offset: number): number {
    const value = this.u64OrNaN(offset);
    if (Number.isNaN(value)) this.damaged(`${what} is beyond 2^53`);
    return value;
  }

  /** True if the ASCII text stands somewhere from `offset` up to `end`. */
  contains(text: string, offset: number, end: number): boolean {
    return this.#buffer.subarray(offset, end).includes(text, 0, 'latin1');
  }

  /** The string at `offset`, up to its NUL or to `end`. */
  stringAt(offset: number, end: number): string {
    const limit = Math.min(end, offset + LONGEST_NAME, this.bytes.length);
    let stop = offset;
    let bits = 0;
    for (let byte = 0; stop < limit && (byte = this.bytes[stop]) !== 0; stop++) bits |= byte;
    if (stop === offset) return '';
    // Names are nearly always ASCII, and 10^5 of them are read: the decoder takes far longer.
    if (bits < 0x80) return this.#buffer.toString('latin1', offset, stop);
    return utf8.decode(this.bytes.subarray(offset, stop));
  }
}
