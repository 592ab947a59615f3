import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import type { SpawnSyncReturns } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { SyntheticRecording } from '../../recording/synthetic.test.support.js';
import { sampleRecording, withFile } from '../../output/sample.test.support.js';

const main = fileURLToPath(new URL('../main.js', import.meta.url));

function safepoke(...args: string[]): SpawnSyncReturns<string> {
  return spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
}

test('graph, report and export print to standard output, and what was lost to standard error', () => {
  withFile(sampleRecording().bytes(), (path) => {
    for (const [args, expected] of [
      [['graph', path], /1\.234 us \[ {2}4712\] \| job\(\);/],
      [['report', path, '--sort', 'calls'], /Function\n.* fib\n/],
      [['export', path, '--format', 'folded'], /^server \(4711\);main /],
      [['export', path, '--format', 'jsonl', '-t', '1ms'], /^\{"lost"/],
      [['export', path, '--format', 'chrome', '-D', '1'], /"traceEvents"/],
    ] as const) {
      const run = safepoke(...args);
      assert.equal(run.status, 0, run.stderr);
      assert.match(run.stdout, expected);
      assert.equal(run.stderr, 'safepoke: warning: 12,345 records lost: the ring was full\n');
    }
  });
});

test('what a flight recorder has not kept is not told of as lost', () => {
  const recording = new SyntheticRecording()
    .thread(0, 7, 'main')
    .message({ kind: 'lost', lane: 0, records: 3, notKept: true })
    .enter(0, 100, 'f')
    .leave(0, 200)
    .message({ kind: 'lost', lane: 0, records: 1 });
  withFile(recording.bytes(), (path) => {
    const told =
      'safepoke: warning: 1 record lost: the ring was full\nsafepoke: 3 records not kept (--keep newest)\n';
    for (const [args, expected] of [
      [['graph', path], /3 records not kept: --keep newest[^]*1 record lost: the ring was full/],
      [['report', path], /Function\n.* f\n/],
      [['export', path, '--format', 'jsonl'], /^\{"not_kept":3,[^]*\{"lost":1,/],
      [['export', path, '--format', 'chrome'], /"3 records not kept"[^]*"1 record lost"/],
    ] as const) {
      const run = safepoke(...args);
      assert.equal(run.status, 0, run.stderr);
      assert.match(run.stdout, expected);
      assert.equal(run.stderr, told);
    }
  });
});

test('export writes to a file, but not over the recording itself', () => {
  withFile(sampleRecording().bytes(), (path) => {
    const run = safepoke('export', path, '--format', 'chrome', '-o', `${path}.json`);
    assert.equal(run.status, 0, run.stderr);
    assert.equal(run.stdout, '');
    const trace = JSON.parse(readFileSync(`${path}.json`, 'utf8')) as { traceEvents: unknown[] };
    assert.equal(trace.traceEvents.length, 13);
    const over = safepoke('export', path, '--format', 'chrome', '-o', path);
    assert.equal(over.status, 2);
    assert.match(over.stderr, /it is the recording itself/);
    assert.deepEqual(new Uint8Array(readFileSync(path)), sampleRecording().bytes());
  });
});

test('a recording that is cut short is shown as far as it goes, then exit status 1', () => {
  const bytes = sampleRecording().bytes();
  withFile(bytes.subarray(0, bytes.length - 100), (path) => {
    const run = safepoke('graph', path);
    assert.equal(run.status, 1);
    assert.match(run.stdout, /main\(\) \{/);
    assert.match(run.stderr, new RegExp(`cut off at byte ${bytes.length - 100},`));
  });
});

test('what was asked for wrongly is exit status 2, what cannot be done is 1', () => {
  withFile(new SyntheticRecording('entries').leaf(0, 0, 'a', 16).bytes(), (path) => {
    assert.equal(safepoke('graph', path).status, 0);
    assert.equal(safepoke('graph', path, '-t', '1us').status, 2);
    assert.equal(safepoke('graph', path, '-D', 'deep').status, 2);
    assert.equal(safepoke('report', path, '--sort', 'name').status, 2);
    assert.equal(safepoke('export', path).status, 2);
    assert.equal(safepoke('graph').status, 2);
    assert.equal(safepoke('graph', `${path}-missing`).status, 1);
    assert.equal(safepoke('graph', main).status, 1);
  });
});

test('a reader that has seen enough ends the command without an error', () => {
  const recording = new SyntheticRecording();
  for (let i = 0; i < 50_000; i++) recording.enter(0, 2 * i, 'f').leave(0, 2 * i + 1);
  withFile(recording.bytes(), (path) => {
    const script = `"$0" "$1" graph "$2" | head -n 2; echo "\${PIPESTATUS[0]}"`;
    const run = spawnSync('bash', ['-c', script, process.execPath, main, path], { encoding: 'utf8' });
    assert.match(run.stdout, /^# DURATION.*\n.*f\(\);\n0\n$/);
    assert.equal(run.stderr, '');
  });
});
