import assert from 'node:assert/strict';
import { readFileSync, rmSync, truncateSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { isSafepokeError } from '../errors/index.js';
import { KIND_LOST, RecordingWriter } from '../recording/index.js';
import type { CallVisitor } from '../recording/index.js';
import { SyntheticRecording } from '../recording/synthetic.test.support.js';
import { ChromeOutput } from './chrome.js';
import { filterCalls } from './call-filter.js';
import { FileSink } from './file-sink.js';
import { FoldedOutput } from './folded.js';
import { GraphOutput } from './graph.js';
import { JsonLinesOutput } from './jsonl.js';
import { RecordingFile } from './recording-file.js';
import { Report } from './report.js';
import { sampleRecording, withFile } from './sample.test.support.js';

function codeOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (isSafepokeError(error)) return error.code;
    throw error;
  }
  return 'none';
}

/** Counts what it is told of. */
class Tally implements CallVisitor {
  enters = 0;
  leaves = 0;
  lost = 0;
  readonly ends: number[] = [];

  onEnter(): number {
    return ++this.enters;
  }

  onLeave(_lane: number, _depth: number, _index: number, _start: number, end: number): void {
    this.leaves++;
    this.ends.push(end);
  }

  onLeaf(): number {
    return 0;
  }

  onLost(_lane: number, _depth: number, _tick: number, records: number): void {
    this.lost += records;
  }
}

test('a file tells the same calls in its own order and in that of time, in which times never go back', () => {
  withFile(sampleRecording().bytes(), (path) => {
    const file = new RecordingFile(path);
    assert.equal(file.fault, undefined);
    assert.equal(file.info.functions.length, 6);
    assert.equal(file.info.threadOf(1).tid, 4712);
    const inOrder = new Tally();
    const byTime = new Tally();
    assert.deepEqual(pick(file.visit(inOrder)), { records: 17, lost: 12_345, anomalies: 0 });
    assert.deepEqual(pick(file.visitByTime(byTime)), { records: 17, lost: 12_345, anomalies: 0 });
    for (const tally of [inOrder, byTime]) {
      assert.equal(tally.enters, 9);
      assert.equal(tally.leaves, 9);
      assert.equal(tally.lost, 12_345);
    }
    assert.deepEqual(
      byTime.ends,
      [...byTime.ends].sort((a, b) => a - b),
    );
    file.close();
  });
});

function pick(summary: { records: number; lost: number; anomalies: number }): unknown {
  return { records: summary.records, lost: summary.lost, anomalies: summary.anomalies };
}

test('calls are objects with their parents, in the order in which they ended', () => {
  withFile(sampleRecording().bytes(), (path) => {
    const file = new RecordingFile(path);
    const calls = [...file.calls()];
    file.close();
    assert.equal(calls.length, 9);
    const main = calls.at(-1);
    assert.equal(main?.function.name, 'main');
    assert.equal(main.end, 'open');
    const thrown = calls.find((call) => call.function.name === 'throw_it');
    assert.equal(thrown?.end, 'unwound');
    assert.equal(thrown.parent?.parent, main);
    assert.equal(thrown.duration, 100_000n);
  });
});

test('large blocks, small blocks and blocks across the pieces in which a file is read all give every record', () => {
  const recording = new SyntheticRecording().enter(0, 0, 'main').enter(1, 0, 'main');
  const perLane = 150_000;
  for (let lane = 0; lane < 2; lane++) {
    for (let i = 0; i < perLane; i++) {
      recording.enter(lane, 10 + 2 * i, 'f').leave(lane, 11 + 2 * i);
      if (i % 1000 === 999 && i < 9000) recording.flush();
    }
  }
  recording.message({ kind: 'lost', lane: 0, records: 3 });
  withFile(recording.bytes(), (path) => {
    const file = new RecordingFile(path);
    for (const tally of [new Tally(), new Tally()]) {
      const summary = file.visit(tally);
      assert.equal(summary.records, 2 * (2 * perLane + 1));
      assert.equal(tally.leaves, 2 * (perLane + 1));
      assert.equal(tally.lost, 3);
    }
    const byTime = new Tally();
    file.visitByTime(byTime);
    assert.equal(byTime.leaves, 2 * (perLane + 1));
    assert.deepEqual(
      byTime.ends,
      [...byTime.ends].sort((a, b) => a - b),
    );
    file.close();
  });
});

test('a file that is cut short gives its complete records and says where it was cut', () => {
  const bytes = sampleRecording().bytes();
  let most = 0;
  for (let length = bytes.length - 1; length > 600; length -= 7) {
    withFile(bytes.subarray(0, length), (path) => {
      const file = new RecordingFile(path);
      assert.equal(file.fault?.code, 'RECORDING_TRUNCATED');
      assert.match(file.fault.message, new RegExp(`byte ${length},`));
      const { records } = file.visit(new Tally());
      most = Math.max(most, records);
      assert.throws(() => [...file.calls()], /is cut off at byte/);
      file.close();
    });
  }
  assert.equal(most, 17);
});

test('what is not a readable recording is refused with the reason', () => {
  assert.equal(
    codeOf(() => new RecordingFile('/nonexistent/recording')),
    'RECORDING_UNREADABLE',
  );
  assert.equal(
    codeOf(() => new RecordingFile('/')),
    'RECORDING_UNREADABLE',
  );
  assert.equal(
    codeOf(() => new RecordingFile(process.execPath)),
    'RECORDING_FOREIGN',
  );
  assert.equal(
    withFile(new Uint8Array(), (path) => codeOf(() => new RecordingFile(path))),
    'RECORDING_FOREIGN',
  );
});

test('a file that shrinks while it is read is an error, not an endless loop', () => {
  withFile(sampleRecording().bytes(), (path) => {
    const file = new RecordingFile(path);
    truncateSync(path, 300);
    assert.equal(
      codeOf(() => file.visit(new Tally())),
      'RECORDING_UNREADABLE',
    );
    assert.equal(
      codeOf(() => file.visitByTime(new Tally())),
      'RECORDING_UNREADABLE',
    );
    file.close();
  });
});

test('what is written through a file sink is what a reader finds', () => {
  withFile(new Uint8Array(), (path) => {
    rmSync(path);
    const sink = new FileSink(path, 'recording');
    const writer = new RecordingWriter(sink, {
      pid: 1,
      command: ['a'],
      startTime: '2026-01-01T00:00:00Z',
      mode: 'calls',
      tscHz: 1e9,
      startTsc: '0',
    });
    const record = new Uint8Array(16);
    record[8] = KIND_LOST;
    record[12] = 9;
    writer.writeRecords(0, [record, new Uint8Array(), record]);
    writer.writeMessage({ kind: 'end', summary: { all: 1 } });
    sink.commit();
    sink.close();
    assert.equal(readFileSync(path).length, writer.bytes);
    const file = new RecordingFile(path);
    assert.deepEqual(file.info.summary, { all: 1 });
    assert.equal(file.visit(new Tally()).lost, 18);
    file.close();
  });
  assert.equal(
    codeOf(() => new FileSink('/nonexistent/out', 'recording')),
    'OUTPUT_UNWRITABLE',
  );
});

test('whatever is changed in a file, every output of it ends, and fails with an error for people if it fails', () => {
  const bytes = sampleRecording().message({ kind: 'lost', lane: 9, records: 1 }).bytes();
  const change = fc.record({ at: fc.nat(bytes.length - 1), to: fc.integer({ min: 0, max: 255 }) });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 12 }), fc.nat(bytes.length), (changes, cut) => {
      const mutated = bytes.slice(0, bytes.length - (cut % 64));
      for (const { at, to } of changes) if (at < mutated.length) mutated[at] = to;
      withFile(mutated, (path) => {
        codeOf(() => {
          const file = new RecordingFile(path);
          try {
            const ignore = (): void => undefined;
            const { info } = file;
            for (const output of [new GraphOutput(info, ignore), new JsonLinesOutput(info, ignore)]) {
              file.visitByTime(filterCalls(output, { minTicks: 700, maxDepth: 2 }));
              output.finish();
            }
            for (const output of [
              new Report(info, ignore),
              new FoldedOutput(info, ignore),
              new ChromeOutput(info, ignore),
            ]) {
              file.visit(output);
              output.finish();
            }
          } finally {
            file.close();
          }
        });
      });
    }),
    { numRuns: 300 },
  );
});
