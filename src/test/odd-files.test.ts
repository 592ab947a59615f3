// Files with which a target, or whoever names one, could keep us waiting or fill our memory, and names that are no text.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, copyFileSync, openSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { manyFunctions } from '../elf/many-functions.test.support.js';
import { build, fresh, main, safepoke } from './targets.test.support.js';

/** elf(5): where the file header tells of program headers, and what is in those. */
const PROGRAM_HEADERS = 32;
const PROGRAM_HEADER_COUNT = 56;
const PROGRAM_HEADER = 56;
const P_FILESZ = 32;
const PT_LOAD = 1;
const PF_X = 1;
const HUGE_BYTES = 900 << 20;

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

test('a file that says it loads more than is looked at is refused before that is read', () => {
  const path = fresh('huge');
  copyFileSync(build('fib.c'), path);
  const bytes = readFileSync(path);
  const first = Number(bytes.readBigUInt64LE(PROGRAM_HEADERS));
  for (
    let at = first, left = bytes.readUInt16LE(PROGRAM_HEADER_COUNT);
    left > 0;
    left--, at += PROGRAM_HEADER
  ) {
    const isCode = bytes.readUInt32LE(at) === PT_LOAD && (bytes.readUInt32LE(at + 4) & PF_X) !== 0;
    if (isCode) bytes.writeBigUInt64LE(BigInt(HUGE_BYTES), at + P_FILESZ);
  }
  writeFileSync(path, bytes);
  truncateSync(path, 2 * HUGE_BYTES);
  const listed = spawnSync('/usr/bin/time', ['-f', '%M', process.execPath, main, 'functions', path], {
    encoding: 'utf8',
  });
  assert.equal(listed.status, 1);
  assert.match(listed.stderr, /at most 512 MiB of a file are looked at/);
  const kib = Number(listed.stderr.trimEnd().split('\n').at(-1));
  assert.ok(kib < HUGE_BYTES / 1024, `it took ${kib} KiB`);
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
