// Libraries under trace: all of the C library in programs that live on it, and programs that have no other symbols.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { readThreads } from '../linux/index.js';
import {
  SCRIPTS,
  assertCodeIsThatOfFiles,
  attachFor,
  codeMappings,
  isRunning,
  runsTheSame,
  start,
  temporaryFolder,
  totalCalls,
  until,
} from './real.test.support.js';

test('threads allocate, copy, format and sort rightly while libc is traced and no longer traced', async (t) => {
  const program = join(temporaryFolder(t), 'allocations');
  execFileSync('gcc', ['-O2', '-pthread', '-o', program, join(SCRIPTS, 'allocations.c')]);
  const { pid } = start(t, program, [], { stdio: ['ignore', 'ignore', 'inherit'] });
  // Its libraries are loaded and all of its threads at work.
  await until(() => readThreads(pid)?.length === 4);
  const before = codeMappings(pid);
  for (const filters of [
    ['libc.so.6!malloc', 'libc.so.6!free', 'libc.so.6!*alloc'],
    ['libc.so.6!*'],
    ['libc.so.6!str*', 'libc.so.6!mem*'],
    ['ld-linux-x86-64.so.2!*'],
  ]) {
    const summary = await attachFor(t, pid, filters, '200ms');
    assert.ok(isRunning(pid));
    if (filters.includes('libc.so.6!malloc')) assert.ok((summary.calls['malloc'] ?? 0) > 100);
    assertCodeIsThatOfFiles(pid);
    assert.deepEqual(codeMappings(pid), before);
  }
});

test('a program that interposes a function of libc finds the real one while all of libc is traced', async (t) => {
  const program = join(temporaryFolder(t), 'callers');
  execFileSync('gcc', ['-O1', '-o', program, join(SCRIPTS, 'callers.c')]);
  for (const filters of [['libc.so.6!*'], ['*!*']]) {
    const summary = await runsTheSame(t, filters, [program]);
    assert.equal(summary.exit_status, 0);
  }
});

test('a Rust program of which no symbol is left is traced by its libraries', async (t) => {
  const command = ['rg', '--sort', 'path', '--count', 'root', '/etc'];
  for (const filters of [['libc.so.6!*'], ['*!*']]) {
    const summary = await runsTheSame(t, filters, command);
    assert.ok(totalCalls(summary) > 1000);
  }
});

test('a Go program is traced in its C library, where its own functions cannot be', async (t) => {
  const command = ['sh', '-c', 'printf "one\\ntwo\\nthree\\n" | exec fzf -f t'];
  const summary = await runsTheSame(t, ['libc.so.6!*'], command);
  assert.equal(summary.exit_status, 0);
});
