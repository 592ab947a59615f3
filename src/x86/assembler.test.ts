import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { assemble, disassemble } from './assembler.js';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

test('a listing becomes the machine code that the manuals give for it', () => {
  // Encodings from the Intel SDM, volume 2.
  const cases: readonly (readonly [string, string])[] = [
    ['push rax', '50'],
    ['lahf', '9f'],
    ['sahf', '9e'],
    ['seto al', '0f90c0'],
    ['rdtsc', '0f31'],
    ['rdfsbase rsi', 'f3480faec6'],
    ['ret', 'c3'],
    ['ret 8', 'c20800'],
    ['ud2', '0f0b'],
    ['syscall', '0f05'],
    ['lock cmpxchg [rbx], rcx', 'f0480fb10b'],
    ['xadd [rcx], rax', '480fc101'],
    ['mov rax, 0x7f0000000000', '48b80000000000 7f0000'.replace(' ', '')],
    ['movq rax, 15', '48c7c00f000000'],
    ['mov dword [rax+8], 4', 'c7400804000000'],
    ['mov qword [rsp], 0', '48c7042400000000'],
    ['lea rsp, [rsp-8]', '488d6424f8'],
    ['jmp qword [rsp-8]', 'ff6424f8'],
  ];
  for (const [listing, expected] of cases) assert.equal(hex(assemble(listing, 0n).bytes), expected, listing);
});

test('memory counted from the instruction is found wherever the code lies', () => {
  const listing = 'lea rax, [rel here]\nhere: cmp dword [rel 0x4000], 1\nret';
  const { bytes } = assemble(listing, 0x1000n);
  assert.equal(
    disassemble(bytes, 0x1000n),
    ['0000  lea rax,[1007h]', '0007  cmp dword ptr [4000h],1', '000e  ret'].join('\n'),
  );
  assert.throws(() => assemble('lea rax, [rel nowhere]', 0n), /no label "nowhere"/);
});

test('a branch to a label takes its shortest form, and one far away its long form', () => {
  assert.equal(hex(assemble('top: jmp top', 0n).bytes), 'ebfe');
  const far = assemble(`jmp end\n${'nop\n'.repeat(200)}end: ret`, 0n);
  assert.equal(far.bytes[0], 0xe9);
  assert.equal(far.labels.get('end'), 205);
});

test('labels are offsets of what follows them, also at the very end', () => {
  const { labels, bytes } = assemble('a: push rax\nb:\nc: pop rax\nend:', 0x1000n);
  assert.deepEqual(Object.fromEntries(labels), { a: 0, b: 1, c: 1, end: 2 });
  assert.equal(bytes.length, 2);
});

test('comments and blank lines are nothing', () => {
  assert.equal(assemble('\n  ; only words\n   \n', 0n).bytes.length, 0);
});

test('a line that is no instruction is an error that shows the line', () => {
  assert.throws(() => assemble('frobnicate rax', 0n), /frobnicate rax/);
  assert.throws(() => assemble('mov rax, [nowhere]', 0n), /nowhere/);
  assert.throws(() => assemble('jmp nowhere', 0n), /no label "nowhere"/);
  assert.throws(() => assemble('a:\na: ret', 0n), /stands twice/);
});

test('whatever moves between registers and memory are assembled disassembles to the same text', () => {
  const register = fc.constantFrom(
    'rax',
    'rcx',
    'rdx',
    'rbx',
    'rsp',
    'rbp',
    'rsi',
    'rdi',
    'r8',
    'r13',
    'r15',
  );
  const displacement = fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff });
  fc.assert(
    fc.property(register, register, displacement, (to, base, offset) => {
      const sign = offset < 0 ? '-' : '+';
      const { bytes } = assemble(`mov ${to}, [${base}${sign}${Math.abs(offset)}]`, 0n);
      const [, text] = disassemble(bytes, 0n).split('  ');
      const match = /^mov (\w+),\[(\w+)(?:([+-])([0-9A-F]+)h?)?\]$/.exec(text) ?? [];
      const magnitude = parseInt(match.at(4) ?? '0', 16);
      assert.deepEqual([match[1], match[2]], [to, base]);
      assert.equal(match[3] === '-' ? -magnitude : magnitude, offset === 0 ? 0 : offset);
    }),
  );
});
