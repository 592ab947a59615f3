import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseElf } from '../elf/index.js';
import { compile, compileCpp } from '../elf/gcc.test.support.js';
import { functionAt, functionsOf, type FunctionSymbol } from './index.js';

function named(functions: readonly FunctionSymbol[], name: string): FunctionSymbol {
  const found = functions.find((candidate) => candidate.names.includes(name));
  assert.ok(found, name);
  return found;
}

test('the symbols at one address become one function under its best name', () => {
  const source = `
    int __internal(int x) { return x + 1; }
    int plain(int x) __attribute__((alias("__internal")));
    int weaker(int x) __attribute__((weak, alias("__internal")));
    int main(void) { return plain(1); }`;
  const functions = functionsOf(parseElf(compile(source, '-rdynamic'), '/somewhere/prog'));
  const plain = named(functions, 'plain');
  assert.equal(plain.name, 'plain');
  assert.deepEqual(plain.aliases, ['weaker', '__internal']);
  assert.equal(plain.module, 'prog');
  assert.equal(plain.global, true);
  assert.equal(functions.filter((candidate) => candidate.names.includes('plain')).length, 1);
});

test('functions ascend by address, and an address finds its function', () => {
  const functions = functionsOf(
    parseElf(compile('int f(int x) { return x; } int main(void) { return f(0); }'), 'p'),
  );
  for (let i = 1; i < functions.length; i++) assert.ok(functions[i - 1].address < functions[i].address);
  const main = named(functions, 'main');
  assert.equal(functionAt(functions, main.address), main);
  assert.equal(functionAt(functions, main.address + BigInt(main.size) - 1n), main);
  assert.notEqual(functionAt(functions, main.address + BigInt(main.size)), main);
  assert.equal(functionAt(functions, 0n), undefined);
});

test('a function without a size reaches to the next one', () => {
  const source = `
    __asm__(".globl unsized\\n.type unsized,@function\\nunsized: nop\\nnop\\nret\\n"
            ".globl after\\n.type after,@function\\nafter: ret\\n.size after,1\\n");
    int main(void) { return 0; }`;
  const unsized = named(functionsOf(parseElf(compile(source), 'p')), 'unsized');
  assert.equal(unsized.size, 3);
  assert.equal(unsized.sizeKnown, false);
});

test('cold parts are fragments of their function; clones are functions', () => {
  const source = `
    extern void abort(void); extern int printf(const char *, ...);
    __attribute__((cold, noinline)) void fail(int x) { printf("%d", x); abort(); }
    __attribute__((noinline)) int work(int x) { if (__builtin_expect(x < 0, 0)) { fail(x); printf("no"); } return x * 3; }
    __attribute__((noinline)) static int scaled(int x, int by) { printf("%d", x); return x * by; }
    int main(int argc, char **argv) { return work(argc) + scaled(argc, 7) + scaled(argc + 1, 7); }`;
  const functions = functionsOf(parseElf(compile(source, '-O2'), 'p'));
  const cold = named(functions, 'work.cold');
  assert.equal(cold.kind, 'fragment');
  assert.equal(cold.fragmentOf, 'work');
  const clone = functions.find((candidate) => candidate.name.startsWith('scaled.'));
  assert.equal(clone?.kind, 'function');
});

test('an indirect function is told from an ordinary one', () => {
  const source = `
    int real(int x) { return x; }
    void *choose(void) { return (void *)real; }
    int chosen(int) __attribute__((ifunc("choose")));
    int main(void) { return chosen(0); }`;
  const functions = functionsOf(parseElf(compile(source), 'p'));
  assert.equal(named(functions, 'chosen').kind, 'ifunc');
  assert.equal(named(functions, 'real').kind, 'function');
});

test('C++ names are shown as a person writes them', () => {
  const source =
    'namespace a { struct B { int c(int) const; }; int B::c(int x) const { return x; } } int main() {}';
  const functions = functionsOf(parseElf(compileCpp(source), 'p'));
  assert.equal(named(functions, '_ZNK1a1B1cEi').demangled, 'a::B::c(int) const');
});
