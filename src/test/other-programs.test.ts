// Programs of other C libraries, languages and habits: traced where that is safe, else refused with the reason.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { CannotError, attach } from '../index.js';
import { SCRIPTS, runsTheSame, totalCalls } from './real.test.support.js';
import {
  Target,
  assertCounted,
  build,
  buildGo,
  changedBytes,
  mapsOf,
  pause,
  runTraced,
} from './targets.test.support.js';

const ROUNDS = 8;

/**
 * Attaches to a program and leaves it, again and again, while it works; each answer must be as wanted. `own`: whether it maps and
 * unmaps memory itself.
 */
async function comeAndGo(
  target: Target,
  filters: readonly string[],
  line: string,
  wanted: RegExp,
  own: 'steady' | 'moving' = 'steady',
): Promise<void> {
  target.say(line);
  await target.expect(wanted);
  const before = mapsOf(target.pid);
  for (let i = 0; i < ROUNDS; i++) {
    const session = attach(target.pid, { filters, bufferBytes: 1 << 18 });
    target.say(line);
    await target.expect(wanted);
    if (i % 2 === 0) await pause(i);
    const { restored, removed, records } = await session.stop();
    assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, true, 0]);
    assert.ok(records > 0);
    if (own === 'steady') assert.deepEqual(mapsOf(target.pid), before);
  }
  target.say(line);
  await target.expect(wanted);
}

for (const linked of ['', '-static']) {
  const flags = ['-musl', ...(linked === '' ? [] : [linked])];

  test(`a musl program ${linked} is traced exactly, each of its threads in a lane of its own`, () => {
    const traced = runTraced([], build('threads.c', ...flags), '4', '200', '50');
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    assertCounted(traced, 'early');
    assert.equal(traced.summary.threads, 1 + 4 + 200);
    assert.equal(traced.summary.calls['step'], 80_794);
  });

  test(`a musl program ${linked} at work, with all functions traced, its library’s too`, async () => {
    for (const does of ['compute', 'sleep', 'call', 'wait']) {
      const target = await Target.ready(build('busy.c', ...flags), '2', does);
      await comeAndGo(target, ['*!*'], 'go on', /^fine$/);
      await target.finish();
    }
    const target = await Target.ready(build('spawns.c', ...flags));
    await comeAndGo(target, ['*!*'], '3', /^done 0$/);
    await target.finish();
  });
}

test('a Go program at work is refused, and not touched', async () => {
  const target = await Target.ready(buildGo('goroutines.go'));
  for (let i = 0; i < ROUNDS; i++) {
    assert.throws(
      () => attach(target.pid, { filters: i % 2 === 0 ? [] : ['main.fib', 'main.deep'] }),
      (error) => error instanceof CannotError && /go-runtime/.test(error.message),
    );
    target.say('go on');
    await target.expect(/^fine$/);
  }
  assert.doesNotMatch(mapsOf(target.pid).join(), /memfd:safepoke/);
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

test('the C library below a Go program is traced, with goroutines that call C that calls Go', async () => {
  const target = await Target.ready(buildGo('cgo.go'));
  // Its heap and its threads grow as they like.
  for (let i = 0; i < ROUNDS; i++) {
    const session = attach(target.pid, { filters: ['libc.so.6!*'], bufferBytes: 1 << 18 });
    target.say('go on');
    await target.expect(/^fine$/);
    const { restored, removed, calls } = await session.stop();
    assert.deepEqual([restored, removed], [true, true]);
    assert.ok(calls['malloc'] > 0);
  }
  target.say('go on');
  await target.expect(/^fine$/);
  await target.finish();
});

test('LuaJIT compiles, throws and switches coroutines alike under trace', async (t) => {
  const script = join(SCRIPTS, 'lines.lua');
  for (const filters of [['*'], ['*!*']]) {
    const summary = await runsTheSame(t, filters, ['luajit', script, '300000']);
    assert.equal(summary.exit_status, 0);
    assert.ok(totalCalls(summary) > 1000);
    const target = await Target.ready('luajit', script);
    await comeAndGo(target, filters, '100000', /^6765\t305050\t1000\t2104$/, 'moving');
    await target.finish();
  }
});

test('a program that checks its own code sees the change while it is traced, and its own code afterwards', async () => {
  const target = await Target.ready(build('checks.c', '-O1'));
  const expect = async (own: boolean, guarded: boolean): Promise<void> => {
    target.say('check');
    const found = /^own=(\d+) guarded=(\d+)$/.exec(await target.line());
    assert.deepEqual([Number(found?.[1]) > 0, Number(found?.[2]) > 0], [own, guarded]);
  };
  await expect(false, false);
  for (let i = 0; i < ROUNDS; i++) {
    const all = attach(target.pid, { filters: ['work', 'guarded'], bufferBytes: 1 << 18 });
    await expect(true, true);
    assert.equal((await all.stop()).restored, true);
    await expect(false, false);
    const others = attach(target.pid, { notrace: ['guarded'], bufferBytes: 1 << 18 });
    await expect(true, false);
    assert.equal((await others.stop()).restored, true);
    await expect(false, false);
  }
  await target.finish();
});
