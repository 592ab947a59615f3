import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { UsageError } from '../errors/index.js';
import { matches, nearestNames, parsePattern, type FunctionSymbol } from './index.js';

function called(...names: string[]): FunctionSymbol {
  return {
    name: names[0],
    demangled: names[0],
    aliases: names.slice(1),
    names,
    address: 0n,
    addressNumber: 0,
    size: 1,
    sizeKnown: true,
    kind: 'function',
    fragmentOf: undefined,
    global: true,
    module: 'libc.so.6',
  };
}

const decisions: [pattern: string, name: string, selected: boolean][] = [
  ['malloc', 'malloc', true],
  ['malloc', 'mallocx', false],
  ['call*', 'callCommand', true],
  ['call*', 'recall', false],
  ['*Command*', 'processCommandAndReset', true],
  ['get?', 'getc', true],
  ['get?', 'get', false],
  ['[a-cx]y', 'by', true],
  ['[a-cx]y', 'xy', true],
  ['[a-cx]y', 'dy', false],
  ['[!a-c]y', 'dy', true],
  ['[!a-c]y', 'ay', false],
  ['foo\\[abi\\]', 'foo[abi]', true],
  ['*', 'anything', true],
  ['/^call/', 'callCommand', true],
  ['/command$/i', 'callCommand', true],
  ['/command$/', 'callCommand', false],
  ['libc.so.6!malloc', 'malloc', true],
  ['libc*!m*', 'malloc', true],
  ['libm*!malloc', 'malloc', false],
  ['*!malloc', 'malloc', true],
  ['libc.so.6!/^MAL/i', 'malloc', true],
  ['foo::bar', '_ZN3foo3barEi', true],
  ['foo::bar(int)', '_ZN3foo3barEi', true],
  ['foo::bar(long)', '_ZN3foo3barEi', false],
  ['_ZN3foo*', '_ZN3foo3barEi', true],
  ['foo::*', '_ZN3foo3barEi', true],
  ['operator!', '_ZntR1A', true],
  ['operator!=', '_ZneR1AS0_', true],
];

for (const [pattern, name, selected] of decisions) {
  test(`'${pattern}' ${selected ? 'selects' : 'does not select'} ${name}`, () => {
    assert.equal(matches(parsePattern(pattern), called(name)), selected);
  });
}

test('a pattern selects a function by any of its names', () => {
  assert.ok(matches(parsePattern('__libc_malloc'), called('malloc', '__libc_malloc')));
});

for (const bad of [
  '',
  '!',
  'libc!',
  '!malloc',
  '[abc',
  'a\\',
  '[z-a]',
  '/(/',
  '//',
  '/a',
  '/a/g',
  '/a/ii',
  'x!/(/',
]) {
  test(`'${bad}' is a usage error that says what to write`, () => {
    assert.throws(
      () => parsePattern(bad),
      (error) => error instanceof UsageError && error.code === 'bad-pattern' && error.message.includes(bad),
    );
  });
}

test('any text is a pattern or a usage error', () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), (text, name) => {
      try {
        parsePattern(text).matchesName(name);
      } catch (error) {
        if (!(error instanceof UsageError)) throw error;
      }
    }),
  );
});

test('a name with every special character escaped selects exactly itself', () => {
  fc.assert(
    fc.property(fc.string({ minLength: 1 }), fc.string(), (name, other) => {
      const pattern = parsePattern(`*!${name.replace(/[*?[\]\\!]/g, '\\$&').replace(/^\//, '\\/')}`);
      assert.ok(pattern.matchesName(name));
      assert.equal(pattern.matchesName(other), other === name);
    }),
  );
});

test('many stars do not take exponential time', () => {
  const pattern = parsePattern(`${'*a'.repeat(40)}*b`);
  assert.equal(pattern.matchesName('a'.repeat(5000)), false);
});

test('the nearest names contain what was asked for, or resemble it', () => {
  const names = ['processCommand', 'processCommandAndReset', 'procesCommand', 'call', 'unrelated'];
  assert.deepEqual(nearestNames('procesCommand', names), ['procesCommand', 'processCommand']);
  assert.deepEqual(nearestNames('redis!*processcommand', names), [
    'processCommand',
    'processCommandAndReset',
    'procesCommand',
  ]);
  assert.deepEqual(nearestNames('clal', names), ['call']);
  assert.deepEqual(nearestNames('zzzzzz', names), []);
  assert.deepEqual(nearestNames('*', names), []);
});

test('no name makes an expression take longer than its length', { timeout: 60_000 }, () => {
  // Each took minutes: one that tries every way to match is limited by the test's time, and one that does not by nothing.
  for (const [pattern, name] of [
    ['/(x+x+)+y/', 'x'.repeat(1000)],
    ['/(x+x+)+y/', 'x'.repeat(100_000)],
    ['/foo.*bar/', 'foo'.repeat(100_000)],
    ['/FOO.*b.*r$/i', 'foob'.repeat(100_000)],
    ['/^(?!y)(?=x).*x.*y/', 'x'.repeat(1_000_000)],
  ] as const)
    assert.equal(matches(parsePattern(pattern), called(name)), false);
  assert.ok(matches(parsePattern('/o{2}b.*baz$/'), called(`${'foo'.repeat(1000)}bar${'x'.repeat(9000)}baz`)));
});

test('where case does not matter, or an expression looks ahead or back, it looks at the beginning of a long name', () => {
  assert.ok(matches(parsePattern('/^(?!g)f.*(.)\\1/'), called(`f${'ab'.repeat(100)}xx${'c'.repeat(9000)}`)));
  assert.ok(matches(parsePattern('/^FO/i'), called(`fo${'c'.repeat(9000)}`)));
});
