import type { ElfFile } from '../elf/index.js';

const PT_LOAD = 1;

/**
 * A set of addresses of code: one bit for each executable byte of a file. Jumps are many (half a million in 20,000
 * functions) and questions are about a few bytes, so that this is faster than to sort and search.
 */
export class AddressSet {
  readonly #parts: readonly { readonly start: number; readonly end: number; readonly bits: Uint8Array }[];

  constructor(elf: ElfFile) {
    this.#parts = elf.segments
      .filter(({ type, executable, fileSize }) => type === PT_LOAD && executable && fileSize > 0)
      .map(({ addressNumber, fileSize }) => ({
        start: addressNumber,
        end: addressNumber + fileSize,
        bits: new Uint8Array(Math.ceil(fileSize / 8)),
      }));
  }

  /** Adds an address; one that is not of code is left out. */
  add(address: number): void {
    for (const { start, end, bits } of this.#parts) {
      if (address < start || address >= end) continue;
      const index = address - start;
      bits[Math.floor(index / 8)] |= 1 << (index % 8);
    }
  }

  /** True if an address from `from` up to below `to` is in the set. */
  hasWithin(from: number, to: number): boolean {
    for (const { start, end, bits } of this.#parts) {
      for (let address = Math.max(from, start); address < Math.min(to, end); address++) {
        const index = address - start;
        if ((bits[Math.floor(index / 8)] & (1 << (index % 8))) !== 0) return true;
      }
    }
    return false;
  }
}
