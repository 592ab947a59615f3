/** States per chunk of the arena, as a power of two: growing never copies what is there. */
const CHUNK_SHIFT = 16;
const CHUNK_MASK = (1 << CHUNK_SHIFT) - 1;
const INITIAL_SLOTS = 1 << 14;
/** A slot: the number of a state plus one (0: free), and the state's hash, which spares most looks into the arena. */
const SLOT_WORDS = 2;
/** The table doubles when it is this full. */
const MAX_LOAD = 0.5;
/** Odd constants of good bit mixing: the golden ratio of 2^32, and one of MurmurHash3's finaliser. */
const MIX_WORD = 0x9e3779b1;
const MIX_END = 0x85ebca6b;
const BYTES_PER_WORD = 4;

/**
 * The set of states that were reached, exact: a state is found again by comparing all of it, so none is ever lost to a
 * collision of hashes. A state is `width` 32-bit words; it is known by its number, in the order of insertion.
 */
export class StateStore {
  readonly #chunks: Int32Array[] = [];
  #slots = new Int32Array(INITIAL_SLOTS * SLOT_WORDS);
  #slotMask = INITIAL_SLOTS - 1;
  count = 0;

  constructor(readonly width: number) {}

  /** Bytes held. */
  get bytes(): number {
    return (this.#chunks.length * (CHUNK_MASK + 1) * this.width + this.#slots.length) * BYTES_PER_WORD;
  }

  /** Inserts the state at `offset` of `words`. Returns its number if it is new, `-1 - number` if it was there. */
  insert(words: Int32Array, offset: number): number {
    const { width } = this;
    let hash = 0;
    for (let i = 0; i < width; i++) {
      hash = Math.imul(hash ^ words[offset + i], MIX_WORD);
      hash ^= hash >>> 15;
    }
    hash = Math.imul(hash, MIX_END);
    hash ^= hash >>> 13;
    const slots = this.#slots;
    const mask = this.#slotMask;
    let slot = hash & mask;
    for (;;) {
      const found = slots[slot * SLOT_WORDS];
      if (found === 0) break;
      if (slots[slot * SLOT_WORDS + 1] === hash) {
        const number = found - 1;
        const chunk = this.#chunks[number >>> CHUNK_SHIFT];
        const at = (number & CHUNK_MASK) * width;
        let i = 0;
        while (i < width && chunk[at + i] === words[offset + i]) i++;
        if (i === width) return -1 - number;
      }
      slot = (slot + 1) & mask;
    }
    const number = this.count++;
    slots[slot * SLOT_WORDS] = number + 1;
    slots[slot * SLOT_WORDS + 1] = hash;
    if ((number & CHUNK_MASK) === 0) this.#chunks.push(new Int32Array((CHUNK_MASK + 1) * width));
    const chunk = this.#chunks[number >>> CHUNK_SHIFT];
    const at = (number & CHUNK_MASK) * width;
    for (let i = 0; i < width; i++) chunk[at + i] = words[offset + i];
    if (this.count > (mask + 1) * MAX_LOAD) this.#grow();
    return number;
  }

  /** Copies state `number` to the start of `into`. */
  read(number: number, into: Int32Array): void {
    const { width } = this;
    const chunk = this.#chunks[number >>> CHUNK_SHIFT];
    const at = (number & CHUNK_MASK) * width;
    for (let i = 0; i < width; i++) into[i] = chunk[at + i];
  }

  #grow(): void {
    const old = this.#slots;
    const size = (this.#slotMask + 1) * 2;
    const slots = new Int32Array(size * SLOT_WORDS);
    const mask = size - 1;
    for (let from = 0; from < old.length; from += SLOT_WORDS) {
      if (old[from] === 0) continue;
      let slot = old[from + 1] & mask;
      while (slots[slot * SLOT_WORDS] !== 0) slot = (slot + 1) & mask;
      slots[slot * SLOT_WORDS] = old[from];
      slots[slot * SLOT_WORDS + 1] = old[from + 1];
    }
    this.#slots = slots;
    this.#slotMask = mask;
  }
}
