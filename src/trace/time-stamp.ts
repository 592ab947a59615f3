import { assemble } from '../x86/index.js';
import { placeOwnCode } from '../linux/index.js';

/** A reading of both clocks at one moment. */
export interface ClockReading {
  readonly tsc: bigint;
  /** CLOCK_MONOTONIC, nanoseconds. */
  readonly ns: bigint;
}

const READ_TSC = `
    rdtsc
    shl rdx, 32
    or rax, rdx
    ret
`;

/** Tries per reading: the one with the shortest way between the clocks counts. */
const TRIES = 5;
const CALIBRATION_MS = 10;

/** The time-stamp counter as the recorder reads it, from safepoke's own process. */
export class TimeStamp {
  readonly #code = placeOwnCode(assemble(READ_TSC, 0n).bytes);

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

  /** Ticks per second, roughly: `CALIBRATION_MS` of looking. A session's own readings are further apart and better. */
  estimateHz(): number {
    const first = this.read();
    const until = performance.now() + CALIBRATION_MS;
    while (performance.now() < until);
    const second = this.read();
    return (Number(second.tsc - first.tsc) / Number(second.ns - first.ns)) * 1e9;
  }
}
