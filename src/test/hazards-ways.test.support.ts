// Code that is changed, and switched, while no thread is held.
import assert from 'node:assert/strict';
import { attach } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { ONE_NOP, Target, answered, build, changedBytes } from './targets.test.support.js';

const BUFFER = 1 << 20;
const FUNCTIONS = ['step', 'mix', 'handle'];
const THREADS = 50;
const SWITCHES = 5_000;
const MANY_SWITCHES = 50_000;
/** Records are drained between so many switches. */
const TURN = 2000;
const ROUNDS = 64;

/** Switches functions in turn, so often that threads are in every place of a head when it changes. */
async function switchWhileRunning(rounds: Rounds, way: 'held' | 'page-flip'): Promise<void> {
  const target = await Target.ready(build('flips.c', ...ONE_NOP), String(THREADS));
  const switches = rounds.isLong ? MANY_SWITCHES : SWITCHES;
  while (rounds.next(target.pid)) {
    target.say('run');
    const options = { way, bufferBytes: BUFFER, filters: FUNCTIONS, entryOnly: way === 'page-flip' };
    const session = attach(target.pid, options);
    const held = session.status.held_us;
    for (let i = 0; i < switches; i++) {
      const name = FUNCTIONS[i % FUNCTIONS.length];
      assert.equal(session.switch([name], false), 1);
      if (i % TURN === 0) await new Promise((resolve) => setImmediate(resolve));
      assert.equal(session.switch([name], true), 1);
    }
    assert.equal(session.status.held_us, held);
    target.say('quiet');
    assert.match(await target.line(), /^done wrong=0 /);
    const summary = await session.stop();
    assert.deepEqual(
      { way: summary.ways[way], switched: summary.switched, changed: changedBytes(target.pid) },
      { way: way === 'held' ? summary.ways['held'] : FUNCTIONS.length, switched: switches * 2, changed: 0 },
    );
    assert.ok(summary.restored && summary.removed);
  }
  await target.finish();
}

/** Half of the batches with a function switched off, of which then nothing is recorded, and all of the others. */
async function countWhileSwitched(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('flips.c', ...ONE_NOP), String(THREADS));
  while (rounds.next(target.pid)) {
    const session = attach(target.pid, { way: 'page-flip', filters: FUNCTIONS, entryOnly: true });
    const off = FUNCTIONS[rounds.done % FUNCTIONS.length];
    if (rounds.done % 2 === 0) session.switch([off], false);
    target.say(`batch ${ROUNDS}`);
    const { wrong, ...counts } = answered(await target.line());
    const summary = await session.stop();
    assert.equal(wrong, 0);
    if (rounds.done % 2 === 0) counts[off] = 0;
    const seen = Object.fromEntries(FUNCTIONS.map((name) => [name, summary.calls[name] ?? 0]));
    assert.deepEqual({ ...seen, dropped: summary.dropped }, { ...counts, dropped: 0 });
  }
  await target.finish();
}

export const wayHazards: readonly Hazard[] = [
  {
    name: 'functions are switched by page flips while 50 threads, a timer storm, threads with all signals blocked and vfork children run them',
    run: (rounds) => switchWhileRunning(rounds, 'page-flip'),
  },
  {
    name: 'functions that were changed in a hold are switched without one while everything runs them',
    run: (rounds) => switchWhileRunning(rounds, 'held'),
  },
  {
    name: 'what is switched off is not recorded, and all else is, exactly, with nobody ever held to change code',
    run: countWhileSwitched,
  },
];
