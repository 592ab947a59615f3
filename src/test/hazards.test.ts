// Everything that must not break a target, a few seconds each; scripts/soak.sh runs the same for as long as wanted.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hazards } from './hazards.test.support.js';
import { Rounds } from './rounds.test.support.js';

const MS = 1500;

for (const { name, run } of hazards) {
  test(name, async (t) => {
    const rounds = new Rounds(MS);
    await run(rounds);
    for (const note of rounds.notes()) t.diagnostic(note);
    assert.deepEqual(rounds.leaks(), []);
  });
}
