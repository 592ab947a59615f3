// Sessions that are told to end before they have begun, or while somebody keeps them waiting: each has ended soon, and the target is what it was.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  Target,
  build,
  changedBytes,
  folder,
  fresh,
  main,
  mapsOf,
  pause,
  safepoke,
} from './targets.test.support.js';

/** What is promised, and what a machine with other work takes for a process to get to its end. */
const PROMISED_MS = 2000;
const SLACK_MS = 3000;
const NOBODY = 65_534;
/** From the first step of an attach to the last of a detach: the rounds end at the first that is not reached. */
const POINTS = [1, 4, 9, 16, 27, 40, 60, 80, 100, 120, 150, 200, 300];
const STAYS = /stays (mapped|in the process), unused/;
const POINT = /^fault point \d+$/m;

interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
  /** From when it was told to end; undefined: it was not. */
  readonly endMs: number | undefined;
}

/** Waits for its end. `told`: it has been told to end already; else that is when the fault point is reached. */
async function endOf(child: ChildProcess, told?: number): Promise<Ended> {
  let since = told;
  let stderr = '';
  child.stderr?.on('data', (data: Buffer) => {
    stderr += data.toString();
    if (POINT.test(stderr)) since ??= performance.now();
  });
  const late = setTimeout(() => child.kill('SIGKILL'), 60_000);
  const closed = new Promise((resolve) => child.once('close', resolve));
  await new Promise((resolve) => child.once('exit', resolve));
  const endMs = since === undefined ? undefined : performance.now() - since;
  await closed;
  clearTimeout(late);
  return { status: child.exitCode, signal: child.signalCode, stderr, endMs };
}

function begin(pid: number, env: Readonly<Record<string, string>>, ...options: string[]): ChildProcess {
  return spawn(process.execPath, [main, 'attach', '-p', String(pid), ...options], {
    cwd: folder,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
}

function assertInTime({ endMs, stderr, signal }: Ended, what: string): void {
  assert.equal(signal, null, `${what}: ${stderr}`);
  assert.ok(endMs !== undefined && endMs < PROMISED_MS + SLACK_MS, `${what}: ${endMs} ms\n${stderr}`);
  assert.doesNotMatch(stderr, /^\s+at .*:\d+:\d+|internal error/m, what);
}

for (const [way, more] of [
  ['held', []],
  ['entries', ['--entry-only']],
] as const) {
  test(`SIGTERM at each step of attach and detach (${way}) ends it soon, and nothing is left`, async () => {
    const target = await Target.ready(build('busy.c'), '2');
    const before = mapsOf(target.pid);
    let reached = 0;
    for (const point of POINTS) {
      const what = `fault point ${point}`;
      const recording = fresh('recording');
      const ended = await endOf(
        begin(
          target.pid,
          { SAFEPOKE_END_AT: String(point) },
          '-F',
          'mix',
          '-o',
          recording,
          '--duration',
          '50ms',
          ...more,
        ),
      );
      assert.equal(ended.status, 0, `${what}: ${ended.stderr}`);
      assert.equal(changedBytes(target.pid), 0, what);
      // Of a machine that is busy: what there was no time for is said, and a session to come does it.
      if (STAYS.test(ended.stderr))
        safepoke('attach', '-p', String(target.pid), '-F', 'mix', '--duration', '1ms');
      assert.deepEqual(mapsOf(target.pid), before, `${what}: ${ended.stderr}`);
      if (ended.endMs === undefined) break;
      assertInTime(ended, what);
      reached++;
    }
    assert.ok(reached > 5, `only ${reached} fault points`);
    await target.finish();
  });
}

test('SIGTERM ends an attach to a hostile program soon, at whatever step', async () => {
  assert.equal(process.getuid?.(), 0, 'run this as root: sudo npm test');
  const victim = fresh('victim');
  writeFileSync(victim, 'mine', { mode: 0o600 });
  chmodSync(folder, 0o755);
  for (const mode of ['silent', 'done', 'calls', 'threads', 'unmap']) {
    for (const point of [2, 25, 70]) {
      const what = `mode ${mode}, fault point ${point}`;
      const target = spawn(build('hostile.c'), [mode, victim], {
        uid: NOBODY,
        gid: NOBODY,
        cwd: '/',
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      try {
        await new Promise((resolve) => target.stdout.once('data', resolve).once('end', resolve));
        assert.ok(target.pid !== undefined);
        const ended = await endOf(
          begin(target.pid, { SAFEPOKE_END_AT: String(point) }, '--duration', '200ms'),
        );
        if (ended.endMs !== undefined) assertInTime(ended, what);
      } finally {
        target.kill('SIGKILL');
      }
    }
  }
});

test('SIGTERM ends an attach to a program of many functions soon, while it is looked at and changed', async () => {
  for (const ms of [500, 1500, 3000]) {
    const target = new Target(process.execPath, '-e', 'console.log("ready"); process.stdin.resume()');
    await target.expect(/^ready/);
    const before = mapsOf(target.pid).filter((line) => line.includes('/') || line.includes('safepoke'));
    const child = begin(target.pid, {}, '-o', fresh('recording'));
    await pause(ms);
    const since = performance.now();
    child.kill('SIGTERM');
    const ended = await endOf(child, since);
    // Before safepoke has loaded itself, the signal ends it at once.
    if (ended.signal !== 'SIGTERM') {
      assertInTime(ended, `after ${ms} ms`);
      assert.equal(ended.status, 0, ended.stderr);
    }
    if (STAYS.test(ended.stderr)) safepoke('attach', '-p', String(target.pid), '--duration', '1ms');
    const after = mapsOf(target.pid).filter((line) => line.includes('/') || line.includes('safepoke'));
    assert.deepEqual(after, before, `after ${ms} ms: ${ended.stderr}`);
    assert.equal(changedBytes(target.pid), 0, `after ${ms} ms`);
    await target.finish();
  }
});

test('a program that was to be started is not, where a signal comes first, and the status is as if the signal had ended it', async () => {
  for (const point of [1, 6, 15]) {
    const marker = fresh('marker');
    const child = spawn(
      process.execPath,
      [main, 'run', '-F', 'main', '-o', fresh('recording'), '--', build('fib.c'), '3', marker],
      {
        env: { ...process.env, SAFEPOKE_END_AT: String(point) },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    let stdout = '';
    child.stdout.on('data', (data: Buffer) => (stdout += data.toString()));
    const ended = await endOf(child);
    assertInTime(ended, `fault point ${point}`);
    assert.equal(ended.status, 128 + 15, ended.stderr);
    assert.equal(stdout, '');
  }
});

/** A pipe and a socket, blocking, inherited by safepoke as descriptor 5, whose reader reads nothing. */
const HOLDER = `
import os, socket, subprocess, sys
kind = sys.argv[1]
if kind == 'pipe': r, w = os.pipe()
else:
    a, b = socket.socketpair()
    r, w = a.detach(), b.detach()
os.dup2(w, 5)
os.set_inheritable(5, True)
flags = __import__('fcntl').fcntl(5, 3)
child = subprocess.Popen(sys.argv[2:], pass_fds=[5])
print(child.pid, flush=True)
status = child.wait()
print(status, __import__('fcntl').fcntl(5, 3) == flags, flush=True)
`;

for (const kind of ['pipe', 'socket']) {
  for (const what of ['-o', '--summary']) {
    test(`SIGTERM ends a session whose ${what} goes to a ${kind} that nobody reads`, async () => {
      const target = await Target.ready(build('busy.c'), '2');
      const before = mapsOf(target.pid);
      const outputs = what === '-o' ? ['-o', '/dev/fd/5'] : ['-o', '/dev/null', '--summary', '/dev/fd/5'];
      const more = what === '-o' ? ['-F', 'mix'] : [];
      const words = [process.execPath, main, 'attach', '-p', String(target.pid), ...more, ...outputs];
      const holder = new Target('python3', '-c', HOLDER, kind, ...words);
      const pid = Number(await holder.line());
      while (changedBytes(target.pid) === 0) await pause(5);
      // As much as it holds has been written when it is told to end; or it has not: both must do.
      await pause(300);
      const since = performance.now();
      process.kill(pid, 'SIGTERM');
      const [status, isSame] = (await holder.line()).split(' ');
      assert.ok(performance.now() - since < PROMISED_MS + SLACK_MS);
      assert.equal(isSame, 'True', 'the flags of the description that is shared have changed');
      assert.equal(status, what === '-o' ? '1' : '0', holder.stderr);
      if (what === '-o')
        assert.match(
          holder.stderr,
          /^safepoke: cannot write \/dev\/fd\/5: its reader takes nothing; [^\n]*\n$/m,
        );
      assert.equal(changedBytes(target.pid), 0);
      assert.deepEqual(mapsOf(target.pid), before);
      await holder.finish();
      await target.finish();
    });
  }
}
