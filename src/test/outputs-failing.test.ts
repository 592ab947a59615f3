// Outputs that cannot be written: each such write ends its session in order, with the target restored, one line and status 1.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  Target,
  build,
  changedBytes,
  fresh,
  main,
  mapsOf,
  readSummary,
  safepoke,
  type Ran,
} from './targets.test.support.js';

const TIMEOUT_MS = 60_000;
/** A number that nobody uses. */
const GIVEN = 40;
/** Leads descriptor argv[1] to a terminal whose other end has gone: each write of it fails (EIO). Then executes the rest. */
const HUNG_UP = `
import os, sys
master, slave = os.openpty()
os.close(master)
os.dup2(slave, int(sys.argv[1]), inheritable=True)
os.execvp(sys.argv[2], sys.argv[2:])`;

function spawnPlain(command: string, ...args: string[]): Ran {
  return spawnSync(command, args, { encoding: 'utf8', timeout: TIMEOUT_MS, killSignal: 'SIGKILL' });
}

/** A process, and a check that it is what it was. */
async function begin(): Promise<{ session: string[]; check: (what: string) => void; target: Target }> {
  const target = await Target.ready(build('busy.c'), '2');
  const before = mapsOf(target.pid);
  const check = (what: string): void => {
    assert.equal(changedBytes(target.pid), 0, what);
    assert.deepEqual(mapsOf(target.pid), before, what);
  };
  const options = ['-p', String(target.pid), '-F', 'mix', '--duration', '200ms'];
  return { session: [process.execPath, main, 'attach', ...options], check, target };
}

function assertRefused({ status, stderr }: Ran, why: RegExp, what: string): void {
  assert.equal(status, 1, `${what}: ${stderr}`);
  const lines = stderr.trimEnd().split('\n');
  // What the session has done may be told before.
  assert.match(lines.at(-1) ?? '', why, what);
  assert.equal(lines.filter((line) => line.startsWith('safepoke: cannot')).length, 1, stderr);
  assert.doesNotMatch(stderr, /^ +at |internal error/m, what);
}

test('a terminal that has hung up (EIO) as any output ends the session in order', async () => {
  const { session, check, target } = await begin();
  const file = `/dev/fd/${GIVEN}`;
  const cases: readonly (readonly [number, RegExp, ...string[]])[] = [
    [1, /cannot write to standard output: EIO/],
    [1, /cannot write to standard output: EIO/, '--format', 'jsonl'],
    [GIVEN, /cannot write \/dev\/fd\/40: EIO/, '-o', file],
    [GIVEN, /cannot write \/dev\/fd\/40: EIO/, '-o', fresh('recording'), '--summary', file],
  ];
  for (const [fd, why, ...options] of cases) {
    const what = `${fd} ${options.join(' ')}`;
    const ran = spawnPlain('python3', '-c', HUNG_UP, String(fd), ...session, ...options);
    assertRefused(ran, why, what);
    check(what);
  }
  // Where nobody can be told anything, the work itself goes on.
  const recording = fresh('recording');
  assert.equal(spawnPlain('python3', '-c', HUNG_UP, '2', ...session, '-o', recording).status, 0);
  assert.equal(safepoke('report', recording).status, 0);
  check('stderr');
  await target.finish();
});

test('streams that are closed are led nowhere, and no file gets what was meant for them', async () => {
  const { session, check, target } = await begin();
  for (const closed of ['>&-', '2>&-', '<&- >&- 2>&-']) {
    const there = fresh('folder');
    mkdirSync(there);
    const [recording, summary] = [join(there, 'recording'), join(there, 'summary')];
    const words = [...session, '-o', recording, '--summary', summary];
    const ran = spawnPlain('sh', '-c', `exec "$@" ${closed}`, 'sh', ...words);
    assert.equal(ran.status, 0, `${closed}: ${ran.stderr}`);
    assert.equal(readSummary(summary).restored, true);
    assert.equal(safepoke('report', recording).status, 0, closed);
    assert.deepEqual(readdirSync(there), ['recording', 'summary']);
    check(closed);
  }
  await target.finish();
});

test('a descriptor that nobody has given us to write to (EBADF) is refused at once, be it one of Node’s own', async () => {
  const { session, check, target } = await begin();
  // Both ends of a pipe of its own; of one that it was given it has one.
  const list = `const fs = require('fs');
    const link = (fd) => { try { return fs.readlinkSync('/proc/self/fd/' + fd); } catch { return ''; } };
    const files = fs.readdirSync('/proc/self/fd').filter((fd) => fd > 2).map((fd) => [fd, link(fd)]);
    const isTwice = (name) => files.filter(([, other]) => other === name).length === 2;
    const own = files.filter(([, name]) => name.startsWith('anon_inode:') || (name.startsWith('pipe:') && isTwice(name)));
    console.log(own.map(([fd]) => fd).join(' '))`;
  const nodes = execFileSync(process.execPath, ['-e', list], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const numbers = nodes.trim().split(' ');
  assert.ok(numbers.length >= 3, nodes);
  const why = /no such descriptor is open for writing/;
  for (const number of [...numbers, '99']) {
    const file = `/dev/fd/${number}`;
    assertRefused(spawnPlain(session[0], ...session.slice(1), '-o', file), why, file);
  }
  const [first] = numbers;
  const recording = fresh('recording');
  const summary = ['-o', recording, '--summary', `/dev/fd/${first}`];
  assertRefused(spawnPlain(session[0], ...session.slice(1), ...summary), why, 'summary');
  // sh takes one digit.
  const readOnly = ['-c', 'exec "$@" 9< /dev/zero', 'sh', ...session, '-o', '/proc/self/fd/9'];
  assertRefused(spawnPlain('sh', ...readOnly), why, 'read only');
  assert.equal(existsSync(recording), false);
  check('EBADF');
  await target.finish();
});
