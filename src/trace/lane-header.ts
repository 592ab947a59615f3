// What a lane's header says, which is memory of the target's and may say anything, and another thing at the next look. Each word is read
// once, and believed within the bounds that an honest recorder keeps; beyond them the lane is corrupt, and nobody looks at it any more.
import { HEADER, LANE_STATE } from '../agent/index.js';
import { RECORD_BYTES } from '../recording/index.js';

const WORDS_PER_HEADER = HEADER.size / 4;
const LONGS_PER_HEADER = HEADER.size / 8;

/** A thread loses no more records than one in a nanosecond: to count one takes several. */
const DROPS_PER_MS = 1e6;
/** Lost before anybody looked. */
const DROPS_AT_FIRST = 1e9;

/** The headers of all lanes, each value bounded; undefined where it cannot be true. */
export class LaneHeaders {
  readonly #longs: BigUint64Array;
  readonly #words: Uint32Array;
  readonly #ringBytes: number;
  readonly #since: number;

  /** `now` is when recording begins, in milliseconds. */
  constructor(bytes: ArrayBuffer, lanes: number, ringBytes: number, now: number) {
    this.#longs = new BigUint64Array(bytes, 0, lanes * LONGS_PER_HEADER);
    this.#words = new Uint32Array(bytes, 0, lanes * WORDS_PER_HEADER);
    this.#ringBytes = ringBytes;
    this.#since = now;
  }

  /** LANE_STATE; undefined: none of them. */
  state(lane: number): number | undefined {
    const state = this.#words[lane * WORDS_PER_HEADER + HEADER.state / 4];
    return state <= LANE_STATE.ended ? state : undefined;
  }

  /** The thread's id as it says itself. */
  tid(lane: number): number {
    return this.#words[lane * WORDS_PER_HEADER + HEADER.tid / 4];
  }

  threadPointer(lane: number): bigint {
    return this.#longs[lane * LONGS_PER_HEADER + HEADER.threadPointer / 8];
  }

  /** Bytes ever written, where so many have been consumed: whole records, no fewer than that, and no more than fit into the ring. */
  head(lane: number, tail: number): number | undefined {
    const head = Number(this.#longs[lane * LONGS_PER_HEADER + HEADER.head / 8]);
    const waiting = head - tail;
    const isTrue =
      Number.isSafeInteger(head) && head % RECORD_BYTES === 0 && waiting >= 0 && waiting <= this.#ringBytes;
    return isTrue ? head : undefined;
  }

  /** Records dropped, up to now. */
  dropped(lane: number, now: number): number | undefined {
    const dropped = Number(this.#longs[lane * LONGS_PER_HEADER + HEADER.dropped / 8]);
    return dropped <= DROPS_AT_FIRST + (now - this.#since) * DROPS_PER_MS ? dropped : undefined;
  }

  /** Tells the thread which room it may use again. Never read back. */
  tellTail(lane: number, tail: number): void {
    this.#longs[lane * LONGS_PER_HEADER + HEADER.tail / 8] = BigInt(tail);
  }
}
