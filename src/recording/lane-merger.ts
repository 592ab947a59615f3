import {
  KIND_BITS,
  KIND_LOST,
  LOST_NOT_KEPT,
  MAX_LOST,
  RECORD_WORDS,
  SLOT_WORD,
  TSC_HIGH_WORD,
  TSC_LOW_WORD,
  WHAT_WORD,
} from './record-layout.js';
import type { TscClock } from './tsc-clock.js';

/** Takes the records of all lanes in the order of time. `CallBuilder` is one. */
export interface MergedRecords {
  /** The next records: `words[from..to)` of that lane. */
  addRecords(lane: number, words: Uint32Array, from: number, to: number): void;
  /** The lane's thread has ended, and all its records have been given. */
  endLane(lane: number): void;
}

interface Queue {
  readonly lane: number;
  readonly pieces: Uint32Array[];
  /** Next word of the first piece. */
  at: number;
  /** Time of the next record; never goes back. */
  head: number;
  hasEnded: boolean;
}

/**
 * Merges the lanes of a trace by time. Live, records arrive roughly in order: `advance` gives out what is older than the
 * oldest that may still come. From a file, `refill` fetches a lane's next records when they are needed, so that no more
 * than one piece of each lane is in memory.
 */
export class LaneMerger {
  readonly #clock: TscClock;
  readonly #out: MergedRecords;
  readonly #refill: ((lane: number) => Uint32Array | undefined) | undefined;
  readonly #queues = new Map<number, Queue>();
  /** The queues that have records, as a binary heap by `head`. */
  readonly #heap: Queue[] = [];

  /** @param refill gives a lane's next records, or undefined when it has none left */
  constructor(clock: TscClock, out: MergedRecords, refill?: (lane: number) => Uint32Array | undefined) {
    this.#clock = clock;
    this.#out = out;
    this.#refill = refill;
  }

  /** Takes the next records of a lane. The words must stay as they are until they have been given out. */
  push(lane: number, words: Uint32Array): void {
    if (words.length === 0) return;
    const queue = this.#queue(lane);
    queue.pieces.push(words);
    if (queue.pieces.length === 1) this.#enqueue(queue);
  }

  /** Says that the lane lost records after all that were pushed. */
  pushLost(lane: number, records: number): void {
    this.push(lane, lostRecord(records));
  }

  /** Says that the lane's thread has ended and no more records of it will be pushed. */
  endLane(lane: number): void {
    const queue = this.#queue(lane);
    queue.hasEnded = true;
    if (queue.pieces.length === 0) this.#drop(queue);
  }

  /** Gives out every record older than `limit` ticks: the caller promises that none will come that is older. */
  advance(limit: number): void {
    while (this.step(limit));
  }

  /** Gives out the next records older than `limit` that are of one lane; false if there are none. */
  step(limit = Number.POSITIVE_INFINITY): boolean {
    const heap = this.#heap;
    if (heap.length === 0 || heap[0].head >= limit) return false;
    const left = heap.length > 1 ? heap[1].head : Number.POSITIVE_INFINITY;
    const right = heap.length > 2 ? heap[2].head : Number.POSITIVE_INFINITY;
    this.#giveRun(heap[0], Math.min(left, right), limit);
    return true;
  }

  /** Gives out all that is left. */
  finish(): void {
    this.advance(Number.POSITIVE_INFINITY);
  }

  /** Gives out records of the earliest lane for as long as no other lane comes before them. */
  #giveRun(queue: Queue, other: number, limit: number): void {
    const words = queue.pieces[0];
    const from = queue.at;
    let at = from;
    let tick = queue.head;
    do {
      at += RECORD_WORDS;
      if (at >= words.length) break;
      tick = Math.max(tick, this.#clock.ticks(words[at + TSC_LOW_WORD], words[at + TSC_HIGH_WORD]));
    } while (tick <= other && tick < limit);
    queue.at = at;
    queue.head = tick;
    this.#out.addRecords(queue.lane, words, from, at);
    if (at >= words.length) {
      queue.pieces.shift();
      queue.at = 0;
      if (queue.pieces.length === 0) {
        const more = this.#refill?.(queue.lane);
        if (more !== undefined && more.length > 0) queue.pieces.push(more);
      }
      if (queue.pieces.length === 0) {
        this.#removeFirst();
        if (queue.hasEnded) this.#drop(queue);
        return;
      }
      queue.head = Math.max(queue.head, this.#headOf(queue));
    }
    this.#sink(0);
  }

  #queue(lane: number): Queue {
    let queue = this.#queues.get(lane);
    if (queue === undefined) {
      queue = { lane, pieces: [], at: 0, head: Number.NEGATIVE_INFINITY, hasEnded: false };
      this.#queues.set(lane, queue);
    }
    return queue;
  }

  #drop(queue: Queue): void {
    this.#queues.delete(queue.lane);
    this.#out.endLane(queue.lane);
  }

  #headOf(queue: Queue): number {
    const words = queue.pieces[0];
    return this.#clock.ticks(words[TSC_LOW_WORD], words[TSC_HIGH_WORD]);
  }

  #enqueue(queue: Queue): void {
    queue.head = Math.max(queue.head, this.#headOf(queue));
    const heap = this.#heap;
    let child = heap.push(queue) - 1;
    while (child > 0) {
      const parent = (child - 1) >> 1;
      if (heap[parent].head <= queue.head) break;
      heap[child] = heap[parent];
      child = parent;
    }
    heap[child] = queue;
  }

  #removeFirst(): void {
    const last = this.#heap.pop();
    if (last === undefined || this.#heap.length === 0) return;
    this.#heap[0] = last;
    this.#sink(0);
  }

  #sink(position: number): void {
    const heap = this.#heap;
    const queue = heap[position];
    for (;;) {
      let child = 2 * position + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && heap[child + 1].head < heap[child].head) child++;
      if (heap[child].head >= queue.head) break;
      heap[position] = heap[child];
      position = child;
    }
    heap[position] = queue;
  }
}

/** A LOST record at no time of its own: readers put it at the time of the record before it. */
export function lostRecord(records: number, isNotKept = false): Uint32Array {
  const words = new Uint32Array(RECORD_WORDS);
  words[WHAT_WORD] = KIND_LOST | (isNotKept ? LOST_NOT_KEPT << KIND_BITS : 0);
  words[SLOT_WORD] = Math.min(records, MAX_LOST);
  return words;
}
