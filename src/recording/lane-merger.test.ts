import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { LaneMerger } from './lane-merger.js';
import { RECORD_WORDS, TSC_LOW_WORD } from './record-layout.js';
import { TscClock } from './tsc-clock.js';

const clock = new TscClock(0n, 1e9);

function wordsAt(ticks: readonly number[]): Uint32Array {
  const words = new Uint32Array(ticks.length * RECORD_WORDS);
  ticks.forEach((tick, i) => (words[i * RECORD_WORDS + TSC_LOW_WORD] = tick));
  return words;
}

function collector(): {
  given: [lane: number, tick: number][];
  ended: number[];
  addRecords: (lane: number, words: Uint32Array, from: number, to: number) => void;
  endLane: (lane: number) => void;
} {
  const given: [lane: number, tick: number][] = [];
  const ended: number[] = [];
  return {
    given,
    ended,
    addRecords: (lane, words, from, to) => {
      assert.ok(from < to);
      for (let at = from; at < to; at += RECORD_WORDS) given.push([lane, words[at + TSC_LOW_WORD]]);
    },
    endLane: (lane) => ended.push(lane),
  };
}

const ascending = fc.array(fc.nat(200), { maxLength: 30 }).map((ticks) => ticks.sort((a, b) => a - b));

test('lanes come out in the order of time, and each lane in its own order', () => {
  fc.assert(
    fc.property(fc.array(ascending, { maxLength: 6 }), fc.integer({ min: 1, max: 7 }), (lanes, size) => {
      const out = collector();
      const rest = lanes.map((ticks) => [...ticks]);
      const next = (lane: number): Uint32Array | undefined => {
        const piece = rest[lane].splice(0, size);
        return piece.length === 0 ? undefined : wordsAt(piece);
      };
      const merger = new LaneMerger(clock, out, next);
      lanes.forEach((_, lane) => {
        const first = next(lane);
        if (first !== undefined) merger.push(lane, first);
      });
      merger.finish();
      const all = lanes.flat().sort((a, b) => a - b);
      assert.deepEqual(
        out.given.map(([, tick]) => tick),
        all,
      );
      lanes.forEach((ticks, lane) => {
        assert.deepEqual(
          out.given.filter(([of]) => of === lane).map(([, tick]) => tick),
          ticks,
        );
      });
    }),
  );
});

test('live, nothing is given out that is not older than what may still come', () => {
  const out = collector();
  const merger = new LaneMerger(clock, out);
  merger.push(0, wordsAt([10, 20, 30]));
  merger.push(1, wordsAt([15]));
  merger.advance(20);
  assert.deepEqual(out.given, [
    [0, 10],
    [1, 15],
  ]);
  merger.push(1, wordsAt([18, 40]));
  merger.advance(35);
  assert.deepEqual(out.given.slice(2), [
    [1, 18],
    [0, 20],
    [0, 30],
  ]);
  merger.finish();
  assert.deepEqual(out.given.slice(5), [[1, 40]]);
});

test('a lane ends after its last record, and one that is empty at once', () => {
  const out = collector();
  const merger = new LaneMerger(clock, out);
  merger.push(0, wordsAt([10]));
  merger.endLane(0);
  merger.endLane(1);
  assert.deepEqual(out.ended, [1]);
  merger.advance(11);
  assert.deepEqual(out.ended, [1, 0]);
});

test('a loss after the last record stands at the time of that record', () => {
  const out = collector();
  const merger = new LaneMerger(clock, out);
  merger.push(0, wordsAt([10]));
  merger.pushLost(0, 5);
  merger.push(1, wordsAt([9, 11]));
  merger.finish();
  assert.deepEqual(
    out.given.map(([lane]) => lane),
    [1, 0, 0, 1],
  );
});
