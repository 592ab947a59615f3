// The rings are memory of the target's: what is written there is charged to it, and where there is too little for it, the kernel kills it.
// So all rings together never fill more than a budget, whatever becomes of us who should empty them. A lane begins with a small
// part, as any number of threads may come while we do not look; when we have seen its thread it gets more.

/** Parts of the budget that threads have which we know of or expect, and that all other lanes have between them. */
const EXPECTED_PART = 1 / 4;
const OTHERS_PART = 1 / 4;
/** A lane gets at most this part of what is left. */
const GRANTED_PART = 1 / 8;
/** Of memory that has been written once and is kept, as it is cheaper to write again. */
const KEPT_PART = 1 / 4;
/** No lane works with less: the tracer says what it has read in whole pages. */
const LEAST_LIMIT = 8 << 10;

export class RingBudget {
  /** The most that the first thread may hold. */
  readonly largest: number;
  /** Bytes of consumed memory that may stay with the rings. */
  readonly kept: number;
  readonly #full: number;
  readonly #expected: number;
  readonly #others: number;
  readonly #expectedLanes: number;
  readonly #granted = new Map<number, number>();
  #left: number;

  /** Of `total` bytes, for so many lanes, of which the first are expected to be used. `full` is all that a ring may hold. */
  constructor(total: number, lanes: number, expectedLanes: number, full: number) {
    const share = (part: number, among: number): number =>
      Math.min(full, Math.floor((total * part) / Math.max(1, among) / 16) * 16);
    this.#full = full;
    this.#expectedLanes = expectedLanes;
    this.#expected = share(EXPECTED_PART, expectedLanes);
    this.#others = share(OTHERS_PART, lanes - expectedLanes);
    this.#left = total * (1 - EXPECTED_PART - OTHERS_PART);
    this.kept = total * KEPT_PART;
    this.largest = Math.min(full, this.#expected + this.#more(this.#expected));
  }

  /** False: there is so little that tracing makes no sense. */
  get isEnough(): boolean {
    return Math.min(this.#expected, this.#others) >= Math.min(LEAST_LIMIT, this.#full);
  }

  /** Bytes that a lane may hold which nobody uses yet. */
  initial(lane: number): number {
    return lane < this.#expectedLanes ? this.#expected : this.#others;
  }

  /** Gives a lane more, as it has a thread. Returns how many bytes it may hold now. */
  grant(lane: number): number {
    this.takeBack(lane);
    const initial = this.initial(lane);
    const more = this.#more(initial);
    this.#left -= more;
    this.#granted.set(lane, more);
    return initial + more;
  }

  #more(initial: number): number {
    return Math.min(this.#full - initial, Math.floor((this.#left * GRANTED_PART) / 16) * 16);
  }

  /** The lane’s thread has ended. */
  takeBack(lane: number): void {
    this.#left += this.#granted.get(lane) ?? 0;
    this.#granted.delete(lane);
  }
}
