import { test } from 'node:test';
import { HOSTILE_MODES, hostileRound, pointOf } from './hostile.test.support.js';

/** A point early in the attach, and one that differs from mode to mode. */
const EARLY = 12;

for (const [i, mode] of HOSTILE_MODES.entries()) {
  test(`a hostile program harms only itself: ${mode}`, async () => {
    await hostileRound(mode, EARLY);
    await hostileRound(mode, pointOf(i));
  });
}
