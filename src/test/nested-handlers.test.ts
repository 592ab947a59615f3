// Handlers that interrupt each other on different stacks, where the lower one will return into code that is changed, or into ours.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { attach } from '../index.js';
import { Target, build, changedBytes, mapsOf, pause } from './targets.test.support.js';

/** Longer than a session takes to leave when nothing keeps it. */
const LEAVES_MS = 300;

/** Where the alternate stack lies: in a mapping of its own, or above the thread's stack in the same. */
for (const where of ['own', 'near']) {
  const file = build.bind(undefined, 'nested.c');

  test(`a function into whose first instructions a handler below one on an alternate stack will return is refused (${where})`, async () => {
    const target = await Target.ready(file(), where);
    const before = mapsOf(target.pid);
    target.say('middle');
    await target.expect(/^held$/);
    const session = attach(target.pid, { filters: ['middle', 'stepped'] });
    target.say('go on');
    await target.expect(/^right$/);
    assert.deepEqual(
      session.refused.map(({ function: f, reason }) => `${f.name} ${reason}`),
      ['middle thread-inside'],
    );
    const { restored, removed } = await session.stop();
    assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, true, 0]);
    assert.deepEqual(mapsOf(target.pid), before);
    await target.finish();
  });

  test(`code of ours into which a handler below one on an alternate stack will return stays until it has (${where})`, async () => {
    const target = await Target.ready(file(), where);
    const before = mapsOf(target.pid);
    const session = attach(target.pid, { filters: ['middle'] });
    assert.deepEqual(session.refused, []);
    target.say('outside');
    await target.expect(/^held$/);
    const ended = session.stop();
    await pause(LEAVES_MS);
    target.say('go on');
    await target.expect(/^right$/);
    const { restored, removed } = await ended;
    assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, true, 0]);
    assert.deepEqual(mapsOf(target.pid), before);
    await target.finish();
  });
}
