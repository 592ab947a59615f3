import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseMaps, readMaps, readStatus, readThreads } from './proc.js';

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
