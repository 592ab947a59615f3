import assert from 'node:assert/strict';
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { test } from 'node:test';
import { attach, type SessionSummary } from '../index.js';
import { THROWN_THROUGH, assertFine, killInSession, startThrowing } from './exceptions.test.support.js';
import { childrenOf } from './sandboxed.test.support.js';
import { textOf } from './process-state.test.support.js';
import {
  Running,
  Target,
  assertCounted,
  assertNested,
  build,
  callsOf,
  changedBytes,
  isTraced,
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
  const filters = [...THROWN_THROUGH];
  for (let i = 0; i < 12; i++) {
    const session = attach(target.pid, { filters });
    await pause(i * 3);
    const { restored, removed } = await session.stop();
    assert.deepEqual({ restored, removed }, { restored: true, removed: true });
    assert.deepEqual([target.child.exitCode, target.child.signalCode], [null, null], target.stderr);
  }
  target.kill();
});

test('a thread that is within the recorder when a session ends finds its way, and nothing is left behind', async () => {
  const STAYS_MS = '30';
  const target = await Target.ready(build('stays.cc'), STAYS_MS);
  try {
    const before = textOf(target.pid);
    for (let i = 0; i < 15; i++) {
      const session = attach(target.pid, { filters: ['thrower'] });
      await pause(50 + i * 7);
      const { restored, removed } = await session.stop();
      assert.deepEqual({ restored, removed }, { restored: true, removed: true });
      assert.ok(textOf(target.pid).equals(before));
    }
    await assertFine(target);
  } finally {
    target.kill();
  }
});

test('exceptions find their way when safepoke is killed in the middle of a session, and all text is restored', async () => {
  const target = await startThrowing();
  try {
    const before = textOf(target.pid);
    for (let i = 0; i < 12; i++) await killInSession(target, before, i * 20, THROWN_THROUGH);
    await assertFine(target);
  } finally {
    target.kill();
  }
});

test('the same while a thread stays in the recorder for longer', async () => {
  const target = await Target.ready(build('stays.cc'), '700');
  try {
    const before = textOf(target.pid);
    for (let i = 0; i < 4; i++) await killInSession(target, before, 50, ['thrower']);
    const { stayed } = await assertFine(target);
    assert.ok(stayed > 0);
  } finally {
    target.kill();
  }
});

test('the same while stacks are unmapped on which recorded calls are open', async () => {
  const target = await Target.ready(build('gone-stacks.c', '-fexceptions'));
  try {
    const before = textOf(target.pid);
    for (let i = 0; i < 8; i++) await killInSession(target, before, i * 20, ['leave', 'stays']);
    await assertFine(target);
  } finally {
    target.kill();
  }
});

test('a coroutine that has changed threads throws through a traced function, wherever safepoke was killed or has ended meanwhile', async () => {
  const target = await Target.ready(build('moved.cc'));
  const before = textOf(target.pid);
  for (let i = 1; i <= 6; i++) {
    const isKilled = i % 2 === 0;
    const running = await Running.attach(target.pid, '-F', 'thrower');
    target.say('begin');
    await target.expect(/^begun$/);
    if (isKilled) {
      running.child.kill('SIGKILL');
      await running.gone();
      while (!textOf(target.pid).equals(before)) await pause(2);
    } else {
      const { summary } = await running.stop();
      assert.equal(summary.restored, true);
    }
    target.say('go on');
    await target.expect(new RegExp(`^caught=${i} wrong=0$`));
  }
  await target.finish();
});

test('memory that has taken the place of an unloaded library is left alone when safepoke is killed', async () => {
  const library = build('plugin.c', '-shared', '-fPIC');
  const target = await Target.ready(build('unloads.c'), library, 'plugin_step');
  const before = changedBytes(target.pid);
  const running = await Running.attach(target.pid, '-F', 'main', '-F', 'plugin*!*');
  target.say('unload');
  await target.expect(/^unloaded$/);
  running.child.kill('SIGKILL');
  await running.gone();
  while (changedBytes(target.pid) !== before) await pause(2);
  for (let i = 0; i < 3; i++) {
    target.say('look');
    await target.expect(/^wrong=0$/);
    await pause(100);
  }
  await target.finish();
});

/** A session of its own process. */
async function attachFor(pid: number, ms: number, options: readonly string[]): Promise<SessionSummary> {
  const running = await Running.attach(pid, ...options);
  await pause(ms);
  return (await running.stop()).summary;
}

/** The program executes, and not what starts it. */
function hasBegun(pid: number): boolean {
  return (
    readlinkSync(`/proc/${pid}/exe`) !== readlinkSync('/proc/self/exe') &&
    readdirSync(`/proc/${pid}/task`).length > 3
  );
}

test('the same from inside', async () => {
  const program = build('leaves.cc');
  for (let i = 0; i < 4; i++) {
    const filters = THROWN_THROUGH.flatMap((name) => ['-F', name]);
    const { child } = Running.run(['--inside', ...filters], program, '0');
    let said = '';
    child.stdout.on('data', (text: Buffer) => (said += text.toString()));
    const closed = new Promise((resolve) => child.stdout.once('close', resolve));
    let pid: number | undefined;
    while (pid === undefined) {
      await pause(2);
      [pid] = childrenOf(child.pid ?? 0);
    }
    while (!hasBegun(pid) || !isTraced(pid)) await pause(2);
    try {
      await pause(100 + i * 20);
      child.kill('SIGKILL');
      while (existsSync(`/proc/${pid}`) && changedBytes(pid) > 0) await pause(2);
      // From outside now, beside handlers that go by the object that was loaded with the program.
      for (const part of [filters, filters.slice(2)]) {
        const { restored, removed } = await attachFor(pid, 100, part);
        assert.deepEqual({ restored, removed }, { restored: true, removed: true });
      }
      await pause(100);
    } finally {
      process.kill(pid, 'SIGINT');
    }
    await closed;
    assert.match(said, /^wrong: 0, thrown: many, ended: all$/m);
  }
});
