import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { planChanges } from './planned-changes.js';

const SITE = 5;

test('spans make the whole change, and none cuts a site that changes', () => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          gap: fc.integer({ min: 0, max: 900 }),
          bytes: fc.uint8Array({ minLength: SITE, maxLength: SITE }),
        }),
        {
          maxLength: 60,
        },
      ),
      (sites) => {
        const length = sites.reduce((sum, { gap }) => sum + gap + SITE, 10);
        const before = new Uint8Array(length).fill(0x90);
        const after = before.slice();
        const starts: number[] = [];
        let at = 0;
        for (const { gap, bytes } of sites) {
          at += gap;
          after.set(bytes, at);
          starts.push(at);
          at += SITE;
        }
        const result = before.slice();
        const spans = [...planChanges(1000, before, after)];
        for (const span of spans) {
          const from = span.address - 1000;
          assert.deepEqual(span.before, before.subarray(from, from + span.before.length));
          result.set(span.after, from);
          const to = from + span.after.length;
          for (const start of starts) {
            for (const edge of [from, to]) {
              const left = [...before.subarray(start, edge)].some((byte, i) => byte !== after[start + i]);
              const right = [...before.subarray(edge, start + SITE)].some(
                (byte, i) => byte !== after[edge + i],
              );
              assert.ok(!(start < edge && edge < start + SITE && left && right), `${edge} cuts ${start}`);
            }
          }
        }
        assert.deepEqual(result, after);
      },
    ),
  );
});

test('nothing is changed where nothing differs', () => {
  const bytes = new Uint8Array(10_000);
  assert.deepEqual([...planChanges(0, bytes, bytes)], []);
});

test('a change in which no span could end but within a site is refused', () => {
  const before = new Uint8Array(20_000);
  const after = before.slice().fill(1);
  assert.throws(() => [...planChanges(0, before, after)], { code: 'MEMORY' });
  assert.equal([...planChanges(0, before.subarray(0, 12_000), after.subarray(0, 12_000))].length, 1);
});
