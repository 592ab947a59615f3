// Threads that are not told apart by their thread pointers: programs that change them, have none, or share one.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ONE_NOP, Running, Target, build, runTraced } from './targets.test.support.js';

const ROUNDS = 2000;
const KINDS = [[], ['-static']] as const;

for (const flags of KINDS) {
  for (const mode of ['call', 'none', 'instruction']) {
    for (const inside of flags.length === 0 ? [false, true] : [false]) {
      const how = [...flags, inside ? 'inside' : 'outside'].join(' ');
      test(`each call is recorded where the thread pointer is changed: ${mode}, ${how}`, () => {
        const options = ['-F', 'leaf', ...(inside ? ['--inside'] : [])];
        const traced = runTraced(options, build('thread-pointers.c', ...flags), mode, String(ROUNDS));
        assert.equal(traced.status, 0, traced.stderr);
        assert.match(traced.stdout, /^sum=2001000 /);
        assert.deepEqual(traced.summary.calls, { leaf: ROUNDS });
        assert.equal(traced.summary.threads, 1);
      });
    }
  }
}

test('each call is recorded in a running program whose thread pointer is changed', async () => {
  const target = await Target.ready(build('thread-pointers.c'), '-', String(ROUNDS));
  const running = await Running.attach(target.pid, '-F', 'leaf');
  target.say('call');
  await target.expect(/^sum=2001000 /);
  const { summary } = await running.ended();
  assert.deepEqual(summary.calls, { leaf: ROUNDS });
});

test('threads that share a thread pointer have their calls recorded, each its own', () => {
  for (let i = 0; i < 5; i++) {
    const traced = runTraced(['-F', 'leaf'], build('thread-pointers.c'), 'shared', '200000');
    assert.equal(traced.status, 0, traced.stderr);
    assert.deepEqual(traced.summary.calls, { leaf: 400_000 });
    assert.equal(traced.summary.threads, 2);
  }
});

test('a program that never has a thread pointer is traced as any other', () => {
  const program = build('no-thread-pointer.c', '-static', '-nostdlib', '-fno-stack-protector');
  const traced = runTraced(['-F', 'leaf'], program);
  assert.equal(traced.status, 0, traced.stderr);
  assert.equal(traced.stdout, '500500\n');
  assert.deepEqual(traced.summary.calls, { leaf: 1000 });
});

for (const kind of ['shared', 'none', 'other']) {
  test(`threads that a program makes itself have their calls recorded: ${kind}`, async () => {
    // One instruction is room for each site: nobody would have to be held for it.
    const target = await Target.ready(build('own-threads.c', ...ONE_NOP, '-no-pie'), kind, '100000');
    const running = await Running.attach(target.pid, '-F', 'leaf');
    target.say('go');
    assert.equal(await target.rest(), 'sum=15000150000');
    const { summary } = await running.ended();
    assert.deepEqual(
      { calls: summary.calls, dropped: summary.dropped },
      { calls: { leaf: 300_000 }, dropped: 0 },
    );
  });
}
