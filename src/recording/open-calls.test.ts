import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FORMER_VERSION } from './file-layout.js';
import {
  CallBuilder,
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  RECORD_WORDS,
  TscClock,
  type CallVisitor,
} from './index.js';

interface Event {
  readonly depth: number;
  readonly functionIndex: number;
  readonly tag: number;
  readonly parentTag: number;
  readonly self: number;
}

/** The events of a builder, and how many of its records made no sense. */
function built(words: Uint32Array): { readonly events: readonly Event[]; readonly anomalies: number } {
  const events: Event[] = [];
  let tags = 0;
  const visitor: CallVisitor = {
    onEnter: () => ++tags,
    onLeave: (_lane, depth, functionIndex, _start, _end, self, _how, tag, parentTag) => {
      events.push({ depth, functionIndex, tag, parentTag, self });
    },
    onLeaf: () => 0,
    onLost: () => undefined,
  };
  // Of the former version, in which a slot may belong to any number of open calls.
  const builder = new CallBuilder('calls', new TscClock(0n, 1e9), visitor, { version: FORMER_VERSION });
  builder.addRecords(0, words);
  return { events, anomalies: builder.anomalies };
}

interface Wanted {
  readonly functionIndex: number;
  readonly slot: number;
  readonly isEnd: boolean;
}

function wordsOf(records: readonly Wanted[]): Uint32Array {
  const words = new Uint32Array(records.length * RECORD_WORDS);
  records.forEach(({ functionIndex, slot, isEnd }, i) => {
    words.set(
      [i, 0, (functionIndex << KIND_BITS) | (isEnd ? KIND_EXIT : KIND_ENTRY), slot],
      i * RECORD_WORDS,
    );
  });
  return words;
}

/** The same as slowly and plainly as can be. */
function plainly(records: readonly Wanted[]): ReturnType<typeof built> {
  const open: { functionIndex: number; slot: number; tag: number; self: number }[] = [];
  const events: Event[] = [];
  let tags = 0;
  let anomalies = 0;
  records.forEach(({ functionIndex, slot, isEnd }, i) => {
    const top = open.at(-1);
    if (top !== undefined && i > 0) top.self++;
    if (!isEnd) {
      open.push({ functionIndex, slot, tag: ++tags, self: 0 });
      return;
    }
    const depth = open.findLastIndex((call) => call.functionIndex === functionIndex && call.slot === slot);
    if (depth < 0) {
      anomalies++;
      return;
    }
    const parentTag = depth === 0 ? 0 : open[depth - 1].tag;
    const [{ tag, self }] = open.splice(depth, 1);
    events.push({ depth, functionIndex, tag, parentTag, self });
  });
  return { events, anomalies };
}

test('calls that end in any order, among many or few, are those that a plain list tells of', () => {
  const record = fc.record({
    functionIndex: fc.nat(3),
    slot: fc.nat(40),
    isEnd: fc.boolean(),
  });
  const rising = fc.array(
    fc.record({ functionIndex: fc.nat(3), slot: fc.nat(400), isEnd: fc.constant(false) }),
    {
      minLength: 60,
      maxLength: 400,
    },
  );
  const any = fc.array(record, { maxLength: 300 });
  fc.assert(
    fc.property(rising, any, rising, any, fc.boolean(), (up, mixed, again, rest, isDrained) => {
      const ends = [...up, ...again].map((each) => ({ ...each, isEnd: true }));
      const records = [...up, ...mixed, ...again, ...rest, ...(isDrained ? ends : ends.reverse()), ...mixed];
      assert.deepEqual(built(wordsOf(records)), plainly(records));
    }),
    { numRuns: 200, seed: 1 },
  );
});

test('however many calls are open, one that ends below them is found', () => {
  const calls = 200_000;
  const of = (isEnd: boolean): Wanted[] =>
    Array.from({ length: calls }, (_, i) => ({ functionIndex: i % 7, slot: 16 * i, isEnd }));
  const { events, anomalies } = built(wordsOf(of(false).concat(of(true))));
  assert.equal(anomalies, 0);
  assert.equal(events.length, calls);
  assert.ok(events.every(({ depth, parentTag }) => depth === 0 && parentTag === 0));
});
