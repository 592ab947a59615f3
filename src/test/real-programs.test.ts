// Programs that run from beginning to end under trace: nobody who sees their output can tell that they were traced.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { SCRIPTS, runsTheSame, temporaryFolder, totalCalls } from './real.test.support.js';
import { safepoke } from './targets.test.support.js';

/** Debian's, whatever else may stand in PATH under that name. */
const PYTHON = '/usr/bin/python3';
const EVERYTHING_OF_LIBC = ['libc.so.6!*', 'ld-linux-x86-64.so.2!*'];

for (const filters of [['*'], EVERYTHING_OF_LIBC, ['*!*']]) {
  test(`python runs threads, exceptions, handlers and children alike with ${filters.join(' and ')} traced`, async (t) => {
    const summary = await runsTheSame(t, filters, [PYTHON, join(SCRIPTS, 'python.py')]);
    assert.ok(summary.patched > 1000, `${summary.patched} functions`);
    assert.ok(totalCalls(summary) > 10_000);
    assert.equal(summary.exit_status, 9);
  });
}

for (const filters of [['libsqlite3.so.0!*'], EVERYTHING_OF_LIBC]) {
  test(`sqlite3 answers alike with ${filters.join(' and ')} traced`, async (t) => {
    const command = ['sqlite3', ':memory:', `.read ${join(SCRIPTS, 'query.sql')}`];
    const summary = await runsTheSame(t, filters, command);
    assert.ok(summary.patched > 1000, `${summary.patched} functions`);
    assert.ok(totalCalls(summary) > 1000);
  });
}

test('ls lists alike with every function of every module traced', async (t) => {
  const summary = await runsTheSame(t, ['*!*'], ['ls', '-la', '/etc', '/usr']);
  assert.ok(totalCalls(summary) > 100);
});

for (const filters of [['uv_*', 'node::*'], ['*'], EVERYTHING_OF_LIBC]) {
  test(`node computes, collects garbage and works in threads alike with ${filters.join(' and ')} traced`, async (t) => {
    const summary = await runsTheSame(t, filters, [process.execPath, join(SCRIPTS, 'node.cjs')]);
    assert.ok(totalCalls(summary) > 100);
    assert.equal(summary.exit_status, 0);
  });
}

test('C++ exceptions pass alike through traced frames of the program and of its libraries', async (t) => {
  const program = join(temporaryFolder(t), 'exceptions');
  execFileSync('g++', [
    ...['-O1', '-g', '-std=c++17', '-pthread', '-fno-inline-small-functions'],
    ...['-o', program, join(SCRIPTS, 'exceptions.cc')],
  ]);
  for (const filters of [['*'], ['libstdc++.so.6!*'], ['*!*']]) {
    const summary = await runsTheSame(t, filters, [program]);
    assert.equal(summary.exit_status, 7);
    if (filters[0] === '*') assert.ok(totalCalls(summary) > 5000);
  }
});

test('a stripped program without a call to show: the reader is told to name its libraries', () => {
  const ran = safepoke('run', '--', 'ls', '/');
  assert.equal(ran.status, 0, ran.stderr);
  assert.match(ran.stderr, /0 calls of \d+ traced functions[^]*-F 'libc\.so\.6!\*'/);
});
