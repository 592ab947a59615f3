import type { ClockMessage } from './file-layout.js';

const WORD = 2 ** 32;
const WORD_MASK = 0xffff_ffffn;
/** Two readings closer than this say less about the rate than the estimate in the header. */
const MIN_NS_BETWEEN_READINGS = 1_000_000n;

/**
 * Time within a trace: ticks of the time stamp counter since the trace began, as a float64. That is exact below 2^53
 * ticks, some 30 days, and so much faster than a bigint that a recording can be read at millions of records a second.
 */
export class TscClock {
  readonly #baseLow: number;
  readonly #baseHigh: number;
  #nsPerTick: number;
  #first: { tsc: bigint; ns: bigint } | undefined;

  /**
   * @param startTsc the counter at time 0
   * @param tscHz an estimate of ticks per second, used until two `clock` readings tell better
   */
  constructor(startTsc: bigint, tscHz: number) {
    this.#baseLow = Number(startTsc & WORD_MASK);
    this.#baseHigh = Number((startTsc >> 32n) & WORD_MASK);
    this.#nsPerTick = 1e9 / tscHz;
  }

  get nsPerTick(): number {
    return this.#nsPerTick;
  }

  /** Low word of the counter at time 0, for loops that have no time for a call of `ticks`. */
  get baseLow(): number {
    return this.#baseLow;
  }

  get baseHigh(): number {
    return this.#baseHigh;
  }

  /** Ticks since time 0 of a counter given as two words; negative before it. */
  ticks(low: number, high: number): number {
    return (high - this.#baseHigh) * WORD + (low - this.#baseLow);
  }

  toNs(ticks: number): number {
    return ticks * this.#nsPerTick;
  }

  /** Takes a reading of both clocks: the first and the latest one give the rate. */
  addReading(reading: ClockMessage): void {
    const tsc = BigInt(reading.tsc);
    const ns = BigInt(reading.ns);
    if (this.#first === undefined) {
      this.#first = { tsc, ns };
      return;
    }
    const ticksPassed = tsc - this.#first.tsc;
    const nsPassed = ns - this.#first.ns;
    if (ticksPassed > 0n && nsPassed >= MIN_NS_BETWEEN_READINGS)
      this.#nsPerTick = Number(nsPassed) / Number(ticksPassed);
  }
}
