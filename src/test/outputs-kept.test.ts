// What safepoke writes, and what it must not: files of others, what is there already, a disk that is full, a wish that was misspelt.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { attach, isSafepokeError, listFunctions, run } from '../index.js';
import { Target, build, changedBytes, fresh, main, mapsOf, safepoke } from './targets.test.support.js';

const MODE = 0o777;
const OWNER_ONLY = 0o600;
const NOBODY = 65_534;

/** A folder of its own, so that nothing is left in it unseen. */
function ownFolder(): string {
  const path = fresh('folder');
  mkdirSync(path);
  return path;
}

test('an attach that is refused leaves the file of -o and of --summary as it was, and nothing beside it', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const there = ownFolder();
  const [recording, summary] = [join(there, 'r'), join(there, 's')];
  // One that may be replaced: else it would be refused for its own sake.
  const old = 'SAFEPOKE of yesterday';
  for (const options of [
    ['-p', '999999'],
    ['-p', String(target.pid), '-F', 'nosuchfunction'],
    ['-p', String(target.pid), '-F', '/(/'],
  ]) {
    writeFileSync(recording, old);
    writeFileSync(summary, 'old');
    const { status } = safepoke('attach', ...options, '-o', recording, '--summary', summary);
    assert.notEqual(status, 0);
    assert.equal(readFileSync(recording, 'utf8'), old);
    assert.equal(readFileSync(summary, 'utf8'), 'old');
    assert.deepEqual(readdirSync(there), ['r', 's']);
  }
  await target.finish();
});

test('outputs are for their owner only, replace what they may, and refuse what they may not', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const there = ownFolder();
  const path = (name: string): string => join(there, name);
  const record = (name: string, summary = path('summary')) =>
    safepoke(
      ...['attach', '-p', String(target.pid), '-F', 'mix', '--duration', '100ms'],
      ...['-o', path(name), '--summary', summary],
    );
  assert.equal(record('recording').status, 0);
  assert.equal(record('recording').status, 0);
  assert.equal(safepoke('export', path('recording'), '-f', 'folded', '-o', path('folded')).status, 0);
  assert.equal(safepoke('export', path('recording'), '-f', 'folded', '-o', path('folded')).status, 0);
  for (const name of ['recording', 'summary', 'folded'])
    assert.equal(lstatSync(path(name)).mode & MODE, OWNER_ONLY, name);
  writeFileSync(path('precious'), 'mine');
  symlinkSync(path('precious'), path('link'));
  symlinkSync(path('nowhere'), path('dangling'));
  writeFileSync(path('foreign'), '');
  chmodSync(path('foreign'), MODE);
  chownSync(path('foreign'), NOBODY, NOBODY);
  const names = readdirSync(there);
  for (const name of ['precious', 'link', 'dangling', 'foreign', '.']) {
    const { status, stderr } = record(name);
    assert.equal(status, 1, name);
    assert.match(
      stderr,
      /^safepoke: cannot write .*(not a recording|is a link|another user|a directory)[^\n]*\n$/,
      name,
    );
  }
  for (const name of ['link', 'dangling', 'foreign', '.'])
    assert.equal(record('recording', path(name)).status, 1, name);
  // A text in a recording's place would be the end of it.
  writeFileSync(path('yesterday'), readFileSync(path('recording')));
  assert.equal(record('recording', path('yesterday')).status, 1);
  assert.equal(safepoke('export', path('recording'), '-f', 'folded', '-o', path('yesterday')).status, 1);
  assert.equal(safepoke('report', path('yesterday')).status, 0);
  rmSync(path('yesterday'));
  assert.equal(readFileSync(path('precious'), 'utf8'), 'mine');
  assert.deepEqual(readdirSync(there), names);
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

test('a full disk ends each command with one line and status 1, and the target is what it was', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const pid = String(target.pid);
  const before = mapsOf(target.pid);
  const recording = fresh('recording');
  const session = ['attach', '-p', pid, '-F', 'mix', '--duration', '300ms'];
  assert.equal(safepoke(...session, '-o', recording).status, 0);
  const toStdout: readonly (readonly string[])[] = [
    ['--version'],
    ['--help'],
    session,
    [...session, '--format', 'jsonl'],
    ['run', '-F', 'main', '--', build('fib.c'), '5'],
    ['functions', '-p', pid],
    ['graph', recording],
    ['report', recording],
    ['export', recording, '-f', 'chrome'],
    ['check', '--list'],
    ['doctor'],
  ];
  for (const command of toStdout) {
    const ran = spawnSync('sh', ['-c', 'exec "$@" > /dev/full', 'sh', process.execPath, main, ...command], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    assert.equal(ran.status, 1, `${command.join(' ')}: ${ran.stderr}`);
    assert.match(ran.stderr, /cannot write to standard output: the disk is full/, command.join(' '));
    assert.doesNotMatch(ran.stderr, /^ +at /m, command.join(' '));
    assert.equal(changedBytes(target.pid), 0, command.join(' '));
  }
  for (const options of [
    ['-o', '/dev/full'],
    ['-o', recording, '--summary', '/dev/full'],
  ]) {
    const { status, stderr } = safepoke(...session, ...options);
    assert.equal(status, 1, stderr);
    assert.match(stderr, /cannot write \/dev\/full: the disk is full/);
    assert.equal(changedBytes(target.pid), 0);
  }
  // Where nobody can be told anything, the work itself goes on.
  const mute = spawnSync(
    'sh',
    ['-c', 'exec "$@" 2> /dev/full', 'sh', process.execPath, main, ...session, '-o', recording],
    { timeout: 60_000 },
  );
  assert.equal(mute.status, 0);
  assert.deepEqual(mapsOf(target.pid), before);
  await target.finish();
});

test('with few descriptors a session works, or is refused, and the target is what it was', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const before = mapsOf(target.pid);
  const statuses = new Set<number | null>();
  for (const limit of [24, 48, 64, 68, 72, 76, 80, 100]) {
    const words = [
      process.execPath,
      main,
      'attach',
      '-p',
      String(target.pid),
      '-F',
      'mix',
      '--duration',
      '50ms',
    ];
    const ran = spawnSync(
      'sh',
      [
        ...['-c', `ulimit -n ${limit}; exec "$@"`, 'sh', ...words],
        ...['-o', fresh('recording'), '--summary', fresh('summary')],
      ],
      {
        encoding: 'utf8',
        timeout: 60_000,
      },
    );
    statuses.add(ran.status);
    assert.doesNotMatch(ran.stderr, /^ +at /m);
    if (ran.status !== 0) {
      assert.equal(ran.status, 1, `${limit}: ${ran.stderr}`);
      assert.match(ran.stderr, /^safepoke: cannot [^\n]*\n$/, String(limit));
    }
    assert.equal(changedBytes(target.pid), 0, `${limit}: ${ran.stderr}`);
    assert.deepEqual(mapsOf(target.pid), before, `${limit}: ${ran.stderr}`);
  }
  assert.ok(statuses.has(0));
  await target.finish();
});

test('what is given twice, misspelt, or matches nothing beside what does is told by name', () => {
  const program = build('fib.c');
  const twice = safepoke('attach', '-p', '1', '-p', '2');
  assert.equal(twice.status, 2);
  assert.match(twice.stderr, /cannot take -p, --pid <pid> more than once/);
  assert.equal(safepoke('graph', '-D', '1', '-D', '2', 'file').status, 2);
  assert.equal(safepoke('run', '--way', 'held', '--way', 'auto', '--', program, '3').status, 2);
  const beside = safepoke('run', '-F', 'fib', '-F', 'fibb', '-o', fresh('recording'), '--', program, '3');
  assert.equal(beside.status, 0);
  assert.match(beside.stderr, /warning: "fibb" matches no function of \S+; the nearest are .*fib/);
  assert.match(
    safepoke('functions', '-F', 'fib', '-F', 'fibb', program).stderr,
    /"fibb" matches no function/,
  );
  const codeOf = (act: () => unknown): string => {
    try {
      act();
    } catch (error) {
      if (isSafepokeError(error)) return `${error.code} ${error.message}`;
      throw error;
    }
    return 'nothing';
  };
  // As a program in JavaScript would: TypeScript refuses it itself.
  const wrong = (options: unknown): never => options as never;
  assert.match(
    codeOf(() => attach(1, wrong({ filter: ['a'] }))),
    /^UNKNOWN_OPTION .*nearest is "filters"/,
  );
  assert.match(
    codeOf(() => run(['true'], wrong({ readonlytext: true }))),
    /^UNKNOWN_OPTION .*"readOnlyText"/,
  );
  assert.match(
    codeOf(() => attach(1, wrong({ filters: 'a' }))),
    /^BAD_OPTION .*array of strings/,
  );
  assert.match(
    codeOf(() => attach(1, wrong({ depth: '3' }))),
    /^BAD_OPTION .*a number/,
  );
  assert.match(
    codeOf(() => attach(1, wrong([]))),
    /^BAD_OPTION/,
  );
  assert.match(
    codeOf(() => listFunctions({ file: program }, wrong('fib'))),
    /^BAD_OPTION/,
  );
  assert.match(
    codeOf(() => listFunctions(wrong({ pidd: 3 }))),
    /^UNKNOWN_OPTION .*"pid"/,
  );
});
