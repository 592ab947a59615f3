// Tables of text that the agent's thread can read by itself.
import { TEXT_RUN } from './layout.js';

/** An aligned word of text, by which it is told whether the text is still what it was when it was changed. */
export interface Witness {
  readonly address: number;
  readonly changed: number;
  readonly pristine: number;
}

/** Neighbouring pages of text. */
export interface WitnessedText {
  readonly start: number;
  readonly length: number;
  readonly witnesses: readonly [Witness, Witness];
}

export function encodeTextTable(all: readonly WitnessedText[]): Uint8Array {
  const bytes = new Uint8Array(all.length * TEXT_RUN.size);
  const table = new DataView(bytes.buffer);
  all.forEach(({ start, length, witnesses }, i) => {
    const at = i * TEXT_RUN.size;
    table.setBigUint64(at + TEXT_RUN.start, BigInt(start), true);
    table.setBigUint64(at + TEXT_RUN.length, BigInt(length), true);
    witnesses.forEach(({ address, changed, pristine }, k) => {
      const word = at + TEXT_RUN.witnesses + k * TEXT_RUN.witness;
      table.setBigUint64(word, BigInt(address), true);
      table.setUint32(word + 8, changed, true);
      table.setUint32(word + 12, pristine, true);
    });
  });
  return bytes;
}
