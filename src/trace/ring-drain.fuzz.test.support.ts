// A target that writes into its rings and lane headers whatever it likes, between any two looks of ours.
import assert from 'node:assert/strict';
import { HEADER, LANE_STATE, RingBudget, planGeometry } from '../agent/index.js';
import { MAP, PAGE, PROT, mapOwn } from '../linux/index.js';
import {
  KIND_ENTRY,
  KIND_EXIT,
  KIND_MASK,
  KIND_PLACE,
  KIND_LOST,
  RECORD_BYTES,
  RECORD_WORDS,
  WHAT_WORD,
} from '../recording/index.js';
import { RingDrain, type DrainListener, type DrainedAgent } from './ring-drain.js';

const LANES = 8;
const RING_BYTES = 16 * PAGE;
const FUNCTIONS = 5;
const MEMORY = 1 << 30;
const KIND_BITS = 4;
/** What recorders' cells mean: of each function its entry and its exit. */
export const CELLS = Uint32Array.from({ length: 2 * FUNCTIONS }, (_, cell) => {
  const kind = cell % 2 === 0 ? KIND_ENTRY : KIND_EXIT;
  return (Math.floor(cell / 2) << KIND_BITS) | kind;
});

/** As a recorder writes it: the cell in the place of function and kind. What is neither entry nor exit stays as it is. */
function rawOf(what: number): number {
  const kind = what & KIND_MASK;
  if (kind !== KIND_ENTRY && kind !== KIND_EXIT) return what;
  return (((what >>> KIND_BITS) * 2 + (kind === KIND_ENTRY ? 0 : 1)) << KIND_BITS) | KIND_PLACE;
}

/** True if a record may be told of. */
function isRecord(what: number): boolean {
  return what === KIND_LOST || CELLS.includes(what);
}

/** Many times what a look at so few lanes takes. */
const LOOK_MS = 5000;

/** Numbers that follow from a seed: mulberry32. */
export function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b_79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** Rings and headers in memory of our own, which a round changes as a target would. */
export class FakeTarget {
  readonly agent: DrainedAgent;
  readonly geometry = planGeometry(LANES, RING_BYTES);
  readonly rings: Uint32Array[];
  readonly headers: DataView;
  /** Times that a lane was given to another thread. */
  recycled = 0;

  constructor() {
    const map = (bytes: number): ReturnType<typeof mapOwn> =>
      mapOwn(bytes, PROT.read | PROT.write, MAP.private | MAP.anonymous, -1);
    const headers = map(PAGE);
    const memory = Array.from({ length: LANES }, () => map(RING_BYTES));
    this.headers = new DataView(headers.bytes);
    this.rings = memory.map(({ bytes }) => new Uint32Array(bytes));
    this.agent = {
      geometry: this.geometry,
      headers,
      budget: new RingBudget(MEMORY, LANES, LANES, this.geometry.ringLimit),
      grantRing: () => undefined,
      // Not unmapped with the lane: the next round reads it again.
      mapRing: (lane) => ({ ...memory[lane], unmap: () => undefined }),
      recycleLane: (lane) => {
        this.recycled++;
        this.headers.setUint32(lane * HEADER.size + HEADER.state, LANE_STATE.free, true);
      },
      releaseRing: (lane, offset, length) => {
        this.rings[lane].fill(0, offset / 4, (offset + length) / 4);
      },
    };
  }

  /** What an honest recorder does. */
  write(lane: number, what: number): void {
    const at = lane * HEADER.size + HEADER.head;
    const head = Number(this.headers.getBigUint64(at, true));
    const word = (head % RING_BYTES) / 4;
    this.rings[lane][word] = 1;
    this.rings[lane][word + WHAT_WORD] = rawOf(what);
    this.headers.setBigUint64(at, BigInt(head + RECORD_BYTES), true);
  }

  claim(lane: number, tid: number): void {
    this.headers.setUint32(lane * HEADER.size + HEADER.tid, tid, true);
    this.headers.setUint32(lane * HEADER.size + HEADER.state, LANE_STATE.live, true);
  }
}

/** What was told of records, which must be such as can be, of lanes that have begun and not ended. */
export class Told implements DrainListener {
  records = 0;
  lost = 0;
  threads = 0;
  corrupt: string[] = [];
  readonly #open = new Set<number>();

  onThread(lane: number): void {
    assert.ok(!this.#open.has(lane));
    this.#open.add(lane);
    this.threads++;
  }

  onRecords(lane: number, words: Uint32Array, waiting: number): void {
    assert.ok(this.#open.has(lane));
    assert.ok(waiting > 0 && waiting <= RING_BYTES);
    assert.ok(words.length > 0 && words.length % RECORD_WORDS === 0 && words.byteLength <= RING_BYTES);
    for (let at = 0; at < words.length; at += RECORD_WORDS) assert.ok(isRecord(words[at + WHAT_WORD]));
    this.records += words.length / RECORD_WORDS;
  }

  onLost(lane: number, records: number): void {
    assert.ok(this.#open.has(lane));
    assert.ok(Number.isSafeInteger(records) && records > 0);
    this.lost += records;
  }

  onThreadEnd(lane: number): void {
    assert.ok(this.#open.delete(lane));
  }

  onCorrupt(_tid: number, why: string): void {
    this.corrupt.push(why);
  }

  /** All is over. */
  assertClosed(): void {
    assert.equal(this.#open.size, 0);
  }
}

/** Odd values, and such as are nearly right. */
function anyWord(random: (below: number) => number, near: bigint): bigint {
  const wide = (BigInt(random(2 ** 32)) << 32n) | BigInt(random(2 ** 32));
  const choices = [
    0n,
    1n,
    (1n << 63n) | near,
    2n ** 64n - 1n,
    near - 16n,
    near + 16n,
    near + 5n,
    near + BigInt(RING_BYTES),
    near + BigInt(RING_BYTES + RECORD_BYTES),
    BigInt(random(1 << 20)),
    wide,
  ];
  return BigInt.asUintN(64, choices[random(choices.length)]);
}

/** One change of some word. */
function spoil(target: FakeTarget, random: (below: number) => number): void {
  const lane = random(LANES);
  const at = lane * HEADER.size;
  const head = target.headers.getBigUint64(at + HEADER.head, true);
  switch (random(8)) {
    case 0:
      target.headers.setBigUint64(at + HEADER.head, anyWord(random, head), true);
      return;
    case 1:
      target.headers.setBigUint64(at + HEADER.tail, anyWord(random, head), true);
      return;
    case 2:
      target.headers.setBigUint64(at + HEADER.dropped, anyWord(random, head), true);
      return;
    case 3:
      target.headers.setUint32(at + HEADER.state, random(4) === 0 ? random(2 ** 32) : random(3), true);
      return;
    case 4:
      target.headers.setUint32(at + HEADER.tid, random(2) === 0 ? process.pid : random(2 ** 32), true);
      return;
    case 5:
      target.headers.setBigUint64(at + random(HEADER.size / 8) * 8, anyWord(random, head), true);
      return;
    case 6:
      target.rings[lane][random(RING_BYTES / 4)] = random(2 ** 32);
      return;
    default: {
      const from = random(RING_BYTES / 4);
      target.rings[lane].fill(random(2 ** 32), from, from + random(4096));
    }
  }
}

/**
 * So many sessions with a target that spoils words and writes records in turn. Each look ends soon, whatever is told is such as can be, and so
 * is the end. @throws AssertionError
 */
export function fuzzLaneHeaders(rounds: number, seed: number): void {
  const random = randomFrom(seed);
  for (let round = 0; round < rounds; round++) {
    const target = new FakeTarget();
    const told = new Told();
    const drain = new RingDrain(process.pid, target.agent, FUNCTIONS, CELLS, new Map(), told);
    for (let step = random(60); step >= 0; step--) {
      const lane = 1 + random(LANES - 1);
      if (random(3) > 0) target.claim(lane, process.pid);
      for (let n = random(200); n > 0; n--)
        target.write(lane, (random(FUNCTIONS) << KIND_BITS) | (random(2) === 0 ? KIND_ENTRY : KIND_EXIT));
      for (let n = random(4); n > 0; n--) spoil(target, random);
      const since = performance.now();
      drain.poll();
      assert.ok(performance.now() - since < LOOK_MS, `seed ${seed}, round ${round}: a look does not end`);
    }
    const since = performance.now();
    while (!drain.finishSome(performance.now() + 1)) spoil(target, random);
    drain.finish();
    assert.ok(performance.now() - since < LOOK_MS, `seed ${seed}, round ${round}: the end does not come`);
    assert.ok(
      Number.isSafeInteger(drain.dropped + drain.laneless + drain.records),
      `seed ${seed}, round ${round}`,
    );
    told.assertClosed();
  }
}

export const RECORD = {
  entry: (index: number): number => (index << KIND_BITS) | KIND_ENTRY,
  lost: KIND_LOST,
  functions: FUNCTIONS,
  ringRecords: RING_BYTES / RECORD_BYTES,
};
