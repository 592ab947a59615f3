// What a session needs of the machine and does not get any more: descriptors, room on a disk. The target is put right all the same.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  Running,
  Target,
  build,
  changedBytes,
  fresh,
  main,
  mapsOf,
  pause,
  safepoke,
} from './targets.test.support.js';

/** More than Node has open itself from its start on, and fewer than a session has. */
const FEW = 24;
const LESS_ROOM = '64k';

for (const [what, limit] of [
  ['and may be lifted again', `${FEW}:`],
  ['for good', `${FEW}:${FEW}`],
] as const) {
  test(`a session whose limit on descriptors is lowered meanwhile, ${what}, puts the target right and tells its summary`, async () => {
    const target = await Target.ready(build('busy.c'), '2');
    const before = mapsOf(target.pid);
    const running = await Running.attach(target.pid, '-F', 'mix');
    await pause(100);
    execFileSync('prlimit', ['--pid', String(running.child.pid), `--nofile=${limit}`]);
    await pause(200);
    const { status, stderr, summary } = await running.stop('SIGTERM');
    assert.equal(status, 0, stderr);
    assert.equal(summary.restored && summary.removed, true, stderr);
    assert.equal(changedBytes(target.pid), 0);
    assert.deepEqual(mapsOf(target.pid), before, stderr);
    await target.finish();
  });
}

test('where nothing can be opened any more, the functions have their own code back, and the next session takes away the rest', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const before = mapsOf(target.pid);
  const running = await Running.attach(target.pid, '-F', 'mix');
  await pause(100);
  execFileSync('prlimit', ['--pid', String(running.child.pid), '--nofile=3:3']);
  running.child.kill('SIGTERM');
  await running.gone();
  assert.ok(running.child.exitCode !== null, 'it was ended by a signal');
  assert.doesNotMatch(running.stderr, /^\s+at .*:\d+:\d+|internal error/m);
  while (changedBytes(target.pid) > 0) await pause(10);
  const next = safepoke('attach', '-p', String(target.pid), '-F', 'mix', '--duration', '50ms');
  assert.equal(next.status, 0, next.stderr);
  assert.deepEqual(mapsOf(target.pid), before);
  await target.finish();
});

test('a file system that is full ends each output with one line and status 1, and the target is what it was', async () => {
  assert.equal(process.getuid?.(), 0, 'run this as root: sudo npm test');
  const target = await Target.ready(build('busy.c'), '2');
  const before = mapsOf(target.pid);
  const disk = fresh('disk');
  mkdirSync(disk);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${LESS_ROOM}`, 'tmpfs', disk]);
  try {
    const session = [main, 'attach', '-p', String(target.pid), '-F', 'mix', '--duration', '2s'];
    const recorded = spawnSync(process.execPath, [...session, '-o', join(disk, 'r')], { encoding: 'utf8' });
    assert.equal(recorded.status, 1, recorded.stderr);
    assert.match(recorded.stderr, /^safepoke: cannot write \S+: the disk is full; [^\n]*$/m);
    assert.equal(changedBytes(target.pid), 0);
    assert.deepEqual(mapsOf(target.pid), before);
    // What was written of it fills the disk.
    const summed = spawnSync(
      process.execPath,
      [...session, '-o', fresh('recording'), '--summary', join(disk, 's')],
      { encoding: 'utf8' },
    );
    assert.equal(summed.status, 1, summed.stderr);
    assert.match(summed.stderr, /^safepoke: cannot write \S+: the disk is full; [^\n]*$/m);
    assert.deepEqual(mapsOf(target.pid), before);
    const printed = spawnSync('sh', ['-c', 'exec "$0" "$@" >> "$OUT"', process.execPath, ...session], {
      encoding: 'utf8',
      env: { ...process.env, OUT: join(disk, 'r') },
    });
    assert.equal(printed.status, 1, printed.stderr);
    assert.match(printed.stderr, /^safepoke: cannot write to standard output: the disk is full; [^\n]*$/m);
    assert.deepEqual(mapsOf(target.pid), before);
    assert.equal(readFileSync(`/proc/${target.pid}/comm`, 'utf8'), 'busy.c\n');
  } finally {
    execFileSync('umount', [disk]);
  }
  await target.finish();
});
