import { placeOwnCode } from '../linux/index.js';

/** A reading of both clocks at one moment. */
export interface ClockReading {
  readonly tsc: bigint;
  /** CLOCK_MONOTONIC, nanoseconds. */
  readonly ns: bigint;
}

/** rdtsc; shl rdx, 32; or rax, rdx; ret */
const READ_TSC = Uint8Array.of(0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0xc3);

/** Tries per reading: the one with the shortest way between the clocks counts. */
const TRIES = 5;
const CALIBRATION_MS = 10;

/** The time-stamp counter as the recorder reads it, from safepoke's own process. */
export class TimeStamp {
  readonly #code = placeOwnCode(READ_TSC);
  readonly #first = this.read();

  now(): bigint {
    return BigInt.asUintN(64, this.#code.call(0));
  }

  read(): ClockReading {
    let best: ClockReading | undefined;
    let shortest = 0n;
    for (let i = 0; i < TRIES; i++) {
      const before = this.now();
      const ns = process.hrtime.bigint();
      const after = this.now();
      if (best === undefined || after - before < shortest) {
        shortest = after - before;
        best = { tsc: before + (after - before) / 2n, ns };
      }
    }
    return best ?? { tsc: this.now(), ns: process.hrtime.bigint() };
  }

  /** Ticks per second, roughly: since the object was made, but for at least `CALIBRATION_MS`. A session's own readings are better. */
  estimateHz(): number {
    while (Number(process.hrtime.bigint() - this.#first.ns) < CALIBRATION_MS * 1e6);
    const second = this.read();
    return (Number(second.tsc - this.#first.tsc) / Number(second.ns - this.#first.ns)) * 1e9;
  }
}
