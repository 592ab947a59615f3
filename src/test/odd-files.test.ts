// Files with which a target, or whoever names one, could keep us waiting or fill our memory, and names that are no text.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, copyFileSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { manyFunctions } from '../elf/many-functions.test.support.js';
import { build, fresh, main, safepoke } from './targets.test.support.js';

test('what is no file is refused before it is opened', () => {
  const fifo = fresh('fifo');
  execFileSync('mkfifo', ['-m', '755', fifo]);
  for (const [path, said] of [
    [fifo, /it is a FIFO/],
    ['/dev/zero', /it is a device/],
    ['/tmp', /it is a directory/],
  ] as const) {
    const listed = safepoke('functions', path);
    assert.equal(listed.status, 1);
    assert.match(listed.stderr, said);
    assert.equal(safepoke('run', '--inside', '--', path).status, 1);
  }
});

test('a million functions, one of them with a name of a megabyte, are listed', () => {
  const COUNT = 1_000_000;
  const long = 'x'.repeat(1_000_000);
  const path = fresh('many');
  const out = fresh('many.txt');
  writeFileSync(
    path,
    manyFunctions(COUNT, (i) => (i === 7 ? long : `f_${i}`)),
  );
  const fd = openSync(out, 'w');
  const listed = spawnSync(process.execPath, [main, 'functions', path], {
    stdio: ['ignore', fd, 'pipe'],
    encoding: 'utf8',
  });
  closeSync(fd);
  assert.equal(listed.status, 0, listed.stderr);
  const lines = readFileSync(out, 'latin1').split('\n');
  assert.equal(lines.length, COUNT + 1);
  assert.ok(lines[7].endsWith(` ${long}`));
});

test('a program with a line feed in its path is traced, by every way', () => {
  const path = fresh('new\nline');
  copyFileSync(build('fib.c'), path);
  for (const way of [[], ['--inside']]) {
    const ran = safepoke('run', ...way, '-F', 'fib', '-o', fresh('odd.spk'), '--', path, '5');
    assert.equal(ran.status, 0, ran.stderr);
    assert.match(ran.stderr, /calls of 1 traced function/);
  }
});
