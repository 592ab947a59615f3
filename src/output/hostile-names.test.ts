import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SyntheticRecording } from '../recording/synthetic.test.support.js';
import { isPlain } from '../text/index.js';
import { ChromeOutput, FoldedOutput, GraphOutput, JsonLinesOutput, RecordingFile, Report } from './index.js';
import type { TextOutput, TextSink } from './index.js';
import { withFile } from './sample.test.support.js';

type Make = (recording: RecordingFile, sink: TextSink) => TextOutput;

function textOf(recording: SyntheticRecording, make: Make, order: 'file' | 'time' = 'time'): string {
  return withFile(recording.bytes(), (path) => {
    const file = new RecordingFile(path);
    const pieces: string[] = [];
    const output = make(file, (more) => pieces.push(more));
    if (order === 'time') file.visitByTime(output);
    else file.visit(output);
    output.finish();
    file.close();
    return pieces.join('');
  });
}

const makers: ReadonlyMap<string, Make> = new Map<string, Make>([
  ['graph', (file, sink) => new GraphOutput(file.info, sink)],
  ['report', (file, sink) => new Report(file.info, sink)],
  ['chrome', (file, sink) => new ChromeOutput(file.info, sink)],
  ['folded', (file, sink) => new FoldedOutput(file.info, sink)],
  ['jsonl', (file, sink) => new JsonLinesOutput(file.info, sink)],
]);
const folded: Make = (file, sink) => new FoldedOutput(file.info, sink);

const EVIL = [
  '\x1b]0;PWNED\x07\x1b[2J',
  'line\n0000000000000000 forged',
  'c1\x9b2J\x85',
  '\u202egpj.exe\u2066',
  'sep\u2028\u2029',
  'half\ud800',
  '\u200b\ufeff',
  '__proto__',
];

function evilRecording(): SyntheticRecording {
  const recording = new SyntheticRecording('calls', { command: [EVIL[0], EVIL[1]] });
  EVIL.forEach((name, i) => recording.thread(i, 100 + i, name));
  EVIL.forEach((name, i) => {
    recording
      .enter(i, 10, 'main')
      .enter(i, 20, name)
      .leave(i, 30)
      .leave(i, 2_000_000_000)
      .lost(i, 2_000_000_001, 3);
  });
  return recording;
}

for (const [format, make] of makers) {
  test(`${format}: names that would set a title, clear the screen or forge lines are shown`, () => {
    const text = textOf(evilRecording(), make);
    for (const line of text.split('\n')) assert.ok(isPlain(line), JSON.stringify(line));
    assert.doesNotMatch(text, /^0000000/m);
    assert.match(text, /PWNED/);
  });
}

test('JSON has names exactly', () => {
  const lines = textOf(evilRecording(), makers.get('jsonl')!).trimEnd().split('\n');
  const calls = lines.map(
    (line) => JSON.parse(line) as { readonly function?: string; readonly thread: string },
  );
  const names = new Set(calls.map((call) => call.function));
  for (const name of EVIL) {
    assert.ok(names.has(name), JSON.stringify(name));
    assert.ok(calls.some(({ thread }) => thread === name));
  }
  const chrome = JSON.parse(textOf(evilRecording(), makers.get('chrome')!)) as {
    readonly traceEvents: readonly { readonly name: string }[];
  };
  for (const name of EVIL) assert.ok(chrome.traceEvents.some((event) => event.name === name));
});

test('no name forges a frame, a number or a line of folded stacks', () => {
  const names = [
    'a;b',
    'two words',
    'ends in 5',
    'ends in 1.5',
    ' blank ',
    '',
    'new\nline 7',
    'wide\u3000 12',
  ];
  const recording = new SyntheticRecording().thread(0, 1, 'x;y 9');
  let tick = 0;
  for (const name of names) recording.enter(0, (tick += 10), name).leave(0, (tick += 5));
  assert.deepEqual(textOf(recording, folded).split('\n'), [
    'x:y 9 (1);a:b 5',
    'x:y 9 (1);two words 5',
    'x:y 9 (1);ends in\\x205 5',
    'x:y 9 (1);ends in\\x201.5 5',
    'x:y 9 (1);\\x20blank\\x20 5',
    'x:y 9 (1);? 5',
    'x:y 9 (1);new\\nline\\x207 5',
    'x:y 9 (1);wide\u3000\\x2012 5',
    '',
  ]);
});

/** Calls within calls, each of them with time of its own. */
function nested(depth: number, nameOf: (level: number) => string): SyntheticRecording {
  const recording = new SyntheticRecording().thread(0, 1, 't');
  for (let level = 0; level < depth; level++) recording.enter(0, level, nameOf(level));
  for (let level = 0; level < depth; level++) recording.leave(0, depth + level);
  return recording;
}

/** Bytes of output for each byte of a recording, beyond what an output writes in any case. */
const MOST_PER_BYTE = 20;
const FIXED = 20 << 20;

for (const [format, make] of makers) {
  test(`${format}: what it writes grows with the recording, not with the square of its depth`, () => {
    for (const recording of [
      nested(20_000, () => 'recursion'),
      nested(20_000, (level) => `function_${level % 500}`),
    ]) {
      const { length } = recording.bytes();
      const text = textOf(recording, make, 'file');
      assert.ok(text.length <= FIXED + MOST_PER_BYTE * length, `${text.length} for ${length}`);
    }
  });
}

test('folded stacks that have no room are cut at one depth, and no time is lost', () => {
  const depth = 20_000;
  const text = textOf(
    nested(depth, () => 'recursion'),
    folded,
  );
  const lines = text.trimEnd().split('\n');
  const deeper = lines.filter((line) => line.includes(';(deeper) '));
  assert.equal(deeper.length, 1);
  const sum = lines.reduce((total, line) => total + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  assert.equal(sum, 2 * depth - 1);
  // What has room is whole.
  assert.doesNotMatch(
    textOf(
      nested(500, () => 'recursion'),
      folded,
    ),
    /deeper/,
  );
});

test('a function with a name of a megabyte that is called often does not fill the disk with text', () => {
  const calls = 2000;
  const recording = new SyntheticRecording().thread(0, 1, 't');
  for (let i = 0; i < calls; i++) recording.enter(0, 2 * i, 'n'.repeat(1 << 20)).leave(0, 2 * i + 1);
  for (const format of ['graph', 'report', 'folded']) {
    const text = textOf(recording, makers.get(format)!);
    assert.ok(text.length < calls * 5000, `${format}: ${text.length}`);
    assert.match(text, /nnn…/);
  }
});
