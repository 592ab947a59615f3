// Recordings of real programs, made by the command, and cut off: at every byte, as a tracer may die, or a disk be full, anywhere.
import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, truncateSync } from 'node:fs';
import { test } from 'node:test';
import { openRecording, isSafepokeError, type RecordingFile } from '../index.js';
import { endingOf } from '../recording/index.js';
import { build, fresh, runTraced, safepoke } from './targets.test.support.js';

/** docs/recording-format.md: everything stands at multiples of this, and a record is as long. */
const UNIT = 16;
const HEADER_LENGTH_AT = 12;
const RECORDS = 1;

/** Cut at so many places that are chosen by chance, besides those around the ends of all blocks. */
const RANDOM_CUTS = 150;
/** Besides every byte of so many at the beginning and the end. */
const EDGE = 32;

/** Where the header ends, and where the records are, as the format's document has it. */
function layoutOf(bytes: Buffer): { header: number; blocks: { at: number; size: number }[] } {
  const padded = (size: number): number => Math.ceil(size / UNIT) * UNIT;
  const header = UNIT + padded(bytes.readUInt32LE(HEADER_LENGTH_AT));
  const blocks = [];
  for (let at = header; at < bytes.length;) {
    const size = bytes.readUInt32LE(at + 8);
    if (bytes.readUInt32LE(at) === RECORDS) blocks.push({ at: at + UNIT, size });
    at += UNIT + padded(size);
  }
  return { header, blocks };
}

/** What is shown of a recording, in the order of the file: each record tells of the beginning of a call or of its end. */
function shown(file: RecordingFile): { events: string[]; open: number } {
  const events: string[] = [];
  let open = 0;
  const { records, anomalies, lost } = file.visit({
    onEnter: (lane, depth, index) => {
      events.push(`${lane} ${depth} ${file.info.functionAt(index).name} begins`);
      open++;
      return 0;
    },
    onLeave: (lane, depth, index, _start, _end, _self, end) => {
      open--;
      // Still open where the file ends: no record tells of that.
      if (endingOf(end) === 'open') open++;
      else events.push(`${lane} ${depth} ${file.info.functionAt(index).name} ${endingOf(end)}`);
    },
    onLeaf: () => 0,
    onLost: () => undefined,
  });
  assert.deepEqual([records, anomalies, lost], [events.length, 0, 0]);
  return { events, open };
}

/** Opens the recording cut at each of these places, which descend. */
function cutAt(path: string, cuts: Iterable<number>): number {
  const bytes = readFileSync(path);
  const { header, blocks } = layoutOf(bytes);
  const whole = openRecording(path);
  const all = shown(whole);
  assert.deepEqual([whole.fault, all.open], [undefined, 0]);
  whole.close();
  const cut = fresh('cut');
  copyFileSync(path, cut);
  let done = 0;
  for (const length of cuts) {
    truncateSync(cut, length);
    done++;
    if (length < header) {
      const code = length === 0 ? 'RECORDING_FOREIGN' : 'RECORDING_TRUNCATED';
      assert.throws(
        () => openRecording(cut),
        (error) => isSafepokeError(error) && error.code === code,
        String(length),
      );
      continue;
    }
    const file = openRecording(cut);
    assert.equal(file.fault?.code, 'RECORDING_TRUNCATED', String(length));
    assert.ok(file.fault.message.includes(`is cut off at byte ${length},`), file.fault.message);
    const { events } = shown(file);
    file.close();
    const complete = blocks.reduce(
      (sum, { at, size }) => sum + Math.max(0, Math.floor((Math.min(at + size, length) - at) / UNIT)),
      0,
    );
    assert.equal(events.length, complete, `cut at ${length}`);
    const other = events.findIndex((event, i) => event !== all.events[i]);
    assert.equal(other, -1, `cut at ${length}: ${events[other]} instead of ${all.events[other]}`);
  }
  return done;
}

function* descending(from: number, to: number): Generator<number> {
  for (let length = from; length >= to; length--) yield length;
}

test('a recording of many threads cut off at any byte opens with all complete records and says where it was cut', (t) => {
  const { recording, summary } = runTraced(['-F', 'step', '-F', 'body'], build('threads.c'), '0', '12', '4');
  assert.equal(summary.calls['body'], 12);
  const size = readFileSync(recording).length;
  assert.equal(cutAt(recording, descending(size - 1, 0)), size);
  t.diagnostic(`${size} bytes`);
});

test('a large recording cut off at its ends, around each block or anywhere opens with all complete records', (t) => {
  const { recording } = runTraced(['-F', 'step', '-F', 'body'], build('threads.c'), '1', '4', '2');
  const bytes = readFileSync(recording);
  const size = bytes.length;
  const cuts = new Set([...descending(EDGE, 0), ...descending(size - 1, size - EDGE)]);
  for (const { at } of layoutOf(bytes).blocks)
    for (const near of [-UNIT - 1, -UNIT, -1, 0, 1, UNIT - 1, UNIT]) cuts.add(at + near);
  for (let i = 0; i < RANDOM_CUTS; i++) cuts.add(Math.floor(Math.random() * size));
  const sorted = [...cuts].filter((cut) => cut < size).sort((a, b) => b - a);
  assert.equal(cutAt(recording, sorted), sorted.length);
  t.diagnostic(`${size} bytes, ${sorted.length} cuts`);
});

test('what is shown of a recording that was cut off ends with the byte where it was cut', () => {
  const { recording } = runTraced(['-F', 'step', '-F', 'body'], build('threads.c'), '0', '12', '4');
  const cut = Math.floor(readFileSync(recording).length / 2);
  truncateSync(recording, cut);
  for (const command of ['graph', 'report']) {
    const ran = safepoke(command, recording);
    assert.match(ran.stdout, /body/);
    assert.match(ran.stderr, new RegExp(`is cut off at byte ${cut},`));
  }
});
