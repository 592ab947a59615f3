// Code that is changed, and switched, while no thread is held.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { attach, isSafepokeError, type SessionSummary } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import {
  ONE_NOP,
  Target,
  answered,
  build,
  changedBytes,
  mapsOf,
  statusField,
} from './targets.test.support.js';

type WayName = 'held' | 'page-flip';

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
    const exits = way === 'page-flip' ? 'none' : 'sites';
    const session = attach(target.pid, { way, bufferBytes: BUFFER, filters: FUNCTIONS, exits });
    const held = session.status.held_us;
    for (let i = 0; i < switches; i++) {
      const name = FUNCTIONS[i % FUNCTIONS.length];
      assert.equal(session.switch([name], false), 1);
      if (i % TURN === 0) await new Promise((resolve) => setImmediate(resolve));
      assert.equal(session.switch([name], true), 1);
    }
    assert.equal(session.status.held_us, held);
    rounds.count('switches', switches * 2);
    rounds.note('us for which a thread was lent to put the agent in', session.status.lent_us);
    target.say('quiet');
    assert.match(await target.line(), /^done wrong=0 /);
    const summary = await session.stop();
    assert.deepEqual(
      { way: summary.ways[way], switched: summary.switched, changed: changedBytes(target.pid) },
      { way: way === 'held' ? summary.ways['held'] : FUNCTIONS.length, switched: switches * 2, changed: 0 },
    );
    if (way === 'page-flip') assert.equal(summary.held_us, 0);
    assert.ok(summary.restored && summary.removed);
  }
  await target.finish();
}

/** Half of the batches with a function switched off, of which then nothing is recorded, and all of the others. */
async function countWhileSwitched(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('flips.c', ...ONE_NOP), String(THREADS));
  while (rounds.next(target.pid)) {
    const session = attach(target.pid, { way: 'page-flip', filters: FUNCTIONS, exits: 'none' });
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

/** Text that may not be moved, and how it is changed all the same; or the reason why the process is refused. */
const PROTECTED: readonly { readonly how: string; readonly way?: WayName; readonly refused?: string }[] = [
  { how: 'locked', way: 'held' },
  { how: 'locked-page', way: 'held' },
  { how: 'locked-later', way: 'held' },
  { how: 'sealed', way: 'held' },
  // What becomes executable is refused. What is moved is executable before.
  { how: 'no-gain', way: 'page-flip' },
  { how: 'mremap-kills', refused: 'SECCOMP' },
  { how: 'mremap-fails', refused: 'SECCOMP' },
  { how: 'space-0', refused: 'NO_MEMORY' },
  // Enough to map something, and not to split it.
  { how: 'maps-3', refused: 'NO_MEMORY' },
  { how: 'maps-4', refused: 'NO_MEMORY' },
];
/** There is room for so many mappings more, or KiB: enough for nothing, for all but the copies of text, for all. */
const MOST_MAPS = 20;
const MOST_KIB = 4096;

/** What became of an attempt: the error's code, or the names of the functions that are not traced. */
type Outcome =
  { readonly refused: string } | { readonly ways: SessionSummary['ways']; readonly off: string[] };

/** Traces while everything runs; counts are exact, and afterwards the process is what it was, traced or refused. */
async function tracesOrRefuses(target: Target, way: WayName | undefined): Promise<Outcome> {
  const state = (): unknown => [
    mapsOf(target.pid),
    statusField(target.pid, 'VmLck'),
    changedBytes(target.pid),
    readdirSync(`/proc/${target.pid}/task`).length,
  ];
  const before = state();
  let outcome: Outcome;
  try {
    const session = attach(target.pid, {
      filters: FUNCTIONS,
      exits: 'none',
      bufferBytes: 1 << 16,
      ...(way === undefined ? {} : { way }),
    });
    target.say(`batch ${ROUNDS}`);
    const counts = answered(await target.line());
    const { ways, restored, removed, calls, dropped } = await session.stop();
    const off = session.refused.map(({ function: { name } }) => name);
    const seen = FUNCTIONS.map((name) => calls[name] ?? 0);
    assert.deepEqual(
      { restored, removed, dropped, seen },
      {
        restored: true,
        removed: true,
        dropped: 0,
        seen: FUNCTIONS.map((f) => (off.includes(f) ? 0 : counts[f])),
      },
    );
    outcome = { ways, off };
  } catch (error) {
    if (!isSafepokeError(error)) throw error;
    outcome = { refused: error.code };
  }
  assert.deepEqual(state(), before);
  target.say(`batch ${ROUNDS}`);
  assert.equal(answered(await target.line())['wrong'], 0);
  return outcome;
}

async function protectedText(rounds: Rounds): Promise<void> {
  while (rounds.next()) {
    for (const { how, way, refused } of PROTECTED) {
      const target = new Target(build('flips.c', ...ONE_NOP), '4', how);
      // A kernel that cannot seal says so.
      const isProtected = (await target.expect(/^ready/)) === `ready, ${how}`;
      const wanted = isProtected ? way : 'page-flip';
      const outcome = await tracesOrRefuses(target, undefined);
      assert.deepEqual(
        { how, ...outcome },
        wanted === undefined ? { how, refused } : { how, ways: { [wanted]: FUNCTIONS.length }, off: [] },
      );
      const flipped = await tracesOrRefuses(target, 'page-flip');
      if (wanted === 'held') assert.deepEqual({ how, ...flipped }, { how, refused: 'NEEDS_HOLD' });
      else assert.deepEqual({ how, ...flipped }, { how, ...outcome });
      await target.finish();
    }
  }
}

/** With so many its pages can be moved, and not copied. */
const MAPS_TO_MOVE = 12;

async function noRoomToFlip(rounds: Rounds): Promise<void> {
  while (rounds.next()) {
    for (const how of [
      `maps-${MAPS_TO_MOVE}`,
      `maps-${Math.floor(Math.random() * MOST_MAPS)}`,
      `space-${Math.floor(Math.random() * MOST_KIB)}`,
    ]) {
      for (const way of [undefined, 'page-flip'] as const) {
        const target = await Target.ready(build('flips.c', ...ONE_NOP), '4', how);
        const outcome = await tracesOrRefuses(target, way);
        if ('refused' in outcome)
          assert.match(outcome.refused, /^(NO_MEMORY|NO_MEMORY_NEAR|NEEDS_HOLD)$/, how);
        else if (way === undefined) assert.deepEqual({ how, off: outcome.off }, { how, off: [] });
        // A session that traces nothing is none.
        else assert.ok((outcome.ways[way] ?? 0) > 0, how);
        rounds.count(`times ${'refused' in outcome ? outcome.refused : Object.keys(outcome.ways).join()}`);
        await target.finish();
      }
    }
  }
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
  {
    name: 'text that is locked or sealed, a process that forbids mremap or to make anything executable: flipped, written in a hold, or refused',
    run: protectedText,
  },
  {
    name: 'room for a few mappings or pages more, so that any step may be the one that fails: traced exactly, or refused and untouched',
    run: noRoomToFlip,
  },
];
