// Where functions are left: each way to do so, and for how many functions of real programs all are found.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { test } from 'node:test';
import { compile } from '../elf/gcc.test.support.js';
import { parseElf } from '../elf/index.js';
import { functionsOf } from '../symbols/index.js';
import { analyseFunctions, type ExitKind } from './index.js';

const PROGRAM = `
#include <stdio.h>
int work(int x);
__attribute__((noinline, noclone)) int other(int x) { return work(x) * 3 + work(x + 1); }
__attribute__((noinline, noclone)) int returns(int x) { return work(x) + work(x + 2) * 5; }
__attribute__((noinline, noclone)) int jumps(int x) { return other(x + 1); }
__attribute__((noinline, noclone)) int links(const char *s) { return puts(s + 1); }
__attribute__((noinline, noclone)) int either(int x, const char *s) { return x > 3 ? puts(s) : other(x); }
__attribute__((noinline, noclone)) int through(int (*f)(int), int x) { return f(x + 1); }
int work(int x) { static volatile int sum; return sum += x; }
int main(int argc, char **argv) {
  return returns(argc) + jumps(argc) + links(argv[0]) + either(argc, argv[0]) + through(work, argc);
}`;

/** Parts of the functions with a site of which all exits must be found; what is there is a little more. */
const REAL: readonly (readonly [path: string, part: number])[] = [
  ['/usr/bin/node', 0.955],
  ['/usr/bin/redis-server', 0.97],
  ['/lib/x86_64-linux-gnu/libc.so.6', 0.97],
  ['/lib/x86_64-linux-gnu/libcrypto.so.3', 0.99],
  ['/usr/lib/x86_64-linux-gnu/libsqlite3.so.0', 0.96],
];

function exitsOf(bytes: Uint8Array, name: string): ReturnType<typeof analyseFunctions> {
  const elf = parseElf(bytes, name);
  const all = functionsOf(elf);
  return analyseFunctions(elf, all, all, undefined, true);
}

for (const flags of [['-O2'], ['-O2', '-fPIC', '-shared'], ['-O2', '-fcf-protection=full']]) {
  test(`each way to leave a function is found: ${flags.join(' ')}`, () => {
    const { candidates, exits } = exitsOf(compile(PROGRAM, ...flags), 'fixture');
    const kindsOf = (name: string): ExitKind[] => {
      const found = exits[candidates.findIndex((one) => one.function.name === name)];
      assert.ok(typeof found === 'object', name);
      const marks = [...found.entryExits, ...found.windows.flatMap((window) => window.exits)];
      return marks.map(({ kind }) => kind);
    };
    assert.deepEqual(kindsOf('returns'), ['return']);
    for (const name of ['jumps', 'links', 'through']) assert.deepEqual(kindsOf(name), ['tail'], name);
    assert.deepEqual(kindsOf('either'), ['tail', 'tail']);
  });
}

for (const [path, part] of REAL) {
  test(`nearly all functions of ${path} have exits`, () => {
    assert.ok(existsSync(path), `${path} is missing: run scripts/setup.sh`);
    const { exits } = exitsOf(new Uint8Array(readFileSync(realpathSync(path))), path);
    const found = exits.filter((one) => typeof one === 'object').length;
    assert.ok(found / exits.length >= part, `${found} of ${exits.length}`);
  });
}
