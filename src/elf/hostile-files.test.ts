import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CannotError } from '../errors/index.js';
import * as abi from './abi.js';
import { fuzzElf } from './elf.fuzz.test.support.js';
import { compile } from './gcc.test.support.js';
import { parseElf, type ByteSource, type ElfFile } from './index.js';
import { manyFunctions } from './many-functions.test.support.js';

const MIB = 1024 * 1024;
const TERABYTE = 2 ** 40;

/** A file of any size: zero where nothing else is said. Counts what is read of it. */
class SparseFile implements ByteSource {
  total = 0;
  largest = 0;

  constructor(
    readonly size: number,
    private readonly parts: readonly (readonly [offset: number, bytes: Uint8Array])[],
    /** Where it ends by now. */
    readonly end = size,
  ) {}

  read(into: Uint8Array, offset: number): number {
    const length = Math.max(0, Math.min(into.length, this.end - offset));
    this.total += length;
    this.largest = Math.max(this.largest, into.length);
    into.fill(0, 0, length);
    for (const [at, bytes] of this.parts) {
      const from = Math.max(at, offset);
      const to = Math.min(at + bytes.length, offset + length);
      if (from < to) into.set(bytes.subarray(from - at, to - at), from - offset);
    }
    return length;
  }
}

const LIBRARY = compile(
  'int mine(int x) { return x + 1; } int other(int x) { return mine(x) * 3; }',
  '-shared',
  '-fPIC',
);

function sectionHeader(bytes: Uint8Array, name: string): number {
  const index = parseElf(bytes, 'f').sections.findIndex((section) => section.name === name);
  assert.ok(index > 0, name);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Number(view.getBigUint64(abi.EHDR.sectionOffset, true)) + index * abi.SHDR_SIZE;
}

/** The library with 64-bit fields at places of its headers changed. */
function changed(fields: readonly (readonly [at: number, value: number])[]): Uint8Array {
  const copy = LIBRARY.slice();
  const view = new DataView(copy.buffer);
  for (const [at, value] of fields) view.setBigUint64(at, BigInt(value), true);
  return copy;
}

function refusal(action: () => unknown): CannotError {
  try {
    action();
  } catch (error) {
    assert.ok(error instanceof CannotError, String(error));
    return error;
  }
  return assert.fail('it is refused');
}

function names(elf: ElfFile): string[] {
  return elf.symbols.map(({ name }) => name);
}

test('of a file of a terabyte only that is read which is asked for', () => {
  const file = new SparseFile(TERABYTE, [[0, LIBRARY]]);
  const elf = parseElf(file, 'huge');
  const mine = elf.symbols.find(({ name }) => name === 'mine');
  assert.ok(mine);
  assert.ok(elf.codeOffset(mine.addressNumber, mine.size) > 0);
  elf.readTables();
  assert.ok(file.total < 2 * MIB, `${file.total} bytes were read`);
});

test('a symbol table that claims gigabytes is gone through piece by piece', () => {
  const size = 2 ** 28;
  const header = sectionHeader(LIBRARY, '.symtab');
  const bytes = changed([
    [header + abi.SHDR.offset, MIB],
    [header + abi.SHDR.size, size],
  ]);
  const file = new SparseFile(TERABYTE, [[0, bytes]]);
  const elf = parseElf(file, 'huge');
  assert.deepEqual(
    elf.symbols.map(({ table }) => table).filter((table) => table === 'symtab'),
    [],
  );
  assert.ok(names(elf).includes('mine'));
  assert.ok(file.total > size);
  assert.ok(file.largest <= 2 * MIB);
  const more = changed([[header + abi.SHDR.size, 2 ** 31]]);
  assert.match(refusal(() => parseElf(new SparseFile(TERABYTE, [[0, more]]), 'f')).details.why, /more than/);
});

test('a string table that claims gigabytes is searched piece by piece, and one that claims more is refused', () => {
  const header = sectionHeader(LIBRARY, '.strtab');
  const claim = (size: number): SparseFile =>
    new SparseFile(TERABYTE, [
      [
        0,
        changed([
          [header + abi.SHDR.offset, MIB],
          [header + abi.SHDR.size, size],
        ]),
      ],
      [MIB + 2 ** 30, Buffer.from('needle')],
    ]);
  const file = claim(2 ** 30 + MIB);
  assert.ok(parseElf(file, 'huge').mentions('nothing of this', 'needle'));
  assert.ok(file.largest <= 2 * MIB);
  assert.match(refusal(() => parseElf(claim(2 ** 33), 'huge')).details.why, /more than/);
});

test('counts of 2^32 and entries without a size are refused', () => {
  const view = new DataView(LIBRARY.buffer);
  const sections = Number(view.getBigUint64(abi.EHDR.sectionOffset, true));
  const many = changed([[sections + abi.SHDR.size, 2 ** 32]]);
  new DataView(many.buffer).setUint16(abi.EHDR.sectionCount, 0, true);
  assert.match(
    refusal(() => parseElf(new SparseFile(TERABYTE, [[0, many]]), 'f')).details.why,
    /4294967296 entries/,
  );
  const segments = changed([]);
  const first = new DataView(segments.buffer);
  first.setUint16(abi.EHDR.programCount, abi.PN_XNUM, true);
  first.setUint32(sections + abi.SHDR.info, 0xffff_ffff, true);
  assert.equal(refusal(() => parseElf(new SparseFile(TERABYTE, [[0, segments]]), 'f')).code, 'elf-damaged');
  const sizeless = changed([]);
  new DataView(sizeless.buffer).setUint16(abi.EHDR.sectionEntrySize, 0, true);
  assert.equal(refusal(() => parseElf(sizeless, 'f')).code, 'elf-damaged');
  // What a table says of the size of its entries nobody needs: the ABI says it.
  const header = sectionHeader(LIBRARY, '.symtab');
  assert.ok(names(parseElf(changed([[header + abi.SHDR.entrySize, 0]]), 'f')).includes('mine'));
});

test('a chain of the GNU hash table without an end ends with the file', () => {
  const bytes = compile('int mine(void) { return 1; }', '-shared', '-fPIC', '-Wl,--hash-style=gnu');
  const { offset } = parseElf(bytes, 'f').sections.find(({ name }) => name === '.gnu.hash') ?? assert.fail();
  const view = new DataView(bytes.buffer);
  const buckets = offset + 16 + view.getUint32(offset + 8, true) * 8;
  // The last symbol is one whose chain would lie behind all tables, where there is nothing but zeros.
  view.setUint32(buckets, view.getUint32(offset + 4, true) + MIB, true);
  // Without sections the hash table alone tells how many symbols there are.
  bytes.fill(0, abi.EHDR.sectionOffset, abi.EHDR.sectionOffset + 8);
  bytes.fill(0, abi.EHDR.sectionCount, abi.EHDR.sectionCount + 4);
  const file = new SparseFile(64 * MIB, [[0, bytes]]);
  assert.match(refusal(() => parseElf(file, 'f')).details.why, /has no end/);
  assert.ok(file.largest <= 2 * MIB);
});

test('a file that has become shorter since it was opened is refused, or its code is as if it were not there', () => {
  const { symbols, segments } = parseElf(LIBRARY, 'f');
  const mine = symbols.find(({ name }) => name === 'mine') ?? assert.fail();
  let refused = 0;
  let codeless = 0;
  for (let end = 0; end < LIBRARY.length; end += 64) {
    const file = new SparseFile(LIBRARY.length, [[0, LIBRARY]], end);
    try {
      const elf = parseElf(file, 'f');
      if (elf.codeOffset(mine.addressNumber, mine.size) < 0) codeless++;
      elf.readTables();
    } catch (error) {
      assert.ok(error instanceof CannotError, String(error));
      refused++;
    }
  }
  assert.ok(refused > 0 && segments.length > 0);
  // Headers of sections stand at the end of the file: without them nothing is left to ask for.
  assert.equal(codeless, 0);
  const cut = new SparseFile(2 * MIB, [[0, LIBRARY]], 0);
  assert.equal(refusal(() => parseElf(cut, 'f')).code, 'elf-not-elf');
});

test('names of a megabyte are read whole, and where all overlap they do not fill memory', () => {
  const long = 'x'.repeat(MIB);
  const [first] = names(
    parseElf(
      manyFunctions(1, () => long),
      'f',
    ),
  );
  assert.equal(first, long);
  const COUNT = 20_000;
  const bytes = manyFunctions(COUNT, (i) => (i === 0 ? long : ''));
  // Each symbol's name begins a byte further within the long one.
  const view = new DataView(bytes.buffer);
  const { offset } = parseElf(bytes, 'f').sections.find(({ name }) => name === '.symtab') ?? assert.fail();
  for (let i = 1; i <= COUNT; i++) view.setUint32(offset + i * abi.SYM_SIZE + abi.SYM.name, i, true);
  const total = names(parseElf(bytes, 'f')).reduce((sum, name) => sum + name.length, 0);
  assert.ok(total < 64 * MIB, `${total} characters`);
});

test('damaged files of every kind are read or refused', () => {
  fuzzElf(1500, 1);
});
