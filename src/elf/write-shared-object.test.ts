import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { DYNAMIC_ROOM, parseElf, writeSharedObject, type SharedObject } from './index.js';

const folder = mkdtempSync(join(tmpdir(), 'safepoke-object-'));
after(() => {
  rmSync(folder, { recursive: true, force: true });
});

const DATA = 0x4000;
/** What the function returns. */
const seven = 7;
const IMPORT = DATA + DYNAMIC_ROOM;
const object: SharedObject = {
  soname: 'written.so',
  // init: push rbp; mov rbp, rsp; pop rbp; ret. seven: push rbp; mov rbp, rsp; mov eax, 7; pop rbp; ret
  text: {
    address: 0x1000,
    bytes: Uint8Array.of(
      0x55,
      0x48,
      0x89,
      0xe5,
      0x5d,
      0xc3,
      0x55,
      0x48,
      0x89,
      0xe5,
      0xb8,
      7,
      0,
      0,
      0,
      0x5d,
      0xc3,
    ),
  },
  data: { address: DATA, bytes: new Uint8Array(64) },
  exports: [{ name: 'seven', address: 0x1006, size: 11 }],
  imports: [
    { name: 'puts', slot: IMPORT },
    { name: 'there_is_no_such_function', slot: IMPORT + 8 },
  ],
  threadLocal: { size: 8, slot: IMPORT + 16 },
  init: 0x1000,
  unwind: [
    { address: 0x1000, length: 6, hasFrame: true, personality: 0x1006 },
    { address: 0x1006, length: 11, hasFrame: false },
  ],
};

test('a shared object that was written is read back as what it was made of', () => {
  const elf = parseElf(writeSharedObject(object), 'written');
  assert.equal(elf.type, 'shared-object');
  assert.equal(elf.soname, 'written.so');
  assert.deepEqual(
    elf.symbols.map(({ name, address, size, kind }) => [name, address, size, kind]),
    [['seven', 0x1006n, 11, 'function']],
  );
  assert.equal(elf.importAt(BigInt(IMPORT)), 'puts');
  assert.deepEqual(elf.bytesAt(0x1000n, 6), object.text.bytes.subarray(0, 6));
});

test('readelf finds nothing to complain about, and the dynamic loader takes the object', () => {
  const path = join(folder, 'written.so');
  writeFileSync(path, writeSharedObject(object));
  const said = execFileSync('readelf', ['-Wa', '-D', path], { encoding: 'utf8', stdio: 'pipe' });
  assert.match(said, /INITFIRST/);
  assert.match(said, /R_X86_64_TPOFF64/);
  const frames = execFileSync('readelf', ['--debug-dump=frames', path], { encoding: 'utf8', stdio: 'pipe' });
  if (frames !== '') {
    assert.match(frames, /"zPR"/);
    assert.match(frames, /"zR"/);
  }
  const source = join(folder, 'loads.c');
  writeFileSync(
    source,
    `#include <dlfcn.h>
     int main(int argc, char **argv) {
       void *object = dlopen(argv[argc - 1], RTLD_NOW);
       int (*seven)(void) = object ? (int (*)(void))dlsym(object, "seven") : 0;
       return seven ? seven() : 1;
     }`,
  );
  const program = join(folder, 'loads');
  execFileSync('gcc', ['-o', program, source]);
  assert.equal(spawnSync(program, [path]).status, seven);
});

test('parts that do not fit before each other are refused', () => {
  assert.throws(() => writeSharedObject({ ...object, text: { ...object.text, address: 0x100 } }), /overlap/);
});
