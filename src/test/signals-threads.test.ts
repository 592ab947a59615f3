import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  Running,
  Target,
  assertCounted,
  assertNested,
  build,
  callsOf,
  countsIn,
  pause,
  runTraced,
} from './targets.test.support.js';

for (const [what, flags] of [
  ['on the thread’s stack', ''],
  ['on alternate stacks, nested', 'an'],
]) {
  test(`handlers of a storm of timers on four threads are traced exactly: ${what}`, () => {
    const traced = runTraced([], build('signals.c'), '150', flags);
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    assertCounted(traced);
    assertNested(callsOf(traced.recording));
  });
}

test('handlers that jump out, perhaps out of the recorder itself, lose no more than the record it was making', () => {
  for (const flags of ['j', 'ajn']) {
    const traced = runTraced([], build('signals.c'), '200', flags);
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    const counts = countsIn(traced.stdout);
    const { calls, dropped } = traced.summary;
    const missing = Object.entries(counts).map(([name, count]) => count - (calls[name] ?? 0));
    // A handler may jump out before a function counts itself, and when the recorder has seen it already.
    const jumps = counts['jump'];
    assert.ok(
      missing.every((n) => n >= -jumps && n <= dropped),
      JSON.stringify({ counts, calls, dropped }),
    );
    assert.ok(dropped <= jumps, `${dropped} of ${jumps}`);
  }
});

test('every thread of a storm has a lane of its own', () => {
  for (const [long, short, together] of [
    [4, 200, 50],
    [2, 200, 1],
    [0, 600, 200],
  ]) {
    const traced = runTraced([], build('threads.c'), String(long), String(short), String(together));
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    assertCounted(traced);
    assert.equal(traced.summary.threads, 1 + long + short);
    const calls = callsOf(traced.recording);
    assertNested(calls);
    const bodies = calls.filter((call) => call.function === 'body');
    const steps = new Map<number | null, number>();
    for (const { function: f, parent } of calls)
      if (f === 'step') steps.set(parent, (steps.get(parent) ?? 0) + 1);
    const expected = [
      ...Array.from({ length: long }, () => 20_000),
      ...Array.from({ length: short }, (_, i) => (i % 7) + 1),
    ];
    assert.deepEqual(
      bodies.map((call) => steps.get(call.id)).sort((a = 0, b = 0) => a - b),
      expected.sort((a, b) => a - b),
    );
  }
});

test('threads that come and go while safepoke comes and goes', async () => {
  const target = await Target.ready(build('threads.c'), '-');
  for (let i = 0; i < 5; i++) {
    for (let k = 0; k < 4; k++) target.say('200');
    const running = await Running.attach(target.pid);
    await pause(20);
    const { summary } = await running.stop();
    assert.ok(summary.restored && summary.removed);
    for (let k = 0; k < 4; k++) await target.expect(/^done 0$/);
  }
  await target.finish();
});
