import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { test } from 'node:test';
import { attach } from '../index.js';
import {
  Running,
  Target,
  build,
  changedBytes,
  fresh,
  main,
  pause,
  recordedMs,
  safepoke,
  statusField,
} from './targets.test.support.js';

/** All that a trace must leave as it was: maps but for the heap's end, descriptors, signals, tracer. */
function stateOf(pid: number): unknown {
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .filter((line) => !line.endsWith('[heap]'));
  const files = readdirSync(`/proc/${pid}/fd`).map((fd) => `${fd} ${readlinkSync(`/proc/${pid}/fd/${fd}`)}`);
  const threads = readdirSync(`/proc/${pid}/task`).map((tid) =>
    ['TracerPid', 'SigPnd', 'ShdPnd', 'SigBlk', 'SigIgn', 'SigCgt', 'Seccomp'].map((name) =>
      statusField(pid, name, tid),
    ),
  );
  return { maps, files, threads };
}

async function fine(target: Target): Promise<void> {
  target.say('go on');
  await target.expect(/^fine$/);
}

test('a program whose threads end one by one ends as it would alone, during a session and after it', () => {
  const program = build('ends-last.c', '-pthread');
  for (const threads of [[], ['two']]) {
    const { status } = spawnSync(program, threads);
    assert.equal(status, 7);
    for (const way of [[], ['--inside']]) {
      const traced = safepoke('run', ...way, '-F', 'work', '-o', fresh('spk'), '--', program, ...threads);
      assert.equal(traced.status, status, traced.stderr);
      assert.match(traced.stderr, /(50|100) calls of 1 traced function/);
      const short = ['run', ...way, '-F', 'work', '--duration', '10ms', '-o', fresh('spk'), '--', program];
      assert.equal(safepoke(...short, ...threads).status, status);
    }
  }
});

/** Timers may come so much early, as they count whole milliseconds. */
const TIMER_MS = 2;

test('--duration counts from when tracing has begun', async () => {
  const target = await Target.ready(build('busy.c'), '3');
  const recording = fresh('recording');
  const limited = safepoke(
    'attach',
    '-p',
    String(target.pid),
    '-F',
    'mix',
    '--duration',
    '300ms',
    '-o',
    recording,
  );
  assert.equal(limited.status, 0, limited.stderr);
  assert.ok(recordedMs(recording) >= 300 - TIMER_MS);
  await fine(target);
  await target.finish();
});

test('after every way to end a trace the target is as it was', async () => {
  const target = await Target.ready(build('busy.c'), '3');
  await fine(target);
  const before = stateOf(target.pid);
  const check = async (): Promise<void> => {
    assert.deepEqual(stateOf(target.pid), before);
    assert.equal(changedBytes(target.pid), 0);
    for (const tid of readdirSync(`/proc/${target.pid}/task`))
      assert.doesNotMatch(statusField(target.pid, 'State', tid), /^[tT]/);
    await fine(target);
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    const running = await Running.attach(target.pid, '-F', 'mix');
    await fine(target);
    const { status, summary } = await running.stop(signal);
    assert.equal(status, 0);
    assert.ok(summary.restored && summary.removed && (summary.calls['mix'] ?? 0) > 0);
    await check();
  }
  const limited = safepoke(
    'attach',
    '-p',
    String(target.pid),
    '-F',
    'mix',
    '--duration',
    '100ms',
    '--format',
    'jsonl',
  );
  assert.equal(limited.status, 0, limited.stderr);
  assert.match(limited.stdout, /"function":"mix"/);
  await check();
  const script = `"$0" "$1" attach -p "$2" | head -n 1; echo "\${PIPESTATUS[0]}"`;
  const piped = spawnSync('bash', ['-c', script, process.execPath, main, String(target.pid)], {
    encoding: 'utf8',
  });
  assert.match(piped.stdout, /\n0\n$/, piped.stderr);
  await check();
  await target.finish();
});

test('a signal to safepoke run ends the program too', async () => {
  for (const [signal, status] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    const running = Running.run(['-F', 'fib'], build('busy.c'), '2');
    while (!running.stdout.includes('ready')) await pause(10);
    const ended = await running.stop(signal);
    assert.equal(ended.status, status, ended.stderr);
  }
});

test('attached to and left a hundred times under load, the target stays fine', async () => {
  const target = await Target.ready(build('busy.c'), '4');
  const before = stateOf(target.pid);
  for (let i = 0; i < 100; i++) {
    const session = attach(target.pid, { bufferBytes: 1 << 16, filters: i % 2 ? [] : ['fib'] });
    if (i % 10 === 0) await pause(5);
    const summary = await session.stop();
    assert.ok(summary.restored);
    assert.ok(summary.removed);
  }
  assert.deepEqual(stateOf(target.pid), before);
  assert.equal(changedBytes(target.pid), 0);
  await fine(target);
  await target.finish();
});

test('threads that wait in system calls go on waiting', async () => {
  const target = await Target.ready(build('blocked.c'));
  for (let i = 0; i < 10; i++) {
    const session = attach(target.pid, { bufferBytes: 1 << 16 });
    await session.stop();
  }
  target.say('10');
  await target.expect(/^did 11$/);
  await target.finish();
});

test('a target survives the sudden death of safepoke', async () => {
  const target = await Target.ready(build('busy.c'), '3');
  const running = await Running.attach(target.pid, '--buffer', '64K');
  running.child.kill('SIGKILL');
  await running.gone();
  for (let i = 0; i < 5; i++) await fine(target);
  await target.finish();
});

test('a target with a limit on the size of files is traced', async () => {
  const target = await Target.ready('bash', '-c', `ulimit -f 1000; exec ${build('busy.c')} 1`);
  const session = attach(target.pid, { filters: ['mix'] });
  await fine(target);
  const summary = await session.stop();
  assert.ok((summary.calls['mix'] ?? 0) > 0);
  await target.finish();
});

test('a program that is run gets the descriptors, arguments and variables that safepoke was given, whatever their encoding', () => {
  const program = `sh -c 'cat <&5; cat <&6; printf "%s|" "$@" "$X" | od -An -tx1' sh $'b\\xfe' $'\\xfe' ''`;
  const surroundings = (command: string): string => `
    exec 5<<<five 6< <(echo six)
    X=$'a\\xff\\xfeb' ${command}`;
  const ran = (...before: string[]): string => {
    const { status, stdout, stderr } = spawnSync(
      'bash',
      ['-c', surroundings([...before, program].join(' '))],
      {
        encoding: 'utf8',
      },
    );
    assert.equal(status, 0, stderr);
    return stdout;
  };
  const alone = ran();
  assert.match(alone, /^five\nsix\n/);
  const ours = [process.execPath, main, 'run', '-F', "'libc.so.6!write'", '-o', fresh('recording')];
  assert.equal(ran(...ours, '--'), alone);
  assert.equal(ran(...ours, '--inside', '--'), alone);
});
