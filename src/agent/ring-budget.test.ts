import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RingBudget } from './ring-budget.js';

const MIB = 1 << 20;

test('with memory enough every thread may fill its ring', () => {
  const budget = new RingBudget(2 ** 40, 256, 20, 128 * MIB);
  for (let lane = 0; lane < 256; lane++) assert.equal(budget.grant(lane), 128 * MIB);
  assert.ok(budget.isEnough);
});

test('whatever lanes come and go, all together never hold more than there is', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1 << 20, max: 2 ** 34 }),
      fc.integer({ min: 2, max: 500 }),
      fc.integer({ min: 12, max: 30 }),
      fc.array(fc.tuple(fc.nat(499), fc.boolean()), { maxLength: 200 }),
      (total, lanes, ring, steps) => {
        const budget = new RingBudget(total, lanes, Math.min(lanes, 17), 2 ** ring);
        const limits = Array.from({ length: lanes }, (_, lane) => budget.initial(lane));
        for (const [n, comes] of steps) {
          const lane = n % lanes;
          if (comes) limits[lane] = budget.grant(lane);
          else {
            budget.takeBack(lane);
            limits[lane] = budget.initial(lane);
          }
          assert.ok(limits[lane] <= 2 ** ring && limits[lane] >= budget.initial(lane));
          assert.ok(limits.reduce((sum, limit) => sum + limit, 0) <= total);
        }
      },
    ),
  );
});

test('a budget that leaves a thread next to nothing is not enough', () => {
  assert.ok(!new RingBudget(1 << 20, 256, 20, 128 * MIB).isEnough);
  assert.ok(new RingBudget(32 * MIB, 256, 20, 128 * MIB).isEnough);
  assert.ok(new RingBudget(4 * MIB, 256, 20, 4096).isEnough);
});
