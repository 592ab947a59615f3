import assert from 'node:assert/strict';
import { test } from 'node:test';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { bytesOfText } from './path-text.js';
import {
  isInEnvironment,
  parseMaps,
  readCommandLine,
  readExecutablePath,
  readMaps,
  readStatus,
  readThreadName,
  readThreads,
} from './proc.js';

test('a line of /proc/PID/maps gives addresses, permissions and path, blanks in the path included', () => {
  const text = [
    '55d0c2a00000-55d0c2a02000 r-xp 00001000 fe:00 1234  /opt/my program (deleted)',
    '7ffc1b3e0000-7ffc1b401000 rw-p 00000000 00:00 0      [stack]',
    '7f0000000000-7f0000001000 ---p 00000000 00:00 0',
    'nonsense',
  ].join('\n');
  const [program, stack, guard, ...others] = parseMaps(text);
  assert.equal(others.length, 0);
  assert.equal(program.start, 0x55d0c2a00000);
  assert.equal(program.offset, 0x1000);
  assert.equal(program.inode, 1234);
  assert.equal(program.path, '/opt/my program (deleted)');
  assert.equal(stack.path, '[stack]');
  assert.equal(guard.permissions, '---p');
  assert.equal(guard.path, '');
});

test('our own maps, threads and status can be read', () => {
  assert.ok((readMaps(process.pid) ?? []).some((m) => m.path === '[stack]'));
  assert.ok((readThreads(process.pid) ?? []).includes(process.pid));
  assert.equal(readStatus(process.pid)?.get('Pid'), String(process.pid));
});

test('a process that is not there reads as undefined', () => {
  // Above the largest possible PID_MAX_LIMIT of 2^22.
  const nobody = 2 ** 22 + 1;
  assert.equal(readMaps(nobody), undefined);
  assert.equal(readThreads(nobody), undefined);
  assert.equal(readStatus(nobody), undefined);
});

const LINE = '7f0000000000-7f0000001000 r-xp 00000000 fe:00 5 ';

test('nothing in a path ends a line but a line feed, and none is taken for another line', () => {
  for (const end of ['\r', '\u0085', '\v', '\f']) {
    const name = `/tmp/a${end}${LINE}/bin/sh`;
    const shown = Buffer.from(name).toString('latin1');
    assert.deepEqual(
      parseMaps(`${LINE}${shown}\n`).map(({ path }) => path),
      [name],
    );
  }
});

test('a line feed in a path is told from its escape', () => {
  const paths = (link: string | undefined): string[] =>
    parseMaps(`${LINE}/tmp/new\\012line\n`, (place) => {
      assert.equal(place, '7f0000000000-7f0000001000');
      return link === undefined ? undefined : Buffer.from(link);
    }).map(({ path }) => path);
  assert.deepEqual(paths('/tmp/new\nline'), ['/tmp/new\nline']);
  assert.deepEqual(paths('/tmp/new\\012line'), ['/tmp/new\\012line']);
  assert.deepEqual(paths(undefined), ['/tmp/new\nline']);
});

test('names of a process that are odd in every way are read as they are', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'safepoke-odd-'));
  const names = ['new\nline', 'back\\012slash', 'carriage\rreturn', 'there (deleted)', ' blanks ', 'a) S 1'];
  const odd = names.map((name) => Buffer.from(join(folder, name)));
  odd.push(Buffer.concat([Buffer.from(`${folder}/`), Buffer.of(0xe4, 0xff)]));
  try {
    for (const path of odd) {
      copyFileSync('/bin/sleep', path);
      // Node takes no bytes here: a shell starts it.
      const octal = [...path].map((byte) => `\\${byte.toString(8).padStart(3, '0')}`).join('');
      // A blank behind it, since a shell drops line feeds from the end of what a command says.
      const child = spawn('/bin/sh', ['-c', `p=$(printf '${octal}.'); exec "\${p%.}" 60`], {
        env: { ODD: 'yes' },
      });
      const { pid } = child;
      assert.ok(pid);
      try {
        for (let tries = 0; readExecutablePath(pid)?.startsWith(folder) !== true; tries++) {
          assert.ok(tries < 10_000, `${path.toString('latin1')} is executed`);
          await new Promise((resolve) => setTimeout(resolve, 1));
        }
        const known = readExecutablePath(pid) ?? '';
        assert.deepEqual(bytesOfText(known), path);
        assert.ok((readMaps(pid) ?? []).some((m) => m.path === known && m.permissions.includes('x')));
        assert.deepEqual((readCommandLine(pid) ?? []).map(bytesOfText), [path, Buffer.from('60')]);
        const comm = path.subarray(folder.length + 1, folder.length + 16);
        assert.deepEqual(bytesOfText(readThreadName(pid, pid) ?? ''), comm);
        assert.equal(isInEnvironment(pid, 'ODD=yes'), true);
        assert.equal(isInEnvironment(pid, 'ODD=no'), false);
      } finally {
        child.kill('SIGKILL');
        await once(child, 'exit');
      }
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});
