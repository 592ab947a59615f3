import { test } from 'node:test';
import { manyRounds } from './hostile-rounds.test.support.js';
import { HOSTILE_MODES, INSIDE_MODES, ONLY_INSIDE, hostileRound, pointOf } from './hostile.test.support.js';
import { Rounds } from './rounds.test.support.js';

/** A point early in the attach, and one that differs from mode to mode. */
const EARLY = 12;

for (const [i, mode] of HOSTILE_MODES.entries()) {
  test(`a hostile program harms only itself: ${mode}`, async () => {
    await hostileRound(mode, EARLY);
    await hostileRound(mode, pointOf(i));
  });
}

for (const [i, mode] of ONLY_INSIDE.entries()) {
  test(`a hostile program that is started from inside harms only itself: ${mode}`, async () => {
    await hostileRound(mode, pointOf(i), 'inside');
  });
}

test('one process traces hostile programs one after another, and keeps nothing of them', async () => {
  await manyRounds(new Rounds(0, HOSTILE_MODES.length), 'attach', HOSTILE_MODES);
});

test('the same from inside', async () => {
  await manyRounds(new Rounds(0, INSIDE_MODES.length), 'inside', INSIDE_MODES);
});
