import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
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
