import assert from 'node:assert/strict';
import { test } from 'node:test';
import { attach } from '../index.js';
import {
  Target,
  assertCounted,
  assertNested,
  build,
  callsOf,
  pause,
  runTraced,
} from './targets.test.support.js';

test('pthread_exit, pthread_cancel, backtrace and dlsym find what they look for on a traced stack', () => {
  for (const flags of [[], ['-static', '-DSTATIC']]) {
    const program = build('unwind.c', '-fexceptions', ...flags);
    const traced = runTraced([], program);
    assert.match(traced.stdout, /^failures: 0$/m, traced.stderr);
    assert.equal(traced.status, 0, traced.stderr);
    assertCounted(traced, flags.includes('-static') ? 'early' : 'none');
    assertNested(callsOf(traced.recording));
  }
});

test('the same where the unwinder is loaded only when it is first needed', () => {
  const traced = runTraced([], build('unwind.c', '-DLATE'));
  assert.match(traced.stdout, /^failures: 0$/m, traced.stderr);
  assert.equal(traced.status, 0, traced.stderr);
  assertCounted(traced);
});

for (const flags of [
  ['-O2'],
  ['-O0'],
  ['-O2', '-fpatchable-function-entry=5'],
  ['-O2', '-static'],
  ['-O2', '-pg'],
]) {
  test(`C++ exceptions pass through traced frames: g++ ${flags.join(' ')}`, () => {
    // Of a static program that is the whole library as well.
    const isStatic = flags.includes('-static');
    const traced = runTraced([], build('throws.cc', '-w', ...flags), ...(isStatic ? ['single'] : []));
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    assertCounted(traced, isStatic ? 'early' : 'none');
    if (!isStatic) assertNested(callsOf(traced.recording));
  });
}

test('C++ exceptions with everything of the C++ library traced as well', () => {
  const options = ['-F', '*', '-F', 'libstdc++.so.6!*', '-F', 'libc.so.6!*sort*'];
  const traced = runTraced(options, build('throws.cc', '-w'), 'single');
  assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
  assertCounted(traced);
});

test('exceptions find their way at every moment of a session that begins, goes on and ends', async () => {
  const LONG_ENOUGH_MS = '600000';
  const target = new Target(build('leaves.cc'), LONG_ENOUGH_MS);
  const filters = ['on_user', 'throws', 'work', 'step'];
  for (let i = 0; i < 12; i++) {
    const session = attach(target.pid, { filters });
    await pause(i * 3);
    const { restored, removed } = await session.stop();
    assert.deepEqual({ restored, removed }, { restored: true, removed: true });
    assert.deepEqual([target.child.exitCode, target.child.signalCode], [null, null], target.stderr);
  }
  target.kill();
});
