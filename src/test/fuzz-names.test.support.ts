import assert from 'node:assert/strict';
import fc from 'fast-check';
import { demangle, isMangled, nearestNames, parsePattern, withoutArguments } from '../symbols/index.js';
import { LONGEST_DEMANGLED } from '../symbols/demangle.js';
import { demanglerBytes } from '../symbols/demangler.js';
import { isPlain, plain } from '../text/index.js';

/** Pieces of which names of all grammars are made. */
const PIECES = (
  '_Z _ZN _ZNK E N I S_ S0_ S1_ SA_ T_ T0_ X L cl cv dt DT Dt p sp J P R K F M A_ A1_ 1a 3foo i v Z Ul E_ UlvE_ St Sa C1 D0 fp_ fL0p_ ' +
  'sr on nw_ gs tl il pl Lj1E L_Z B3abi Dp U3foo TV 0_ Th GV W Ut_ Utl qu ix te rc sZ _R NvC NtC B_ B0_ Ba_ C T O Q u Kj1_ M Y D G_ ' +
  '17h0123456789abcdefE $LT$ .. .cold .cold.0 .constprop.0 .isra .part.1.2 ( ) [ ] < > :: operator'
).split(' ');
/** A compiler's suffix, and the brackets around it, come on top. */
const SUFFIXED = 2;

/** Checks what must hold of any name. */
export function checkName(name: string): void {
  const demangled = demangle(name);
  assert.ok(
    demangled === name || (isMangled(name) && demangled.length <= SUFFIXED * LONGEST_DEMANGLED),
    `${name} became ${demangled.length} characters`,
  );
  assert.ok(demanglerBytes() <= 2 << 20);
  assert.equal(demangle(name), demangled);
  assert.ok(demangled.startsWith(withoutArguments(demangled)));
  assert.ok(isPlain(plain(demangled)));
}

/** Names of C++ and Rust, and what only looks like them. */
export function fuzzNames(rounds: number, seed: number): void {
  const piece = fc.constantFrom(...PIECES);
  fc.assert(
    fc.property(
      fc.constantFrom('_Z', '_ZN', '_R', '_RNv', '_RINv', ''),
      fc.array(piece, { maxLength: 8 }),
      fc.array(piece, { minLength: 1, maxLength: 6 }),
      fc.nat(400),
      (start, head, unit, times) => {
        checkName(start + head.join('') + unit.join('').repeat(times));
        checkName(start + head.join('') + unit.join('').repeat(times) + 'E'.repeat(times));
        assert.equal(demangle('_ZN3foo3barEi'), 'foo::bar(int)');
      },
    ),
    { numRuns: rounds, seed },
  );
}

/** Patterns of the user's against names of the target's. */
export function fuzzPatterns(rounds: number, seed: number): void {
  const name = fc.string({
    unit: fc.constantFrom('a', 'b', '*', '[', ']', '\\', '\n', '\u202e'),
    maxLength: 200,
  });
  fc.assert(
    fc.property(
      fc.array(name, { maxLength: 20 }),
      fc.string({ unit: fc.constantFrom('*', '?', 'a', 'b'), minLength: 1 }),
      (names, glob) => {
        const pattern = parsePattern(glob);
        const expression = new RegExp(
          `^${glob.replace(/\*+/g, '*').replaceAll('?', '[^]').replaceAll('*', '[^]*')}$`,
        );
        for (const each of names.map((n) => n.slice(0, 12)))
          assert.equal(pattern.matchesName(each), expression.test(each));
        for (const each of nearestNames(glob, names)) assert.ok(names.includes(each));
      },
    ),
    { numRuns: rounds, seed },
  );
}
