import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CallBuilder, builderOptions } from './call-builder.js';
import { CallObjects } from './call.js';
import type { Call } from './call.js';
import {
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  KIND_LOST,
  KIND_TAIL,
  KIND_UNWOUND,
  LOST_NOT_KEPT,
  RECORD_WORDS,
  SLOT_WORD,
  TSC_HIGH_WORD,
  TSC_LOW_WORD,
  WHAT_WORD,
} from './record-layout.js';
import { FORMER_VERSION } from './file-layout.js';
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
      parts = {
        info,
        builder: new CallBuilder(header.mode, info.clock, objects, builderOptions(info, true)),
      };
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
      .thread(0, 1, '')
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

test('an exit without an entry, of a call that began before the trace, is left out', () => {
  const stray = new SyntheticRecording().record(0, 10, KIND_EXIT, 'a', 0x9000);
  const { lines, builder } = build(stray);
  assert.deepEqual(lines, []);
  assert.equal(builder.anomalies, 0);
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

test('a call that catches ends by its own return, and those that it has caught ended when it went on', () => {
  const top = 0x0fff_f000;
  const { lines, builder } = build(
    new SyntheticRecording()
      .thread(0, 1, '')
      .record(0, 0, KIND_ENTRY, 'outer', top)
      .record(0, 10, KIND_ENTRY, 'catcher', top - 10)
      .record(0, 20, KIND_ENTRY, 'middle', top - 20)
      .record(0, 30, KIND_ENTRY, 'thrower', top - 30)
      // The catcher goes on: it calls another, whose frame lies where that of `middle` was.
      .record(0, 40, KIND_ENTRY, 'next', top - 20)
      .record(0, 50, KIND_EXIT, 'next', top - 20)
      .record(0, 60, KIND_EXIT, 'catcher', top - 10)
      .record(0, 1000, KIND_EXIT, 'outer', top),
  );
  assert.deepEqual(lines, [
    'outer/catcher/middle/thrower 30+10 self 10 unwound',
    'outer/catcher/middle 20+20 self 10 unwound',
    'outer/catcher/next 40+10 self 10 returned',
    'outer/catcher 10+50 self 20 returned',
    'outer 0+1000 self 950 returned',
  ]);
  assert.equal(builder.anomalies, 0);
});

test('coroutines that are suspended stay open, whatever ends meanwhile, and end by their own exits', () => {
  const recording = new SyntheticRecording().thread(0, 1, '').record(0, 0, KIND_ENTRY, 'main', 0x0fff_f000);
  const MANY = 5000;
  for (let i = 0; i < MANY; i++) recording.record(0, 1 + i, KIND_ENTRY, 'coroutine', 0x1000 + i * 0x200);
  for (let i = 0; i < MANY; i++) {
    recording.record(0, 10_000 + 2 * i, KIND_ENTRY, 'step', 0x0fff_e000);
    recording.record(0, 10_001 + 2 * i, KIND_EXIT, 'step', 0x0fff_e000);
  }
  for (let i = 0; i < MANY; i++) recording.record(0, 30_000 + i, KIND_EXIT, 'coroutine', 0x1000 + i * 0x200);
  const { calls } = build(recording.record(0, 40_000, KIND_EXIT, 'main', 0x0fff_f000));
  assert.equal(calls.length, 2 * MANY + 1);
  assert.ok(calls.every(({ end }) => end === 'returned'));
  const coroutines = calls.filter((call) => call.function.name === 'coroutine');
  assert.ok(coroutines.every(({ duration }) => duration === 29_999n));
});

test('a coroutine that another thread goes on with ends there, if lanes are merged', () => {
  const { lines } = build(
    new SyntheticRecording()
      .thread(0, 1, 'a')
      .thread(1, 2, 'b')
      .record(0, 0, KIND_ENTRY, 'task', 0x5000)
      .record(0, 10, KIND_ENTRY, 'wait', 0x4f00)
      .record(1, 100, KIND_EXIT, 'wait', 0x4f00)
      .record(1, 120, KIND_EXIT, 'task', 0x5000),
  );
  assert.deepEqual(lines, ['task/wait 10+90 self 90 returned', 'task 0+120 self 30 returned']);
});

test('a call that begins with the slot of another has replaced it, and a tail call has ended', () => {
  const { lines } = build(
    new SyntheticRecording()
      .record(0, 0, KIND_ENTRY, 'gone', 0x5000)
      .record(0, 10, KIND_ENTRY, 'first', 0x5000)
      .record(0, 20, KIND_TAIL, 'first', 0x5000)
      .record(0, 21, KIND_ENTRY, 'second', 0x5000)
      .record(0, 30, KIND_EXIT, 'first', 0x5000)
      .record(0, 40, KIND_EXIT, 'second', 0x5000),
  );
  assert.deepEqual(lines, [
    'gone 0+10 self 10 unwound',
    'first 10+10 self 10 returned',
    'second 21+19 self 19 returned',
  ]);
});

test('version 1 has chains of tail calls open with one slot, and tells of calls that were unwound', () => {
  const info = new TraceInfo({
    pid: 1,
    command: [],
    startTime: '',
    mode: 'calls',
    tscHz: 1e9,
    startTsc: '0',
  });
  const left: string[] = [];
  const builder = new CallBuilder(
    'calls',
    info.clock,
    {
      onEnter: () => 0,
      onLeave: (_lane, depth, index, start, end, _self, how) =>
        left.push(`${depth} ${index} ${start}-${end} ${how}`),
      onLeaf: () => 0,
      onLost: () => undefined,
    },
    { version: FORMER_VERSION },
  );
  const records: [number, number, number, number][] = [
    [0, KIND_ENTRY, 0, 0x7000],
    [1, KIND_ENTRY, 1, 0x6ff0],
    [2, KIND_ENTRY, 2, 0x6ff0],
    [3, KIND_EXIT, 2, 0x6ff0],
    [4, KIND_EXIT, 1, 0x6ff0],
    [5, KIND_ENTRY, 3, 0x6f00],
    [6, KIND_UNWOUND, 3, 0x6f00],
    [7, KIND_EXIT, 0, 0x7000],
  ];
  builder.addRecords(
    0,
    Uint32Array.from(
      records.flatMap(([tick, kind, index, slot]) => [tick, 0, (index << KIND_BITS) | kind, slot]),
    ),
  );
  assert.deepEqual(left, ['2 2 2-3 0', '1 1 1-4 0', '1 3 5-6 1', '0 0 0-7 0']);
  assert.equal(builder.anomalies, 0);
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
