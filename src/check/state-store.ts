/** States per chunk of the arena, as a power of two: growing never copies what is there. */
const CHUNK_SHIFT = 16;
const CHUNK_MASK = (1 << CHUNK_SHIFT) - 1;
const INITIAL_SLOTS = 1 << 16;
/** The table doubles when it is this full. */
const MAX_LOAD = 0.6;
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
  #slots = new Int32Array(INITIAL_SLOTS);
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
      const found = slots[slot];
      if (found === 0) break;
      const number = found - 1;
      const chunk = this.#chunks[number >>> CHUNK_SHIFT];
      const at = (number & CHUNK_MASK) * width;
      let i = 0;
      while (i < width && chunk[at + i] === words[offset + i]) i++;
      if (i === width) return -1 - number;
      slot = (slot + 1) & mask;
    }
    const number = this.count++;
    slots[slot] = number + 1;
    if ((number & CHUNK_MASK) === 0) this.#chunks.push(new Int32Array((CHUNK_MASK + 1) * width));
    const chunk = this.#chunks[number >>> CHUNK_SHIFT];
    const at = (number & CHUNK_MASK) * width;
    for (let i = 0; i < width; i++) chunk[at + i] = words[offset + i];
    if (this.count > this.#slots.length * MAX_LOAD) this.#grow();
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
    const { width } = this;
    const size = this.#slots.length * 2;
    const slots = new Int32Array(size);
    const mask = size - 1;
    for (let number = 0; number < this.count; number++) {
      const chunk = this.#chunks[number >>> CHUNK_SHIFT];
      const at = (number & CHUNK_MASK) * width;
      let hash = 0;
      for (let i = 0; i < width; i++) {
        hash = Math.imul(hash ^ chunk[at + i], MIX_WORD);
        hash ^= hash >>> 15;
      }
      hash = Math.imul(hash, MIX_END);
      hash ^= hash >>> 13;
      let slot = hash & mask;
      while (slots[slot] !== 0) slot = (slot + 1) & mask;
      slots[slot] = number + 1;
    }
    this.#slots = slots;
    this.#slotMask = mask;
  }
}
