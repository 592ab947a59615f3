import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CallBuilder, KIND_BITS, KIND_ENTRY, KIND_EXIT, RECORD_WORDS, TscClock } from '../recording/index.js';
import type { CallVisitor } from '../recording/index.js';
import { SLOT_WORD, TSC_LOW_WORD, WHAT_WORD } from '../recording/index.js';
import { filterCalls } from './call-filter.js';

/** Calls as text, in the order in which they end, with parents by the order in which calls begin. */
class Listing implements CallVisitor {
  readonly ended: { name: string; depth: number; duration: number; self: number }[] = [];
  readonly open = new Set<number>();
  #calls = 0;

  onEnter(_lane: number, depth: number, _index: number, _tick: number, parentTag: number): number {
    assert.equal(parentTag === 0, depth === 0);
    if (parentTag !== 0) assert.ok(this.open.has(parentTag), 'a parent is told of before its children');
    this.open.add(++this.#calls);
    return this.#calls;
  }

  onLeave(
    _lane: number,
    depth: number,
    index: number,
    start: number,
    end: number,
    self: number,
    _end: number,
    tag: number,
    parentTag: number,
  ): void {
    assert.ok(this.open.delete(tag));
    assert.equal(parentTag === 0, depth === 0);
    this.ended.push({ name: `${index}@${start}`, depth, duration: end - start, self });
  }

  onLeaf(): number {
    return 0;
  }

  onLost(): void {
    // None are lost here.
  }
}

/** A walk: true enters, false leaves (nothing at the outermost); all is left at the end. */
const walks = fc.array(fc.record({ isEntry: fc.boolean(), wait: fc.nat(9) }), { maxLength: 80 });

function listingOf(walk: readonly { isEntry: boolean; wait: number }[], filter: object): Listing {
  const words: number[] = [];
  let depth = 0;
  let tick = 0;
  const put = (kind: number): void => {
    const record = new Array<number>(RECORD_WORDS).fill(0);
    record[TSC_LOW_WORD] = tick;
    record[WHAT_WORD] = (depth << KIND_BITS) | kind;
    record[SLOT_WORD] = 0x8000 - depth * 16;
    words.push(...record);
  };
  const leave = (): void => {
    depth--;
    put(KIND_EXIT);
  };
  for (const { isEntry, wait } of walk) {
    tick += wait;
    if (isEntry) {
      put(KIND_ENTRY);
      depth++;
    } else if (depth > 0) leave();
  }
  while (depth > 0) leave();
  const listing = new Listing();
  const builder = new CallBuilder('calls', new TscClock(0n, 1e9), filterCalls(listing, filter));
  builder.addRecords(0, new Uint32Array(words));
  builder.finish();
  assert.equal(listing.open.size, 0);
  assert.equal(builder.anomalies, 0);
  return listing;
}

test('a filter shows exactly the calls that it is to show, at their depth, each inside its parent', () => {
  fc.assert(
    fc.property(walks, fc.nat(30), fc.integer({ min: 1, max: 6 }), (walk, minTicks, maxDepth) => {
      const all = listingOf(walk, {}).ended;
      const shown = listingOf(walk, { minTicks, maxDepth }).ended;
      const strip = (calls: typeof all): unknown =>
        calls.map(({ name, depth, duration }) => ({ name, depth, duration }));
      assert.deepEqual(
        strip(shown),
        strip(all.filter(({ depth, duration }) => duration >= minTicks && depth < maxDepth)),
      );
    }),
  );
});

test('own times of what shows add up to the durations of the outermost calls that show', () => {
  fc.assert(
    fc.property(walks, fc.nat(30), fc.integer({ min: 1, max: 6 }), (walk, minTicks, maxDepth) => {
      const { ended } = listingOf(walk, { minTicks, maxDepth });
      const own = ended.reduce((sum, { self }) => sum + self, 0);
      const outermost = ended.filter(({ depth }) => depth === 0);
      assert.equal(
        own,
        outermost.reduce((sum, { duration }) => sum + duration, 0),
      );
    }),
  );
});
