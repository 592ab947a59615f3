import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CallBuilder } from './call-builder.js';
import { NewestWriter } from './newest-writer.js';
import { KIND_ENTRY, KIND_EXIT, KIND_LOST, RECORD_BYTES, writeRecord } from './record-layout.js';
import { RecordingReader } from './recording-reader.js';
import { RecordingWriter } from './recording-writer.js';
import { joined } from './synthetic.test.support.js';
import { TscClock } from './tsc-clock.js';

const HEADER = {
  pid: 1,
  command: [],
  startTime: '2026-01-01T00:00:00Z',
  mode: 'calls',
  tscHz: 1e9,
  startTsc: '0',
} as const;

/** Calls that begin and end, two lanes, in pieces; `lost` records now and then. */
interface Step {
  readonly lane: number;
  readonly action: 'enter' | 'leave' | 'lost';
  readonly endsPiece: boolean;
}

const steps = fc.array(
  fc.record({
    lane: fc.integer({ min: 0, max: 1 }),
    action: fc.constantFrom(
      'enter' as const,
      'enter' as const,
      'leave' as const,
      'leave' as const,
      'lost' as const,
    ),
    endsPiece: fc.boolean(),
  }),
  { maxLength: 200 },
);

function record(
  tsc: number,
  kind: typeof KIND_ENTRY | typeof KIND_EXIT | typeof KIND_LOST,
  slot: number,
): Uint8Array {
  const bytes = new Uint8Array(RECORD_BYTES);
  writeRecord(new DataView(bytes.buffer), 0, { tsc: BigInt(tsc), kind, functionIndex: 0, slot });
  return bytes;
}

function roundTrip(all: readonly Step[], room: number): void {
  const chunks: Uint8Array[] = [];
  const plain = new RecordingWriter({ write: (pieces) => chunks.push(joined(pieces)) }, HEADER);
  const writer = new NewestWriter(plain, room);
  writer.writeMessage({ kind: 'functions', first: 0, items: [{ name: 'f', module: 'm', address: '0x1' }] });
  const depths = [0, 0];
  let written = 0;
  let lostBefore = 0;
  const pieces: Uint8Array[][] = [[], []];
  const flush = (lane: number): void => {
    writer.writeRecords(
      lane,
      [joined(pieces[lane])].filter(({ length }) => length > 0),
    );
    pieces[lane] = [];
  };
  all.forEach(({ lane, action, endsPiece }, tick) => {
    const slot = 0x1000 - depths[lane] * 16;
    if (action === 'lost') {
      pieces[lane].push(record(tick, KIND_LOST, 7));
      lostBefore += 7;
    } else if (action === 'enter') {
      pieces[lane].push(record(tick, KIND_ENTRY, slot));
      depths[lane]++;
      written++;
    } else if (depths[lane] > 0) {
      pieces[lane].push(record(tick, KIND_EXIT, slot + 16));
      depths[lane]--;
      written++;
    }
    if (endsPiece) flush(lane);
  });
  for (const lane of [0, 1]) {
    flush(lane);
    writer.writeMessage({ kind: 'lost', lane, records: 5 });
    writer.writeMessage({ kind: 'thread-end', lane });
  }
  lostBefore += 10;
  const notKept = writer.release();
  writer.writeMessage({ kind: 'end', summary: {} });
  let enters = 0;
  const builder = new CallBuilder('calls', new TscClock(0n, 1e9), {
    onEnter: () => (enters++, 0),
    onLeave: () => undefined,
    onLeaf: () => 0,
    onLost: () => undefined,
  });
  const reader = new RecordingReader('test', {
    onRecords: (lane, words) => {
      builder.addRecords(lane, words);
    },
    onMessage: (message) => {
      if (message.kind === 'lost') builder.addLost(message.lane, message.records, message.notKept);
      if (message.kind === 'thread-end') builder.endLane(message.lane);
    },
  });
  reader.push(joined(chunks));
  reader.finish();
  builder.finish();
  assert.equal(builder.anomalies, 0);
  assert.deepEqual([builder.lost, builder.notKept], [lostBefore, notKept]);
  const lostRecords = all.filter(({ action }) => action === 'lost').length;
  assert.ok(builder.records >= written - notKept && builder.records <= written - notKept + lostRecords);
  if (room >= all.length * RECORD_BYTES) assert.equal(notKept, 0);
  assert.ok(enters <= written);
}

test('of whatever was recorded the newest is kept, makes sense by itself, and what is missing is counted exactly', () => {
  fc.assert(fc.property(steps, fc.integer({ min: 0, max: 250 * RECORD_BYTES }), roundTrip), { numRuns: 500 });
});

test('with too little room for anything the last piece is kept all the same', () => {
  roundTrip([{ lane: 0, action: 'enter', endsPiece: true }], 0);
});

test('the room is used but for a sixteenth of it, however large the pieces are', () => {
  const room = 1024;
  for (const [large, small] of [
    [10_000, 1],
    [10_000, 500],
    [200_000, 10],
  ]) {
    const plain = new RecordingWriter({ write: () => undefined }, HEADER);
    const writer = new NewestWriter(plain, room * RECORD_BYTES);
    for (const length of [large, small]) {
      const entries = Array.from({ length }, (_, i) => record(i, KIND_ENTRY, 0x1000_0000 - i * 16));
      writer.writeRecords(0, [joined(entries)]);
    }
    const kept = large + small - writer.release();
    assert.ok(kept <= room && kept >= (room * 15) / 16, `${kept} of ${room}`);
  }
});
