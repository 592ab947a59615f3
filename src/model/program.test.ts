import { test } from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { nmi2008, nmiOneWord, protocols } from '../protocol/index.js';
import { compile, defaultMachine, foldWord, passes, scenarios, twoSites } from './index.js';

const FLAG = 0x8000_0000;
const AWARE = 0x1_0000;
const counts = fc.record({ flag: fc.boolean(), aware: fc.nat(7), inside: fc.nat(15) });
const word = (w: { flag: boolean; aware: number; inside: number }): number =>
  (w.flag ? FLAG : 0) + w.aware * AWARE + w.inside;

test('folding 32 bits into 8 keeps additions to each field', () => {
  fc.assert(
    fc.property(counts, (w) => {
      const folded = foldWord(word(w));
      if (w.inside < 15) assert.equal((folded + foldWord(1)) & 0xff, foldWord(word(w) + 1));
      if (w.aware < 7) assert.equal((folded + foldWord(AWARE)) & 0xff, foldWord(word(w) + AWARE));
      if (w.aware > 0) assert.equal((folded + foldWord(-AWARE)) & 0xff, foldWord(word(w) - AWARE));
      const other = w.flag ? -FLAG : FLAG;
      assert.equal((folded + foldWord(other)) & 0xff, foldWord(word(w) + other));
    }),
  );
});

test('folding keeps every test of bits that a protocol makes', () => {
  fc.assert(
    fc.property(counts, fc.constantFrom(FLAG, 0xffff, 0x7fff_0000, 0x7fff_ffff), (w, mask) => {
      const set = (BigInt(word(w)) & BigInt(mask)) !== 0n;
      assert.equal(passes(foldWord(word(w)), 'any-set', foldWord(mask)), set);
      assert.equal(passes(foldWord(word(w)), 'none-set', foldWord(mask)), !set);
    }),
  );
});

test('folding keeps error numbers apart from each other and from 0', () => {
  const folded = [0, -1, -14, -22].map(foldWord);
  assert.equal(new Set(folded).size, 4);
});

test('every protocol compiles with every scenario', () => {
  for (const protocol of protocols)
    for (const scenario of scenarios) {
      const program = compile(protocol, defaultMachine, scenario);
      for (const i of program.instructions) assert.ok(i.next < program.instructions.length);
    }
});

test('statistics are left out of the model', () => {
  const program = compile(nmiOneWord, defaultMachine, twoSites);
  assert.ok(!program.cells.some((c) => c.kind === 'word' && c.name === 'nmi_update_count'));
});

test('a protocol that is not well formed is refused', () => {
  const routines = nmi2008.routines.map((r) =>
    r.name === 'wait_for_nmi' ? { name: r.name, operations: [{ op: 'jump' as const, to: 'nowhere' }] } : r,
  );
  assert.throws(() => compile({ ...nmi2008, routines }, defaultMachine, twoSites), /no label nowhere/);
  const selfCalling = nmi2008.routines.map((r) =>
    r.name === 'wait_for_nmi'
      ? { name: r.name, operations: [{ op: 'call' as const, routine: 'wait_for_nmi' }] }
      : r,
  );
  assert.throws(
    () => compile({ ...nmi2008, routines: selfCalling }, defaultMachine, twoSites),
    /calls itself/,
  );
});
