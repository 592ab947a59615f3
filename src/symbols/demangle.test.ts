import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { demanglerBytes } from './demangler.js';
import { demangle, withoutArguments } from './index.js';

const cases: [mangled: string, demangled: string, short: string][] = [
  ['malloc', 'malloc', 'malloc'],
  ['_start', '_start', '_start'],
  ['_ZN3foo3barEi', 'foo::bar(int)', 'foo::bar'],
  ['_ZNK3Foo3barIiEEvT_', 'Foo::bar<int>(int) const', 'Foo::bar<int>'],
  ['_ZN12_GLOBAL__N_14funcEv', '(anonymous namespace)::func()', '(anonymous namespace)::func'],
  ['_ZN1AclEi', 'A::operator()(int)', 'A::operator()'],
  ['_ZN1AcvbEv', 'A::operator bool()', 'A::operator bool'],
  ['_ZlsR1AS0_', 'operator<<(A&, A&)', 'operator<<'],
  ['_Znwm', 'operator new(unsigned long)', 'operator new'],
  ['_ZN3foo3barEi.constprop.0', 'foo::bar(int) [.constprop.0]', 'foo::bar'],
  ['_ZN3fooD1Ev.cold', 'foo::~foo() [.cold]', 'foo::~foo'],
  ['_ZN3foo3bar17h05af221e174051e9E', 'foo::bar', 'foo::bar'],
  ['_RNvCs1234_7mycrate3foo', 'mycrate::foo', 'mycrate::foo'],
  ['_Zbad', '_Zbad', '_Zbad'],
];

for (const [mangled, demangled, short] of cases) {
  test(`${mangled} is shown as ${demangled}`, () => {
    assert.equal(demangle(mangled), demangled);
    assert.equal(withoutArguments(demangled), short);
  });
}

test('a name that is mangled wrongly is shown as it is, and hurts nothing', () => {
  const letters = fc.stringMatching(/^[A-Za-z0-9_$.]{0,40}$/);
  fc.assert(
    fc.property(fc.constantFrom('_Z', '_ZN', '_R', '_RNv', '_ZNK3foo'), letters, (start, rest) => {
      withoutArguments(demangle(start + rest));
      assert.equal(demangle('_ZN3foo3barEi'), 'foo::bar(int)');
    }),
    { numRuns: 2000 },
  );
});

/** void f(P<int, int>, P<that, that>, P<that, that>, ...): each type names the one before it twice. */
function itaniumBomb(levels: number): string {
  const reference = (n: number): string => (n === 0 ? 'S_' : `S${(n - 1).toString(36).toUpperCase()}_`);
  let name = '_Z1f1PIiiE';
  for (let level = 1; level < levels; level++) name += `S_I${reference(level)}${reference(level)}E`;
  return name;
}

/** The same in Rust's v0 scheme: tuples of what stood at a byte of the name before. */
function rustBomb(levels: number): string {
  const digits = '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ';
  const reference = (at: number): string => {
    if (at === 0) return 'B_';
    let left = at - 1;
    let made = '';
    do {
      made = digits[left % 62] + made;
      left = Math.floor(left / 62);
    } while (left > 0);
    return `B${made}_`;
  };
  let name = 'INvC1a1f';
  let last = name.length;
  name += 'TaaE';
  for (let level = 1; level < levels; level++) {
    const at = name.length;
    name += `T${reference(last)}${reference(last)}E`;
    last = at;
  }
  return `_R${name}E`;
}

test('a name that stands for too much is shown as it is, costs bounded memory, and the next name is read', () => {
  for (const bomb of [itaniumBomb, rustBomb]) {
    assert.notEqual(demangle(bomb(5)), bomb(5));
    for (const levels of [12, 16, 22, 40, 200]) {
      assert.equal(demangle(bomb(levels)), bomb(levels));
      assert.ok(demanglerBytes() <= 2 << 20);
      assert.equal(
        demangle(`_ZN3foo3barE${'i'.repeat(levels)}`),
        `foo::bar(${Array(levels).fill('int').join(', ')})`,
      );
    }
  }
});

test('where names that stand for too much are many, what resembles them is no longer tried, and the rest is', () => {
  const resembles = (n: number): string => `_ZN3foo3barE${'S_'.repeat(n)}`;
  assert.equal(demangle(resembles(10)), `foo::bar(${Array(10).fill('foo').join(', ')})`);
  for (let i = 0; i < 150; i++) {
    const name = `${itaniumBomb(22)}${'v'.repeat(i)}`;
    assert.equal(demangle(name), name);
  }
  assert.equal(demangle(resembles(11)), resembles(11));
  assert.equal(demangle(resembles(4)), 'foo::bar(foo, foo, foo, foo)');
});
