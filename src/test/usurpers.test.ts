// A child of a traced program may have given up rights that its parent has: it must not be able to tell its parent's threads what to do.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { attach } from '../index.js';
import { checkProgram } from '../inside/check-program.js';
import { readLink } from '../linux/index.js';
import { childrenOf } from './sandboxed.test.support.js';
import { Running, Target, build, endAll, fresh, mapsOf, pause } from './targets.test.support.js';

const NOTHING = 'told=0 code=0 status=0 work=100';

test('a child of a process that is attached to can write nothing that its parent’s threads do', async () => {
  const target = await Target.ready(build('usurps.c'));
  const running = await Running.attach(target.pid, '-F', 'work');
  target.say('fork');
  assert.equal(await target.line(), NOTHING);
  const { summary } = await running.stop();
  assert.deepEqual([summary.calls['work'], summary.restored, summary.removed], [1, true, true]);
  await target.finish();
});

test('a child of a program that is traced from inside can write nothing that its parent’s threads do', async () => {
  const running = Running.run(['--inside', '-F', 'work'], build('usurps.c'));
  while (!running.stdout.includes('ready')) await pause(10);
  running.child.stdin.write('fork\n');
  running.child.stdin.end();
  const { summary, stderr } = await running.ended();
  assert.match(running.stdout, new RegExp(`^${NOTHING}$`, 'm'));
  assert.deepEqual([summary.exit_status, summary.calls['work']], [0, 1], stderr);
});

test('the files that a program shares with safepoke from inside are for their owner only, and not in its hands', async () => {
  const running = Running.run(['--inside', '-F', 'work'], build('usurps.c'));
  while (!running.stdout.includes('ready')) await pause(10);
  const tracer = running.child.pid ?? 0;
  const [program] = childrenOf(tracer);
  const modes = filesOf(tracer).map(([, mode]) => mode & 0o077);
  assert.ok(modes.length >= 2, 'safepoke has its two files no more');
  assert.deepEqual(new Set(modes), new Set([0]));
  assert.deepEqual(filesOf(program), []);
  const environment = readFileSync(`/proc/${program}/environ`, 'latin1');
  assert.match(environment, /LD_PRELOAD=\/proc\/self\/fd\/\d+\0/, 'the program was not given our object');
  running.child.stdin.end();
  assert.equal((await running.ended()).summary.exit_status, 0);
});

/** Memory of ours that a process has open, and its mode. */
function filesOf(pid: number): [string, number][] {
  const folder = `/proc/${pid}/fd`;
  return readdirSync(folder)
    .map((fd) => `${folder}/${fd}`)
    .filter((file) => /memfd:safepoke( |-inside )/.test(readLink(file) ?? ''))
    .map((file) => [file, statSync(file).mode]);
}

test('a program that executes a pipe, or leads to one, does not keep safepoke waiting', () => {
  const pipe = fresh('pipe');
  execFileSync('mkfifo', ['-m', '755', pipe]);
  const script = fresh('script');
  writeFileSync(script, `#!${pipe}\n`, { mode: 0o755 });
  for (const path of [pipe, script])
    assert.throws(() => checkProgram(path), { code: 'NOT_INSIDE', message: /cannot be read/ });
});

test('a child of a program that is traced from inside can be attached to, while its parent’s session goes on and when it is over', async () => {
  const running = Running.run(['--inside', '-F', 'work', '-F', 'lives', '-F', 'step'], build('offspring.c'));
  try {
    running.child.stdin.write('fork\n');
    while (!/child=\d+/.test(running.stdout)) await pause(10);
    const child = Number(/child=(\d+)/.exec(running.stdout)?.[1]);
    assert.deepEqual(childrenOf(childrenOf(running.child.pid ?? 0)[0]), [child]);
    for (let i = 0; i < 2; i++) {
      const session = attach(child, { filters: ['work', 'step'] });
      while (session.status.records === 0) await pause(10);
      const { restored, removed } = await session.stop();
      assert.deepEqual([restored, removed], [true, true]);
      assert.doesNotMatch(mapsOf(child).join(), /memfd:safepoke(?!-inside)/);
    }
    process.kill(child, 'SIGINT');
    running.child.stdin.write('wait\n');
    while (!running.stdout.includes('status=')) await pause(10);
    running.child.stdin.end();
    const { summary, stderr } = await running.ended();
    assert.equal(summary.exit_status, 0, stderr);
    assert.match(running.stdout, /^status=0 wrong=0$/m);
  } finally {
    endAll();
  }
});
