import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseMaps } from './proc.js';

test('a mapping without a name does not swallow the next line', () => {
  const maps = parseMaps(
    [
      '7f7256320000-7f7256321000 ---p 00000000 00:00 0 ',
      '7f7256321000-7f7256b21000 rw-p 00000000 00:00 0 ',
      '7f765edbe000-7f765edc2000 r--p 001cf000 fe:00 1835     /usr/lib/a b.so (deleted)',
      '7ffebf015000-7ffebf036000 rw-p 00000000 00:00 0        [stack]',
      '',
    ].join('\n'),
  );
  assert.deepEqual(
    maps.map(({ start, permissions, path }) => [start, permissions, path]),
    [
      [0x7f7256320000, '---p', ''],
      [0x7f7256321000, 'rw-p', ''],
      [0x7f765edbe000, 'r--p', '/usr/lib/a b.so (deleted)'],
      [0x7ffebf015000, 'rw-p', '[stack]'],
    ],
  );
});
