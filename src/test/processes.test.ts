import assert from 'node:assert/strict';
import { existsSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { attach, isSafepokeError, listFunctions } from '../index.js';
import { textOf } from './process-state.test.support.js';
import {
  Running,
  Target,
  answered,
  assertCounted,
  build,
  changedBytes,
  mapsOf,
  pause,
  runTraced,
  statusField,
} from './targets.test.support.js';

const program = build('processes.c');

test('children run on through traced frames of their parent, and their calls are not recorded', () => {
  const traced = runTraced([], program, 'fork');
  assert.equal(traced.status, 0, traced.stderr);
  assertCounted(traced);
});

test('a forked child outlives the trace', async () => {
  const target = await Target.ready(program, 'wait');
  const running = await Running.attach(target.pid);
  target.say('100');
  await target.expect(/^did 100$/);
  await running.stop();
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

test('vfork, posix_spawn and system start what they should', () => {
  const traced = runTraced([], program, 'spawn');
  assert.equal(traced.status, 0, traced.stderr);
  assertCounted(traced);
  const all = runTraced(['-F', '*', '-F', 'libc.so.6!*'], program, 'spawn');
  assert.equal(all.status, 0, all.stderr);
});

test('a target that executes another program ends the session, and goes on', async () => {
  const target = await Target.ready(program, 'wait');
  const running = await Running.attach(target.pid);
  target.say('10');
  await target.expect(/^did 10$/);
  target.say('exec');
  await target.expect(/^ready$/);
  const { status, summary } = await running.ended();
  assert.equal(status, 0);
  assert.equal(summary.ended, 'exec');
  assert.equal(summary.calls['step'], 10);
  target.say('10');
  await target.expect(/^did 10$/);
  await target.finish();
  const run = runTraced([], program, 'exec', 'slowly');
  assert.equal(run.status, 5);
});

test('safepoke run ends as the program does', () => {
  for (const [args, status, ended] of [
    [['exit', '0'], 0, 'exited'],
    [['exit', '7'], 7, 'exited'],
    [['die', '11'], 139, 'killed'],
    [['die', '9'], 137, 'killed'],
    [['die', '15'], 143, 'killed'],
  ] as const) {
    const traced = runTraced([], program, ...args);
    assert.equal(traced.status, status, traced.stderr);
    assert.equal(traced.summary.ended, ended);
    assert.equal(traced.summary.calls['step'], 10);
  }
});

test('a program whose memory the kernel takes long to free is seen to exit, with its status', () => {
  const traced = runTraced([], build('heavy.c'), '1024');
  assert.deepEqual(
    [traced.status, traced.summary.ended, traced.summary.exit_status],
    [3, 'exited', 3],
    traced.stderr,
  );
});

test('a target that dies while it is traced ends the session', async () => {
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    const target = await Target.ready(program, 'wait');
    const running = await Running.attach(target.pid);
    target.say('10');
    await target.expect(/^did 10$/);
    target.kill(signal);
    const { summary, stderr } = await running.ended();
    assert.match(summary.ended, /^(killed|gone)$/, stderr);
    assert.equal(summary.calls['step'], 10);
  }
});

test('a stopped target can be attached to and left, and stays stopped', async () => {
  const target = await Target.ready(program, 'wait');
  const before = mapsOf(target.pid);
  target.kill('SIGSTOP');
  await pause(50);
  const running = await Running.attach(target.pid);
  const { summary } = await running.stop();
  assert.ok(summary.restored && summary.removed);
  assert.equal(changedBytes(target.pid), 0);
  assert.deepEqual(mapsOf(target.pid), before);
  assert.match(statusField(target.pid, 'State'), /^T/);
  target.say('10');
  await pause(100);
  target.kill('SIGCONT');
  await target.expect(/^did 10$/);
  await target.finish();
});

test('a stopped target that goes on while it is traced is recorded from then on', async () => {
  const target = await Target.ready(program, 'wait');
  const before = mapsOf(target.pid);
  target.kill('SIGSTOP');
  await pause(50);
  const running = await Running.attach(target.pid, '-F', '*', '-F', 'libc.so.6!mem*');
  target.kill('SIGCONT');
  target.say('10');
  await target.expect(/^did 10$/);
  const { summary } = await running.stop();
  assert.ok(summary.restored && summary.removed);
  assert.equal(summary.calls['step'], 10);
  assert.deepEqual(mapsOf(target.pid), before);
  await target.finish();
});

/** Longer than safepoke tries to hold a thread. */
const VFORK_MS = 9000;

test('a thread that stops after safepoke has given up, and of which Node is told as its parent, goes on', async () => {
  const target = await Target.ready(program, 'wait');
  target.say(`vfork ${VFORK_MS}`);
  await pause(200);
  assert.throws(
    () => attach(target.pid),
    (error) => isSafepokeError(error) && error.code === 'WILL_NOT_STOP',
  );
  await target.expect(/^did 0$/);
  const session = attach(target.pid);
  target.say('10');
  await target.expect(/^did 10$/);
  const { restored, removed } = await session.stop();
  assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, true, 0]);
  await target.finish();
});

test('a target that is stopped while it is traced gets its code back, and its maps at the next attach', async () => {
  const target = await Target.ready(program, 'wait');
  const before = mapsOf(target.pid);
  const notes: string[] = [];
  const session = attach(target.pid, { onNote: (line) => notes.push(line) });
  target.kill('SIGSTOP');
  await pause(50);
  const { restored, removed } = await session.stop();
  assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, false, 0]);
  assert.match(notes.join('\n'), /^safepoke’s thread .* does not answer.*attach once more/);
  target.kill('SIGCONT');
  target.say('10');
  await target.expect(/^did 10$/);
  assert.equal((await attach(target.pid).stop()).removed, true);
  assert.deepEqual(mapsOf(target.pid), before);
  await target.finish();
});

test('a program that is started by a link to it goes by the name of the link as well', async () => {
  const link = join(dirname(program), 'linked-program');
  if (!existsSync(link)) symlinkSync(program, link);
  const filter = 'linked-program!step';
  const target = await Target.ready(link, 'wait');
  const listed = listFunctions({ pid: target.pid }, [filter]);
  assert.deepEqual(
    listed.functions.map((f) => f.name),
    ['step'],
  );
  const session = attach(target.pid, { filters: [filter, 'processes*!main'] });
  assert.equal(session.switch([filter], false), 1);
  assert.equal(session.switch([filter], true), 1);
  target.say('10');
  await target.expect(/^did 10$/);
  assert.equal((await session.stop()).calls['step'], 10);
  await target.finish();
  const traced = runTraced(['-F', filter], link, 'spawn');
  assert.equal(traced.status, 0, traced.stderr);
});

for (const isKilled of [false, true]) {
  const how = isKilled ? 'safepoke was killed' : 'the session of its parent was over';
  test(`a child that was forked under trace can be attached to when ${how}, and so can the next, and their parent`, async () => {
    const target = await Target.ready(build('offspring.c'));
    const { pid } = target;
    const before = textOf(pid);
    const filters = ['-F', 'step', '-F', 'work', '-F', 'lives', '-F', 'serve'];
    const running = await Running.attach(pid, ...filters);
    const children: number[] = [];
    try {
      for (let i = 0; i < 2; i++) {
        target.say('fork');
        const { child, wrong } = answered(await target.line());
        assert.equal(wrong, 0);
        children.push(child);
      }
      running.child.kill(isKilled ? 'SIGKILL' : 'SIGINT');
      await running.gone();
      while (!textOf(pid).equals(before)) await pause(2);
      for (const one of [...children, pid]) {
        for (let i = 0; i < 2; i++) {
          const { restored, removed } = await attach(one, { filters: ['step', 'work'] }).stop();
          assert.deepEqual({ restored, removed }, { restored: true, removed: true });
          assert.ok(textOf(one).equals(before));
          assert.doesNotMatch(mapsOf(one).join(), /memfd:safepoke/);
        }
      }
    } finally {
      for (const one of children) process.kill(one, 'SIGINT');
    }
    for (let i = 0; i < 2; i++) {
      target.say('wait');
      await target.expect(/^status=0 wrong=0$/);
    }
    await target.finish();
  });
}
