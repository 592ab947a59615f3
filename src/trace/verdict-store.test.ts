import assert from 'node:assert/strict';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { compile } from '../elf/gcc.test.support.js';
import { parseElf, type ElfFile } from '../elf/index.js';
import { functionsOf, type FunctionSymbol } from '../symbols/index.js';
import { Verdicts, type KeptPart } from '../x86/index.js';
import { verdictStore } from './verdict-store.js';

const bytes = compile('int twice(int x) { return 2 * x; } int main(void) { return twice(3); }');

/** The file as if it were opened for the first time. */
function opened(content: Uint8Array = bytes): { elf: ElfFile; all: FunctionSymbol[] } {
  const elf = parseElf(content, 'fixture');
  return { elf, all: functionsOf(elf) };
}

function inFolder(action: (cache: string) => void): void {
  const home = mkdtempSync(join(tmpdir(), 'safepoke-cache-'));
  try {
    action(join(home, 'cache'));
  } finally {
    rmSync(home, { recursive: true });
  }
}

function save(cache: string, content?: Uint8Array): Verdicts {
  const { elf, all } = opened(content);
  const verdicts = Verdicts.of(elf, all);
  verdictStore({ XDG_CACHE_HOME: cache })?.save(elf, all, 'entries', verdicts.toBytes());
  return verdicts;
}

function load(cache: string, content?: Uint8Array, part: KeptPart = 'entries'): Uint8Array | undefined {
  const { elf, all } = opened(content);
  return verdictStore({ XDG_CACHE_HOME: cache, HOME: join(cache, 'nobody') })?.load(elf, all, part);
}

function only(cache: string): string {
  const names = readdirSync(join(cache, 'safepoke'));
  assert.equal(names.length, 1, names.join(' '));
  return join(cache, 'safepoke', names[0]);
}

test('what was found is found again, in a file and a folder that are ours alone', () => {
  inFolder((cache) => {
    assert.equal(load(cache), undefined);
    const verdicts = save(cache);
    assert.deepEqual(load(cache), verdicts.toBytes());
    assert.equal(load(cache, bytes, 'exits'), undefined);
    assert.equal(statSync(only(cache)).mode & 0o777, 0o600);
    assert.equal(statSync(join(cache, 'safepoke')).mode & 0o777, 0o700);
  });
});

test('a file that differs in one byte of code has no verdicts', () => {
  inFolder((cache) => {
    save(cache);
    const { elf } = opened();
    const other = bytes.slice();
    const at = elf.fileOffsetOf(elf.symbols.find(({ name }) => name === 'twice')?.address ?? 0n);
    assert.ok(at !== undefined);
    other[at] ^= 1;
    assert.equal(load(cache, other), undefined);
  });
});

test('whatever byte of a kept file is changed, or where it is cut, it is as if it were not there', () => {
  inFolder((cache) => {
    save(cache);
    const path = only(cache);
    const whole = readFileSync(path);
    fc.assert(
      fc.property(
        fc.nat(whole.length - 1),
        fc.integer({ min: 1, max: 255 }),
        fc.boolean(),
        (at, flip, cut) => {
          const changed = cut ? whole.subarray(0, at) : Buffer.from(whole);
          if (!cut) changed[at] ^= flip;
          writeFileSync(path, changed);
          assert.equal(load(cache), undefined);
        },
      ),
      { numRuns: 200 },
    );
    writeFileSync(path, whole);
    assert.ok(load(cache));
  });
});

test('links, fifos, folders that others may write to, and no wish for a cache: none is used', () => {
  inFolder((cache) => {
    save(cache);
    const path = only(cache);
    const whole = readFileSync(path);
    rmSync(path);
    writeFileSync(join(cache, 'elsewhere'), whole, { mode: 0o600 });
    symlinkSync(join(cache, 'elsewhere'), path);
    assert.equal(load(cache), undefined);
    rmSync(path);
    writeFileSync(path, whole, { mode: 0o600 });
    assert.ok(load(cache));
    chmodSync(path, 0o666);
    assert.equal(load(cache), undefined);
    chmodSync(path, 0o600);
    for (const folder of [join(cache, 'safepoke'), cache]) {
      chmodSync(folder, 0o777);
      assert.equal(load(cache), undefined, folder);
      chmodSync(folder, 0o700);
    }
    assert.ok(load(cache));
    assert.equal(verdictStore({ XDG_CACHE_HOME: cache, SAFEPOKE_NO_CACHE: '1' }), undefined);
  });
});

test('the cache is bounded: what was not wanted for longest goes, and nothing that is not of it', () => {
  inFolder((cache) => {
    save(cache);
    const folder = join(cache, 'safepoke');
    const names = Array.from({ length: 300 }, (_, i) => `0-${i.toString(16).padStart(64, '0')}`);
    names.forEach((name, i) => {
      writeFileSync(join(folder, name), 'x');
      utimesSync(join(folder, name), i + 1, i + 1);
    });
    writeFileSync(join(folder, 'notes.txt'), 'mine');
    mkdirSync(join(folder, 'more'));
    const other = bytes.slice();
    other[other.length - 1] ^= 0;
    save(cache);
    const left = readdirSync(folder);
    assert.ok(left.includes('notes.txt') && left.includes('more'));
    assert.ok(left.filter((name) => name.startsWith('0-')).length <= 256);
    assert.ok(!left.includes(names[0]) && left.includes(names[299]));
    assert.ok(load(cache));
  });
});
