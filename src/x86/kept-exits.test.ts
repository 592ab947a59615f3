// What is kept of exits is what was found.
import assert from 'node:assert/strict';
import { readFileSync, realpathSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { compile } from '../elf/gcc.test.support.js';
import { parseElf, type ElfFile } from '../elf/index.js';
import { functionsOf, type FunctionSymbol } from '../symbols/index.js';
import { analyseFunctions, type ExitMark, type ExitRefusal, type FunctionExits } from './index.js';
import type { KeptPart, VerdictStore } from './analyse-functions.js';

/** Keeps the last bytes of each part. */
class OneFile implements VerdictStore {
  readonly parts = new Map<KeptPart, Uint8Array>();
  saved = 0;

  load(_elf: ElfFile, _functions: unknown, part: KeptPart): Uint8Array | undefined {
    return this.parts.get(part)?.slice();
  }

  save(_elf: ElfFile, _functions: unknown, part: KeptPart, bytes: Uint8Array): void {
    this.saved++;
    this.parts.set(part, bytes.slice());
  }
}

function opened(bytes: Uint8Array): { elf: ElfFile; all: FunctionSymbol[] } {
  const elf = parseElf(bytes, 'file');
  return { elf, all: functionsOf(elf) };
}

/** All that can be asked of marks and exits, as plain values. */
function marks(all: readonly ExitMark[]): unknown {
  return all.map(({ index, kind, depth, block }) => ({
    index,
    kind,
    depth: depth ?? 0,
    block: block && {
      ...block,
      at: block.addressNumber,
      displaced: block.displaced,
      original: block.original,
    },
  }));
}

function plain(exits: FunctionExits | ExitRefusal): unknown {
  if (typeof exits === 'string') return exits;
  const { entry, entryExits, windows } = exits;
  return {
    entry: entry && [entry.displacedLength, entry.displacedCount, entry.displaced],
    entryExits: marks(entryExits),
    windows: windows.map((window) => ({
      at: [window.addressNumber, window.originalAt, window.end],
      form: window.form,
      displaced: [window.displacedLength, window.displacedCount, window.displaced],
      exits: marks(window.exits),
    })),
  };
}

function exitsOf(bytes: Uint8Array, store?: VerdictStore): unknown[] {
  const { elf, all } = opened(bytes);
  return analyseFunctions(elf, all, all, store, true).exits.map(plain);
}

for (const path of ['/usr/bin/redis-server', '/lib/x86_64-linux-gnu/libc.so.6']) {
  test(`exits are the same after they were written down: ${path}`, () => {
    const bytes = new Uint8Array(readFileSync(realpathSync(path)));
    const store = new OneFile();
    const found = exitsOf(bytes);
    assert.deepEqual(exitsOf(bytes, store), found);
    assert.equal(store.saved, 2);
    assert.deepEqual(exitsOf(bytes, store), found);
    assert.equal(store.saved, 2);
  });
}

const SOURCE = `
  #include <stdio.h>
  int g(int x) { return x < 3 ? puts("a") : x * 2; }
  int f(int x) { for (int i = 0; i < x; i++) if (g(i) == 7) return 1; return g(x); }
  int main(int argc, char **argv) { return f(argc); }`;

test('of few functions nothing is kept, and what is kept serves few', () => {
  const bytes = compile(SOURCE, '-O2', '-static');
  const store = new OneFile();
  const { elf, all } = opened(bytes);
  const few = all.filter(({ name }) => name === 'f');
  const alone = analyseFunctions(elf, few, all, store, true).exits.map(plain);
  assert.equal(store.parts.has('exits'), false);
  exitsOf(bytes, store);
  assert.ok(store.parts.has('exits'));
  const again = opened(bytes);
  const one = again.all.filter(({ name }) => name === 'f');
  assert.deepEqual(analyseFunctions(again.elf, one, again.all, store, true).exits.map(plain), alone);
});

test('whatever bytes are kept, exits lie in the file, or are looked for', () => {
  const bytes = compile(SOURCE, '-O2');
  const store = new OneFile();
  const found = exitsOf(bytes, store);
  const kept = store.parts.get('exits');
  assert.ok(kept);
  fc.assert(
    fc.property(fc.nat(kept.length - 1), fc.nat(255), fc.boolean(), (at, byte, isCut) => {
      const odd = isCut ? kept.slice(0, at) : kept.slice();
      if (!isCut) odd[at] = byte;
      store.parts.set('exits', odd);
      const { elf, all } = opened(bytes);
      const { exits } = analyseFunctions(elf, all, all, store, true);
      assert.equal(exits.length, found.length);
      for (const one of exits) {
        if (typeof one === 'string') continue;
        for (const window of one.windows) assert.ok(window.end <= bytes.length && window.originalAt >= 0);
      }
    }),
    { numRuns: 300 },
  );
});
