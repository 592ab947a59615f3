import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CallBuilder } from './call-builder.js';
import { CallObjects } from './call.js';
import type { Call } from './call.js';
import {
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  KIND_LOST,
  LOST_NOT_KEPT,
  RECORD_WORDS,
  SLOT_WORD,
  TSC_HIGH_WORD,
  TSC_LOW_WORD,
  WHAT_WORD,
} from './record-layout.js';
import { RecordingReader } from './recording-reader.js';
import { SyntheticRecording } from './synthetic.test.support.js';
import { TraceInfo } from './trace-info.js';

interface Built {
  readonly calls: Call[];
  readonly lines: string[];
  readonly lost: number[];
  readonly builder: CallBuilder;
}

function build(recording: SyntheticRecording): Built {
  const calls: Call[] = [];
  const lost: number[] = [];
  let parts: { info: TraceInfo; builder: CallBuilder } | undefined;
  const reader = new RecordingReader('it', {
    onHeader: (header) => {
      const info = new TraceInfo(header);
      const objects = new CallObjects(
        info,
        (call) => calls.push(call),
        (_lane, records) => lost.push(records),
      );
      parts = { info, builder: new CallBuilder(header.mode, info.clock, objects) };
    },
    onRecords: (lane, words) => parts?.builder.addRecords(lane, words),
    onMessage: (message) => {
      parts?.info.accept(message);
      if (message.kind === 'thread-end') parts?.builder.endLane(message.lane);
      if (message.kind === 'lost') parts?.builder.addLost(message.lane, message.records);
    },
  });
  reader.push(recording.bytes());
  reader.finish();
  assert.ok(parts !== undefined);
  parts.builder.finish();
  const lines = calls.map(
    (call) =>
      `${path(call)} ${call.start}+${call.duration ?? '?'} self ${call.selfTime ?? '?'} ${call.end ?? '?'}`,
  );
  return { calls, lines, lost, builder: parts.builder };
}

function path(call: Call): string {
  const name = call.function.name;
  return call.parent === undefined ? name : `${path(call.parent)}/${name}`;
}

test('calls nest, and a duration is the time from entry to exit', () => {
  const { lines, builder } = build(
    new SyntheticRecording()
      .enter(0, 100, 'main')
      .enter(0, 110, 'parse')
      .enter(0, 120, 'read')
      .leave(0, 150)
      .leave(0, 160)
      .enter(0, 170, 'parse')
      .leave(0, 175)
      .leave(0, 200),
  );
  assert.deepEqual(lines, [
    'main/parse/read 120+30 self 30 returned',
    'main/parse 110+50 self 20 returned',
    'main/parse 170+5 self 5 returned',
    'main 100+100 self 45 returned',
  ]);
  assert.equal(builder.anomalies, 0);
  assert.equal(builder.records, 8);
});

test('lanes are apart from each other', () => {
  const { lines } = build(
    new SyntheticRecording()
      .enter(0, 100, 'a')
      .enter(1, 110, 'b')
      .leave(0, 120)
      .enter(1, 130, 'a')
      .leave(1, 140)
      .leave(1, 150),
  );
  assert.deepEqual(lines, [
    'a 100+20 self 20 returned',
    'b/a 130+10 self 10 returned',
    'b 110+40 self 30 returned',
  ]);
});

test('a call that was unwound ends where that was noticed', () => {
  const { lines } = build(
    new SyntheticRecording()
      .enter(0, 0, 'main')
      .enter(0, 10, 'try')
      .enter(0, 20, 'throw')
      .unwind(0, 30)
      .unwind(0, 30)
      .leave(0, 40),
  );
  assert.deepEqual(lines, [
    'main/try/throw 20+10 self 10 unwound',
    'main/try 10+20 self 10 unwound',
    'main 0+40 self 20 returned',
  ]);
});

test('calls on another stack may end out of order; those that outlive their parent get the next one', () => {
  const recording = new SyntheticRecording()
    .enter(0, 0, 'loop', 0x9000)
    .enter(0, 10, 'first', 0x2000)
    .enter(0, 20, 'second', 0x4000)
    .record(0, 30, KIND_EXIT, 'first', 0x2000)
    .record(0, 45, KIND_EXIT, 'second', 0x4000)
    .record(0, 50, KIND_EXIT, 'loop', 0x9000);
  const { lines, builder } = build(recording);
  assert.deepEqual(lines, [
    'loop/first 10+20 self 10 returned',
    'loop/second 20+25 self 25 returned',
    'loop 0+50 self 15 returned',
  ]);
  assert.equal(builder.anomalies, 0);
});

test('calls that are open at the end last until the latest time that was seen, or until their thread ended', () => {
  const { lines } = build(
    new SyntheticRecording()
      .enter(0, 0, 'main')
      .enter(0, 10, 'wait')
      .enter(1, 20, 'worker')
      .enter(1, 30, 'job')
      .message({ kind: 'thread-end', lane: 1 })
      .enter(2, 90, 'other')
      .leave(2, 100),
  );
  assert.deepEqual(lines, [
    'worker/job 30+0 self 0 open',
    'worker 20+10 self 10 open',
    'other 90+10 self 10 returned',
    'main/wait 10+90 self 90 open',
    'main 0+100 self 10 open',
  ]);
});

test('calls whose ends were lost are closed when a frame in their place shows that they are gone', () => {
  const { lines, lost, builder } = build(
    new SyntheticRecording()
      .enter(0, 0, 'main', 0x9000)
      .enter(0, 10, 'a', 0x8000)
      .enter(0, 20, 'b', 0x7000)
      .lost(0, 30, 2)
      .record(0, 40, KIND_ENTRY, 'c', 0x8000)
      .record(0, 50, KIND_EXIT, 'c', 0x8000)
      .record(0, 60, KIND_EXIT, 'main', 0x9000),
  );
  assert.deepEqual(lines, [
    'main/a/b 20+20 self 20 lost',
    'main/a 10+30 self 10 lost',
    'main/c 40+10 self 10 returned',
    'main 0+60 self 20 returned',
  ]);
  assert.deepEqual(lost, [2]);
  assert.equal(builder.lost, 2);
  assert.equal(builder.anomalies, 0);
});

test('an exit of a call whose callees lost their exits closes them too', () => {
  const { lines } = build(
    new SyntheticRecording()
      .enter(0, 0, 'main', 0x9000)
      .enter(0, 10, 'a', 0x8000)
      .lost(0, 30, 1)
      .record(0, 60, KIND_EXIT, 'main', 0x9000),
  );
  assert.deepEqual(lines, ['main/a 10+50 self 50 lost', 'main 0+60 self 10 returned']);
});

test('an exit without an entry is an anomaly, unless records were lost', () => {
  const stray = new SyntheticRecording().record(0, 10, KIND_EXIT, 'a', 0x9000);
  assert.equal(build(stray).builder.anomalies, 1);
  const excused = new SyntheticRecording().lost(0, 5, 1).record(0, 10, KIND_EXIT, 'a', 0x9000);
  assert.equal(build(excused).builder.anomalies, 0);
});

test('losses that only a message tells of are counted', () => {
  const { lost, builder } = build(
    new SyntheticRecording().enter(3, 1, 'a').message({ kind: 'lost', lane: 3, records: 77 }),
  );
  assert.deepEqual(lost, [77]);
  assert.equal(builder.lost, 77);
});

test('a leaf is a point inside the open calls', () => {
  const { lines } = build(new SyntheticRecording().enter(0, 0, 'main').leaf(0, 10, 'odd', 0x10).leave(0, 20));
  assert.deepEqual(lines, ['main/odd 10+? self ? entry-only', 'main 0+20 self 20 returned']);
});

test('in entries mode the depth follows from the slots', () => {
  const { calls, lines } = build(
    new SyntheticRecording('entries')
      .leaf(0, 0, 'main', 0x9000)
      .leaf(0, 1, 'a', 0x8000)
      .leaf(0, 2, 'b', 0x7000)
      .leaf(0, 3, 'c', 0x7000)
      .leaf(0, 4, 'd', 0x8000),
  );
  assert.deepEqual(
    calls.map((call) => call.depth),
    [0, 1, 2, 2, 1],
  );
  assert.deepEqual(
    lines.map((line) => line.split(' ')[0]),
    ['main', 'main/a', 'main/a/b', 'main/a/c', 'main/d'],
  );
});

test('a counter that goes back a little makes time stand still', () => {
  const { lines } = build(
    new SyntheticRecording().enter(0, 100, 'main').enter(0, 90, 'a').leave(0, 95).leave(0, 120),
  );
  assert.deepEqual(lines, ['main/a 100+0 self 0 returned', 'main 100+20 self 20 returned']);
});

/** A call tree: a function, and the calls inside it. */
interface Tree {
  readonly name: string;
  readonly calls: readonly Tree[];
}

const { tree } = fc.letrec<{ tree: Tree }>((tie) => ({
  tree: fc.record({
    name: fc.constantFrom('f', 'g', 'h'),
    calls: fc.oneof({ depthSize: 'small' }, fc.constant([]), fc.array(tie('tree'), { maxLength: 4 })),
  }),
}));

test('any tree of calls comes back as it was, with own times that add up to the time of the tree', () => {
  fc.assert(
    fc.property(tree, fc.integer({ min: 1, max: 9 }), (root, step) => {
      const recording = new SyntheticRecording();
      const expected: string[] = [];
      let tick = 0;
      const walk = (node: Tree, above: string): void => {
        const name = above === '' ? node.name : `${above}/${node.name}`;
        recording.enter(0, (tick += step), node.name);
        for (const call of node.calls) walk(call, name);
        recording.leave(0, (tick += step));
        expected.push(name);
      };
      walk(root, '');
      const { calls } = build(recording);
      assert.deepEqual(calls.map(path), expected);
      const selfTimes = calls.reduce((sum, call) => sum + (call.selfTime ?? 0n), 0n);
      assert.equal(selfTimes, calls.at(-1)?.duration);
      for (const { parent, start, duration } of calls)
        if (parent !== undefined)
          assert.ok(start >= parent.start && (duration ?? 0n) <= (parent.duration ?? 0n));
    }),
  );
});

test('any records at all give durations that are never negative nor longer than the open time of the lane', () => {
  const record = fc.record({
    kind: fc.integer({ min: 0, max: 15 }),
    index: fc.integer({ min: 0, max: 3 }),
    slot: fc.constantFrom(0, 0x1000, 0x2000, 0x3000, 0xffff_f000),
    tick: fc.nat(1000),
  });
  fc.assert(
    fc.property(
      fc.array(record, { maxLength: 60 }),
      fc.constantFrom('calls' as const, 'entries' as const),
      (records, mode) => {
        const words = new Uint32Array(records.length * RECORD_WORDS);
        records.forEach(({ kind, index, slot, tick }, i) => {
          words[i * RECORD_WORDS + TSC_LOW_WORD] = tick;
          words[i * RECORD_WORDS + TSC_HIGH_WORD] = 0;
          words[i * RECORD_WORDS + WHAT_WORD] = (index << KIND_BITS) | kind;
          words[i * RECORD_WORDS + SLOT_WORD] = slot;
        });
        const info = new TraceInfo({
          pid: 1,
          command: [],
          startTime: '',
          mode,
          tscHz: 1e9,
          startTsc: '0',
        });
        let entered = 0;
        let left = 0;
        let selfSum = 0;
        const builder = new CallBuilder(mode, info.clock, {
          onEnter: () => ++entered,
          onLeave: (_lane, depth, _index, start, end, self) => {
            left++;
            selfSum += self;
            assert.ok(depth >= 0 && start <= end && self >= 0 && self <= end - start);
          },
          onLeaf: () => 0,
          onLost: () => undefined,
        });
        builder.addRecords(0, words);
        builder.finish();
        assert.equal(left, entered);
        const calls: Call[] = [];
        const objects = new CallBuilder(mode, info.clock, new CallObjects(info, (call) => calls.push(call)));
        objects.addRecords(0, words);
        objects.finish();
        for (const { parent, start, duration, selfTime, depth } of calls) {
          assert.equal(depth === 0, parent === undefined);
          assert.ok((selfTime ?? 0n) <= (duration ?? 0n));
          if (parent?.duration !== undefined)
            assert.ok(start >= parent.start && start + (duration ?? 0n) <= parent.start + parent.duration);
        }
        assert.ok(selfSum <= 1000);
        const entries = records.filter(({ kind }) => kind === KIND_ENTRY).length;
        assert.equal(entered, mode === 'calls' ? entries : 0);
        const losses = records.filter(({ kind }) => kind === KIND_LOST);
        const sumOf = (some: typeof losses): number => some.reduce((sum, { slot }) => sum + slot, 0);
        assert.equal(builder.notKept, sumOf(losses.filter(({ index }) => index === LOST_NOT_KEPT)));
        assert.equal(builder.lost + builder.notKept, sumOf(losses));
      },
    ),
    { numRuns: 1000 },
  );
});
