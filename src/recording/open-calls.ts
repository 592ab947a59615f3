/** Fields of an open call, numbers all of them. */
export const FUNCTION = 0;
export const SLOT = 1;
export const START = 2;
export const SELF = 3;
export const TAG = 4;
const FIELDS = 5;

const INITIAL_CALLS = 8;
/** Deeper than the frames that any common stack holds; a damaged recording must not make us allocate without bound. */
const MAX_DEPTH = 1 << 22;
/** Calls that end out of order are looked for, and moved up, one by one as long as they are that near; further down by the index. */
const NEAR = 64;
const NONE = -1;

/**
 * The open calls of one lane, outermost first. Calls mostly end innermost first; a call that ends below others (a thread that switches
 * between stacks may have any number open) is found and taken out in logarithmic time. A lane without open calls costs no memory.
 *
 * A call stands at a `place`. Nearly always that is its depth. While there is an index, places of calls that were taken out stay empty
 * until they are on top, and the index counts those in use.
 */
export class OpenCalls {
  /** FIELDS numbers for each place. */
  #fields = new Float64Array(0);
  /** How many calls are open. */
  depth = 0;
  /** One above the highest place in use; the innermost call's place is one less. */
  #top = 0;
  #index: Index | undefined;

  /** Where the innermost call stands; NONE if there is none. */
  get innermost(): number {
    return this.#top - 1;
  }

  get(place: number, field: number): number {
    return this.#fields[place * FIELDS + field];
  }

  set(place: number, field: number, value: number): void {
    this.#fields[place * FIELDS + field] = value;
  }

  /** Time has passed in the innermost call itself. */
  addSelf(ticks: number): void {
    this.#fields[(this.#top - 1) * FIELDS + SELF] += ticks;
  }

  /** Adds a call; returns its place, or a negative number if there are too many. */
  push(functionIndex: number, slot: number, start: number): number {
    if (this.#top * FIELDS === this.#fields.length && !this.#makeRoom()) return NONE;
    const place = this.#top++;
    const at = place * FIELDS;
    this.depth++;
    this.#fields[at + FUNCTION] = functionIndex;
    this.#fields[at + SLOT] = slot;
    this.#fields[at + START] = start;
    this.#fields[at + SELF] = 0;
    this.#fields[at + TAG] = 0;
    this.#index?.add(place, this.#keyOf(place));
    return place;
  }

  /** Place of the innermost call of that function and slot; negative if there is none. */
  find(functionIndex: number, slot: number): number {
    if (this.#index === undefined) {
      const fields = this.#fields;
      const nearest = Math.max(0, this.#top - NEAR);
      for (let at = (this.#top - 1) * FIELDS; at >= nearest * FIELDS; at -= FIELDS)
        if (fields[at + SLOT] === slot && fields[at + FUNCTION] === functionIndex) return at / FIELDS;
      if (nearest === 0) return NONE;
      this.#makeIndex();
    }
    return this.#index?.find(key(functionIndex, slot)) ?? NONE;
  }

  /** How many calls are open around the one at `place`. */
  depthAt(place: number): number {
    return this.#index === undefined ? place : this.#index.before(place);
  }

  /** Place of the call with so many around it. */
  placeAt(depth: number): number {
    return this.#index === undefined ? depth : this.#index.placeAt(depth);
  }

  remove(place: number): void {
    if (this.#index === undefined && place === this.#top - 1) {
      this.#top--;
      this.depth--;
      return;
    }
    if (this.#index === undefined && place < this.#top - NEAR) this.#makeIndex();
    const index = this.#index;
    this.depth--;
    if (index === undefined) {
      this.#top--;
      this.#fields.copyWithin(place * FIELDS, (place + 1) * FIELDS, (this.#top + 1) * FIELDS);
      return;
    }
    index.remove(place, this.#keyOf(place));
    if (place === this.#top - 1) this.#top = this.depth === 0 ? 0 : index.placeAt(this.depth - 1) + 1;
    // It was made for at least twice as many: what that cost is paid for.
    if (this.depth * 2 <= index.madeFor) this.#dropIndex();
  }

  #keyOf(place: number): string | number {
    return key(this.#fields[place * FIELDS + FUNCTION], this.#fields[place * FIELDS + SLOT]);
  }

  #makeRoom(): boolean {
    if (this.#index !== undefined && this.depth * 2 <= this.#top) {
      this.#compact();
      this.#makeIndex();
      return true;
    }
    if (this.#top >= MAX_DEPTH) return false;
    const grown = new Float64Array(Math.max(INITIAL_CALLS * FIELDS, this.#fields.length * 2));
    grown.set(this.#fields);
    this.#fields = grown;
    this.#index?.grow(grown.length / FIELDS);
    return true;
  }

  #makeIndex(): void {
    const index = new Index(this.#fields.length / FIELDS, this.depth);
    for (let place = 0; place < this.#top; place++) index.add(place, this.#keyOf(place));
    this.#index = index;
  }

  #dropIndex(): void {
    this.#compact();
    this.#index = undefined;
  }

  /** Calls move up to where they would stand without those that were taken out. */
  #compact(): void {
    const index = this.#index;
    if (index === undefined) return;
    let to = 0;
    for (let place = 0; place < this.#top; place++) {
      if (!index.isUsed(place)) continue;
      this.#fields.copyWithin(to * FIELDS, place * FIELDS, (place + 1) * FIELDS);
      to++;
    }
    this.#top = to;
    this.#index = undefined;
  }
}

/** Both have 60 bits together, of which a number holds 53 exactly. */
function key(functionIndex: number, slot: number): string | number {
  return functionIndex < 2 ** 21 ? functionIndex * 2 ** 32 + slot : `${functionIndex} ${slot}`;
}

/** Which places are in use, how many before each, and where the calls of a function and slot stand. */
class Index {
  readonly madeFor: number;
  #used: Uint8Array;
  /** A Fenwick tree over `used`: element i counts the lowest set bit of i many places up to i, from 1 on. */
  #counts: Int32Array;
  /** One place alone is not in a list: there may be millions. */
  readonly #places = new Map<string | number, number | number[]>();

  constructor(room: number, calls: number) {
    this.madeFor = calls;
    this.#used = new Uint8Array(room);
    this.#counts = new Int32Array(room + 1);
  }

  grow(room: number): void {
    const used = this.#used;
    this.#used = new Uint8Array(room);
    this.#counts = new Int32Array(room + 1);
    for (let place = 0; place < used.length; place++) if (used[place] === 1) this.#mark(place, 1);
  }

  isUsed(place: number): boolean {
    return this.#used[place] === 1;
  }

  add(place: number, name: string | number): void {
    this.#mark(place, 1);
    const places = this.#places.get(name);
    if (places === undefined) this.#places.set(name, place);
    else if (typeof places === 'number') this.#places.set(name, [places, place]);
    else places.push(place);
  }

  remove(place: number, name: string | number): void {
    this.#mark(place, 0);
    const places = this.#places.get(name);
    if (typeof places !== 'object') {
      this.#places.delete(name);
      return;
    }
    // One that is not the innermost of its name stays listed until those above it have gone, unless it is used again: see find.
    while (places.length > 0 && this.#used[places[places.length - 1]] === 0) places.pop();
    if (places.length === 0) this.#places.delete(name);
  }

  /** The highest place of that name; negative if there is none. */
  find(name: string | number): number {
    const places = this.#places.get(name);
    return typeof places === 'object' ? places[places.length - 1] : (places ?? NONE);
  }

  /** How many places below `place` are in use. */
  before(place: number): number {
    let sum = 0;
    for (let i = place; i > 0; i -= i & -i) sum += this.#counts[i];
    return sum;
  }

  /** The place with so many in use below it. */
  placeAt(rank: number): number {
    let at = 0;
    let left = rank;
    for (let step = 1 << (31 - Math.clz32(this.#counts.length)); step > 0; step >>= 1) {
      if (at + step >= this.#counts.length || this.#counts[at + step] > left) continue;
      at += step;
      left -= this.#counts[at];
    }
    return at;
  }

  #mark(place: number, used: 0 | 1): void {
    const change = used - this.#used[place];
    this.#used[place] = used;
    for (let i = place + 1; i < this.#counts.length; i += i & -i) this.#counts[i] += change;
  }
}
