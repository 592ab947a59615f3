import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { TscClock } from './tsc-clock.js';

test('ticks are exact however large the counter is', () => {
  const counter = fc.bigInt({ min: 0n, max: 2n ** 63n });
  fc.assert(
    fc.property(counter, fc.bigInt({ min: 0n, max: 2n ** 50n }), (start, passed) => {
      const now = start + passed;
      const clock = new TscClock(start, 3e9);
      assert.equal(clock.ticks(Number(now & 0xffff_ffffn), Number(now >> 32n)), Number(passed));
    }),
  );
});

test('two readings of both clocks replace the estimate, unless they are too close to each other', () => {
  const clock = new TscClock(0n, 1e9);
  assert.equal(clock.nsPerTick, 1);
  clock.addReading({ kind: 'clock', tsc: '1000', ns: '50' });
  clock.addReading({ kind: 'clock', tsc: '1002', ns: '51' });
  assert.equal(clock.nsPerTick, 1);
  clock.addReading({ kind: 'clock', tsc: '2001000', ns: '1000050' });
  assert.equal(clock.nsPerTick, 0.5);
  assert.equal(clock.toNs(10), 5);
});
