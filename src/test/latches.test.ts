// Threads that are kept from going on while they wait in system calls.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { attach } from '../index.js';
import { readStatus } from '../linux/index.js';
import { Hold } from '../target/hold.js';
import { Latches } from '../target/latches.js';
import { HoldTimes } from '../target/stops.js';
import { Target, answered, build, changedBytes, pause } from './targets.test.support.js';

/** 21 calls, so often: more threads than are held rather than latched. */
const TIMES = 7;
const CALLS = 21;
const anywhere = (): boolean => true;
/** Time never decides a test. */
const patiently = { runnable: Infinity, ms: Infinity };

function states(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).map((tid) => {
    const status = readStatus(pid, Number(tid));
    return `${status?.get('State')?.charAt(0) ?? ''}${status?.get('TracerPid') === '0' ? '' : ' traced'}`;
  });
}

/** Those that were let go are on their way for a moment. */
async function untilAllWait(pid: number): Promise<void> {
  while (!states(pid).every((state) => state === 'S')) await pause(5);
}

test('threads that wait are latched without standing still, and go on waiting', async () => {
  const target = await Target.ready(build('blocked.c'), String(TIMES));
  for (let i = 0; i < 5; i++) {
    const latches = Latches.in(target.pid, new HoldTimes(), 0, anywhere, patiently);
    assert.equal(latches.threads.length, TIMES * CALLS);
    // Each is on its way back into its call, which takes a processor for a moment.
    while (states(target.pid).includes('R traced')) await pause(1);
    assert.deepEqual(new Set(states(target.pid)), new Set(['S', 'S traced']));
    latches.release();
    await untilAllWait(target.pid);
    const session = attach(target.pid, { bufferBytes: 1 << 16 });
    await session.stop();
  }
  target.say('10');
  await target.expect(/^did 11$/);
  await target.finish();
});

test('threads of which it is not wanted are not latched, and neither are those of small processes', async () => {
  const large = await Target.ready(build('blocked.c'), String(TIMES));
  const small = await Target.ready(build('blocked.c'));
  assert.equal(Latches.in(large.pid, new HoldTimes(), 0, () => false, patiently).threads.length, 0);
  assert.equal(Latches.in(small.pid, new HoldTimes(), 0, anywhere, patiently).threads.length, 0);
  for (const target of [large, small]) {
    await untilAllWait(target.pid);
    await target.finish();
  }
});

test('a thread that wakes up stops before it is back in the program, and loses no signal', async () => {
  const target = await Target.ready(build('waiters.c'));
  target.say('run');
  for (let i = 0; i < 10; i++) {
    const times = new HoldTimes();
    const latches = Latches.in(target.pid, times, 0, anywhere, patiently);
    const hold = Hold.all(target.pid, times, 0, latches);
    // Tokens, timeouts and signals wake threads meanwhile; not one may run.
    await pause(30);
    assert.ok(!states(target.pid).some((state) => state.startsWith('R')));
    assert.ok(states(target.pid).every((state) => state.endsWith('traced')));
    hold.release();
    await pause(20);
  }
  target.say('quiet');
  const { wrong, turn } = answered(await target.line());
  assert.equal(wrong, 0);
  assert.ok(turn > 0);
  await target.finish();
});

test('when safepoke dies latched threads wait on, and the next session finds all as it was', async () => {
  const target = await Target.ready(build('waiters.c'));
  target.say('run');
  const script = `
    import { Latches } from '${new URL('../target/latches.js', import.meta.url).href}';
    import { HoldTimes } from '${new URL('../target/stops.js', import.meta.url).href}';
    const latches = Latches.in(${target.pid}, new HoldTimes(), 0, () => true, { runnable: Infinity, ms: Infinity });
    if (Number(process.argv[1]) % 2 === 0) latches.release();
    process.kill(process.pid, 'SIGKILL');`;
  for (let i = 0; i < 6; i++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', script, String(i)], {
      stdio: 'inherit',
    });
    const [, signal] = (await once(child, 'exit')) as [number | null, string | null];
    assert.equal(signal, 'SIGKILL');
    const session = attach(target.pid, { bufferBytes: 1 << 16, filters: ['turn'] });
    await session.stop();
    assert.equal(changedBytes(target.pid), 0);
  }
  target.say('quiet');
  assert.equal(answered(await target.line())['wrong'], 0);
  await target.finish();
});
