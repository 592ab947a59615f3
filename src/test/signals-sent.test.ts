// Signals that are sent to safepoke itself: each that would end it ends its session first, and none opens Node's inspector.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { test } from 'node:test';
import { Running, Target, build, changedBytes, folder, main, mapsOf, pause } from './targets.test.support.js';

const { signals } = constants;
const LAST_SIGNAL = 64;
/** Not to be caught; V8's own; ignored by Node; stopping; ignored by default. And SIGUSR1. */
const NOT_ENDING: ReadonlySet<number> = new Set([
  ...[signals.SIGKILL, signals.SIGSTOP],
  signals.SIGSEGV,
  ...[signals.SIGPIPE, signals.SIGXFSZ],
  ...[signals.SIGTSTP, signals.SIGTTIN, signals.SIGTTOU],
  ...[signals.SIGCHLD, signals.SIGCONT, signals.SIGURG, signals.SIGWINCH],
  signals.SIGUSR1,
]);
const MEANT_TO_END: ReadonlySet<number> = new Set([signals.SIGINT, signals.SIGTERM, signals.SIGHUP]);
const BOUND_MS = 2000;

/** By number: Node has names for none above 31. */
function send(pid: number, signal: number): void {
  process.kill(pid, signal);
}

test('every signal that ends a process ends the session first, and the target is what it was', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const before = mapsOf(target.pid);
  for (let signal = 1; signal <= LAST_SIGNAL; signal++) {
    if (NOT_ENDING.has(signal)) continue;
    const running = await Running.attach(target.pid, '-F', 'mix');
    const { pid } = running.child;
    assert.ok(pid !== undefined);
    send(pid, signal);
    const { status, summary, stderr } = await running.ended();
    assert.equal(status, MEANT_TO_END.has(signal) ? 0 : 128 + signal, `signal ${signal}: ${stderr}`);
    assert.equal(summary.restored, true, `signal ${signal}`);
    assert.equal(changedBytes(target.pid), 0, `signal ${signal}`);
    assert.deepEqual(mapsOf(target.pid), before, `signal ${signal}`);
  }
  await target.finish();
});

test('SIGUSR1 tells what the session does, and the session goes on', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const running = await Running.attach(target.pid, '-F', 'mix');
  const { pid } = running.child;
  assert.ok(pid !== undefined);
  send(pid, signals.SIGUSR1);
  while (!running.stderr.includes('\n')) await pause(5);
  assert.match(
    running.stderr,
    /^safepoke: process \d+ is traced since \d{4}-\S+: 1 function \(mix\), \d+ threads?, [\d,]+ records?, 0 dropped\n$/,
  );
  assert.deepEqual(listening(pid), []);
  assert.equal((await running.stop()).status, 0);
  await target.finish();
});

/** Sockets of a process on which it listens for whoever reaches the machine. */
function listening(pid: number): string[] {
  const own = readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
    } catch {
      return [];
    }
  });
  const LISTEN = '0A';
  return ['tcp', 'tcp6'].flatMap((table) =>
    readFileSync(`/proc/${pid}/net/${table}`, 'utf8')
      .split('\n')
      .slice(1)
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields[3] === LISTEN && own.includes(`socket:[${fields[9]}]`))
      .map((fields) => fields[1]),
  );
}

test('SIGUSR1 opens no inspector, however early it comes', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  let survived = 0;
  for (let ms = 0; ms < 140; ms += 7) {
    const child = spawn(
      process.execPath,
      [main, 'attach', '-p', String(target.pid), '-F', 'mix', '--duration', '1m'],
      {
        cwd: folder,
        stdio: ['ignore', 'ignore', 'pipe'],
      },
    );
    const gone = new Promise((resolve) => child.once('close', resolve));
    assert.ok(child.pid !== undefined);
    await pause(ms);
    send(child.pid, signals.SIGUSR1);
    // Before Node is ready at all the signal ends it. Else the session begins, and nobody is listened for.
    while (child.exitCode === null && child.signalCode === null && changedBytes(target.pid) === 0)
      await pause(5);
    if (child.exitCode === null && child.signalCode === null) {
      survived++;
      assert.deepEqual(listening(child.pid), [], `after ${ms} ms`);
    }
    child.kill('SIGTERM');
    await gone;
    while (changedBytes(target.pid) !== 0) await pause(5);
  }
  assert.ok(survived > 0);
  await target.finish();
});

test('SIGTERM ends a session whose output nobody reads', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const child = spawn(process.execPath, [main, 'attach', '-p', String(target.pid), '-F', 'mix'], {
    cwd: folder,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const gone = new Promise((resolve) => child.once('exit', resolve));
  // As much as the pipe holds has come, and safepoke waits for somebody to take it.
  child.stdout.pause();
  while (changedBytes(target.pid) === 0) await pause(5);
  await pause(500);
  const since = performance.now();
  child.kill('SIGTERM');
  await gone;
  assert.ok(performance.now() - since < BOUND_MS + 1000);
  assert.equal(child.signalCode, null);
  assert.equal(changedBytes(target.pid), 0);
  child.stdout.destroy();
  await target.finish();
});
