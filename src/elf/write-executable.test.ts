import { test } from 'node:test';
import assert from 'node:assert/strict';
import { PF_R, PF_W, PF_X, parseElf, writeExecutable } from './index.js';

test('an executable that was written is read back as what it was made of', () => {
  const code = Uint8Array.of(0x0f, 0x05);
  const data = new Uint8Array(5000).fill(7);
  const elf = parseElf(
    writeExecutable(0x1000_0001n, [
      { address: 0x1000_0000n, bytes: code, memorySize: code.length, flags: PF_R | PF_X },
      { address: 0x1010_0000n, bytes: data, memorySize: 0x1_0000, flags: PF_R | PF_W },
    ]),
    'written',
  );
  assert.equal(elf.entry, 0x1000_0001n);
  assert.deepEqual(
    elf.segments.map((s) => [s.address, s.fileSize, s.memorySize]),
    [
      [0x1000_0000n, 2, 2],
      [0x1010_0000n, 5000, 0x1_0000],
    ],
  );
});
