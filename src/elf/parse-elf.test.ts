import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { CannotError } from '../errors/index.js';
import { compile } from './gcc.test.support.js';
import { parseElf, type ElfFile } from './index.js';

const TRUE = new Uint8Array(readFileSync('/bin/true'));

const PROGRAM = `
#include <stdio.h>
int twice(int x) { return x * 2; }
static __attribute__((noinline, used)) int hidden(int x) { return x + twice(x); }
int main(int argc, char **argv) { printf("%d\\n", hidden(argc)); return 0; }
`;

function names(elf: ElfFile): string[] {
  return elf.symbols.map((symbol) => symbol.name);
}

function symbolAddress(elf: ElfFile, name: string): bigint {
  const symbol = elf.symbols.find((candidate) => candidate.name === name);
  assert.ok(symbol, `${name} is among the symbols`);
  return symbol.address;
}

test('an executable tells its type, loader, needs, build id and symbols', () => {
  const elf = parseElf(compile(PROGRAM, '-Wl,--build-id=0x0123456789abcdef'), 'fixture');
  assert.equal(elf.type, 'shared-object');
  assert.equal(elf.interpreter, '/lib64/ld-linux-x86-64.so.2');
  assert.deepEqual(elf.needed, ['libc.so.6']);
  assert.equal(elf.buildId, '0123456789abcdef');
  assert.equal(elf.hasUnwindTables, true);
  const twice = elf.symbols.find((symbol) => symbol.name === 'twice');
  assert.equal(twice?.kind, 'function');
  assert.equal(twice.binding, 'global');
  assert.ok(twice.size > 0);
  assert.equal(elf.symbols.find((symbol) => symbol.name === 'hidden')?.binding, 'local');
  assert.ok(elf.isExecutable(twice.address, twice.size));
  assert.ok(!elf.isExecutable(symbolAddress(elf, '_IO_stdin_used'), 4));
});

test('a fixed-address executable is told from a position-independent one', () => {
  assert.equal(parseElf(compile(PROGRAM, '-no-pie'), 'fixture').type, 'executable');
});

test('a shared object tells its soname, and the symbols that others provide to its slots', () => {
  const elf = parseElf(
    compile(
      'int other(int); int mine(int x) { return other(x) + 1; }',
      '-shared',
      '-fPIC',
      '-Wl,-soname,libmine.so.3',
    ),
    'fixture',
  );
  assert.equal(elf.soname, 'libmine.so.3');
  const imports: string[] = [];
  for (const section of elf.sections.filter((candidate) => candidate.name.startsWith('.got'))) {
    for (let at = 0n; at < section.size; at += 8n) {
      const name = elf.importAt(section.address + at);
      if (name !== undefined) imports.push(name);
    }
  }
  assert.ok(imports.includes('other'));
});

test('addresses and file offsets map to each other', () => {
  const elf = parseElf(TRUE, 'true');
  for (const segment of elf.segments.filter((candidate) => candidate.type === 1)) {
    assert.equal(elf.fileOffsetOf(segment.address), segment.offset);
    assert.equal(elf.addressOf(segment.offset), segment.address);
    const end = segment.address + BigInt(segment.fileSize);
    assert.equal(elf.bytesAt(end - 4n, 4)?.length, 4);
    assert.notEqual(elf.bytesAt(end - 4n, 8)?.length, 8);
  }
  assert.equal(elf.fileOffsetOf(0x7fff_ffff_ffffn), undefined);
});

for (const flags of [['-no-pie'], ['-pie'], ['-shared', '-fPIC'], ['-static-pie', '-fPIE']]) {
  test(`patchable entries are the functions' addresses with ${flags.join(' ')}`, () => {
    const elf = parseElf(
      compile(PROGRAM, '-O1', '-ffunction-sections', '-fpatchable-function-entry=5', ...flags),
      'f',
    );
    for (const name of ['twice', 'hidden', 'main']) {
      assert.ok(elf.patchableEntries.includes(symbolAddress(elf, name)), name);
    }
  });
}

test('recorded mcount locations lie at the entries of the functions', () => {
  const flags = ['-O1', '-pg', '-mfentry', '-mnop-mcount', '-mrecord-mcount', '-fno-pic', '-no-pie'];
  const elf = parseElf(compile(PROGRAM, ...flags), 'f');
  assert.ok(elf.mcountLocations.includes(symbolAddress(elf, 'twice')));
});

test('packed relative relocations are read like plain ones', () => {
  const source = 'int a, b; int *table[] = {&a, &b, &a}; int main(void) { return *table[1]; }';
  const plain = parseElf(compile(source, '-pie', '-fPIE'), 'f');
  const packed = parseElf(compile(source, '-pie', '-fPIE', '-Wl,-z,pack-relative-relocs'), 'f');
  for (const elf of [plain, packed]) {
    const table = symbolAddress(elf, 'table');
    assert.equal(elf.pointerAt(table), symbolAddress(elf, 'a'));
    assert.equal(elf.pointerAt(table + 8n), symbolAddress(elf, 'b'));
    assert.ok(elf.relocatedPointers.includes(Number(symbolAddress(elf, 'b'))));
  }
});

for (const style of ['sysv', 'gnu']) {
  test(`dynamic symbols are found without section headers through the ${style} hash table`, () => {
    const bytes = compile(PROGRAM, '-shared', '-fPIC', `-Wl,--hash-style=${style}`);
    const whole = parseElf(bytes, 'f');
    const elf = parseElf(withoutSections(bytes), 'f');
    assert.equal(elf.sections.length, 0);
    assert.deepEqual(
      names(elf),
      whole.symbols.filter((symbol) => symbol.table === 'dynsym').map((symbol) => symbol.name),
    );
  });
}

test('what is not an x86-64 executable or library is refused by name', () => {
  const object = compile('int x;', '-c');
  const refused: [Uint8Array, string][] = [
    [new Uint8Array(0), 'elf-not-elf'],
    [new TextEncoder().encode('#!/bin/sh\n'), 'elf-not-elf'],
    [TRUE.slice(0, 32), 'elf-truncated'],
    [TRUE.slice(0, 1000), 'elf-truncated'],
    [changed(4, 1), 'elf-not-64-bit'],
    [changed(18, 183), 'elf-not-x86-64'],
    [changed(5, 2), 'elf-not-x86-64'],
    [object, 'elf-not-loadable'],
  ];
  for (const [bytes, code] of refused) {
    assert.throws(
      () => parseElf(bytes, 'f'),
      (error) => error instanceof CannotError && error.code === code,
      code,
    );
  }
});

/** The file as `sstrip` leaves it: e_shoff, e_shnum and e_shstrndx are zero. */
function withoutSections(bytes: Uint8Array): Uint8Array {
  const stripped = bytes.slice();
  stripped.fill(0, 40, 48);
  stripped.fill(0, 60, 64);
  return stripped;
}

function changed(offset: number, value: number): Uint8Array {
  const copy = TRUE.slice();
  copy[offset] = value;
  return copy;
}

/** Reads everything there is, and returns how much that was. */
function exercise(bytes: Uint8Array): number {
  const elf = parseElf(bytes, 'fuzzed');
  let seen = elf.patchableEntries.length + elf.mcountLocations.length + elf.relocatedPointers.length;
  for (const symbol of elf.symbols) seen += `${symbol.name}${symbol.kind}${symbol.binding}`.length;
  for (const segment of elf.segments) {
    seen += elf.bytesAt(segment.address, 64)?.length ?? 0;
    seen += elf.importAt(segment.address)?.length ?? 0;
    seen += Number(elf.pointerAt(segment.address) ?? 0n) + Number(elf.addressOf(segment.offset) ?? 0n);
  }
  return seen;
}

function survives(bytes: Uint8Array): void {
  try {
    exercise(bytes);
  } catch (error) {
    if (!(error instanceof CannotError)) throw error;
  }
}

const patchedPie = compile(PROGRAM, '-O1', '-fpatchable-function-entry=5', '-Wl,-z,pack-relative-relocs');
/** Places that steer the parser: headers, tables of headers, and the first bytes of each section and segment. */
const steering = [
  ...Array.from({ length: 64 }, (_, i) => i),
  ...Array.from({ length: 13 * 56 }, (_, i) => 64 + i),
  ...parseElf(patchedPie, 'f').sections.flatMap((section) =>
    section.hasBytes ? Array.from({ length: 96 }, (_, i) => section.offset + i) : [],
  ),
  ...Array.from({ length: 30 * 64 }, (_, i) => patchedPie.length - 1 - i),
].filter((offset) => offset >= 0 && offset < patchedPie.length);

for (const [what, whole] of [
  ['file', patchedPie],
  ['file without section headers', withoutSections(patchedPie)],
] as const) {
  test(`a damaged ${what} is read or refused, and never does anything else`, () => {
    const edit = fc.record({
      offset: fc.oneof(fc.constantFrom(...steering), fc.nat(whole.length - 1)),
      value: fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xff), fc.nat(255)),
      run: fc.constantFrom(1, 1, 1, 2, 4, 8),
    });
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 12 }), (edits) => {
        const bytes = whole.slice();
        for (const { offset, value, run } of edits) bytes.fill(value, offset, offset + run);
        survives(bytes);
      }),
      { numRuns: 3000 },
    );
  });
}

test('a file cut off anywhere is read or refused', () => {
  fc.assert(
    fc.property(fc.nat(patchedPie.length), (length) => {
      survives(patchedPie.slice(0, length));
    }),
    { numRuns: 500 },
  );
});

test('a slice of a file that was read into a Buffer is a copy', () => {
  const elf = parseElf(readFileSync('/bin/true'), 'true');
  elf.bytes.slice(0, 4).fill(0);
  assert.equal(elf.bytes[0], 0x7f);
});
