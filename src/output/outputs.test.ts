import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SyntheticRecording } from '../recording/synthetic.test.support.js';
import { filterCalls } from './call-filter.js';
import type { CallFilter } from './call-filter.js';
import { ChromeOutput } from './chrome.js';
import { FoldedOutput } from './folded.js';
import { GraphOutput } from './graph.js';
import { JsonLinesOutput } from './jsonl.js';
import { RecordingFile } from './recording-file.js';
import { Report } from './report.js';
import { sampleRecording, withFile } from './sample.test.support.js';
import type { TextOutput, TextSink } from './text-output.js';

type Make = (recording: RecordingFile, sink: TextSink) => TextOutput;

function textOf(recording: SyntheticRecording, make: Make, filter: CallFilter = {}): string {
  return withFile(recording.bytes(), (path) => {
    const file = new RecordingFile(path);
    let text = '';
    const output = make(file, (more) => (text += more));
    file.visitByTime(filterCalls(output, filter));
    output.finish();
    file.close();
    return text;
  });
}

const graph: Make = (file, sink) => new GraphOutput(file.info, sink);
const report: Make = (file, sink) => new Report(file.info, sink);
const chrome: Make = (file, sink) => new ChromeOutput(file.info, sink);
const folded: Make = (file, sink) => new FoldedOutput(file.info, sink);
const jsonl: Make = (file, sink) => new JsonLinesOutput(file.info, sink);

test('the graph nests calls, interleaves threads by time, and shows losses where they happened', () => {
  assert.equal(
    textOf(sampleRecording(), graph),
    `# DURATION     TID     FUNCTION
           [  4711] | /* thread server */
           [  4711] | main() {
           [  4711] |   fib() {
           [  4712] | /* thread worker; 1 */
  0.500 us [  4711] |     fib();
  1.234 us [  4712] | job();
  2.000 us [  4711] |     fib();
  5.000 us [  4711] |   } /* fib */
           [  4711] |   /* 12,345 records lost: the ring was full */
           [  4711] |   std::vector<int>::resize() {
100.000 us [  4711] |     throw_it(); /* unwound */
 13.000 ms [  4711] |   } /* std::vector<int>::resize */
  0.999 us [  4712] | job();
  1.234  s [  4711] |   wait(); /* still running at the end of the recording */
  2.734  s [  4711] | } /* main: still running at the end of the recording */
`,
  );
});

test('the graph of calls that lasted long enough shows them and the calls around them', () => {
  assert.equal(
    textOf(sampleRecording(), graph, { minTicks: 1_500 }),
    `# DURATION     TID     FUNCTION
           [  4711] | /* thread server */
           [  4711] | main() {
           [  4711] |   fib() {
  2.000 us [  4711] |     fib();
  5.000 us [  4711] |   } /* fib */
           [  4711] |   /* 12,345 records lost: the ring was full */
           [  4711] |   std::vector<int>::resize() {
100.000 us [  4711] |     throw_it(); /* unwound */
 13.000 ms [  4711] |   } /* std::vector<int>::resize */
  1.234  s [  4711] |   wait(); /* still running at the end of the recording */
  2.734  s [  4711] | } /* main: still running at the end of the recording */
`,
  );
});

test('the graph down to a depth hides what is deeper', () => {
  assert.equal(
    textOf(sampleRecording(), graph, { maxDepth: 1 }),
    `# DURATION     TID     FUNCTION
           [  4711] | /* thread server */
           [  4712] | /* thread worker; 1 */
  1.234 us [  4712] | job();
           [  4711] | main() {
           [  4711] |   /* 12,345 records lost: the ring was full */
  0.999 us [  4712] | job();
  2.734  s [  4711] | } /* main: still running at the end of the recording */
`,
  );
});

test('a function that is traced by its entry only is marked where its duration would stand', () => {
  const recording = new SyntheticRecording()
    .thread(0, 1, '')
    .enter(0, 0, 'main')
    .leaf(0, 10, 'odd', 0x10)
    .leave(0, 20);
  assert.match(textOf(recording, graph), /^ {11}\[ {5}1\] \| {3}odd\(\); \/\* entry only \*\/$/m);
  assert.match(textOf(recording, report), /^ {9}- .* {2}odd {2}\/\* entry only \*\/$/m);
});

test('the graph of entries has no durations', () => {
  const entries = new SyntheticRecording('entries')
    .thread(0, 1, '')
    .leaf(0, 0, 'main', 0x9000)
    .leaf(0, 1, 'a', 0x8000)
    .leaf(0, 2, 'b', 0x8000);
  assert.equal(
    textOf(entries, graph),
    `# DURATION     TID     FUNCTION
           [     1] | main();
           [     1] |   a();
           [     1] |   b();
`,
  );
});

test('the report counts recursion once in total, and leaves open calls out of avg, min and max', () => {
  assert.equal(
    textOf(sampleRecording(), report),
    `     Total        Self       Calls         Avg         Min         Max  Function
  2.734  s    1.487  s           1           -           -           -  main
  1.234  s    1.234  s           1           -           -           -  wait
 13.000 ms   12.900 ms           1   13.000 ms   13.000 ms   13.000 ms  std::vector<int>::resize
100.000 us  100.000 us           1  100.000 us  100.000 us  100.000 us  throw_it  /* 1 unwound */
  5.000 us    5.000 us           3    2.500 us    0.500 us    5.000 us  fib
  2.233 us    2.233 us           2    1.117 us    0.999 us    1.234 us  job
`,
  );
});

test('the report sorts by each of its keys, largest first', () => {
  const first = (sort: 'total' | 'self' | 'calls' | 'avg' | 'max'): string => {
    const text = textOf(sampleRecording(), (file, sink) => new Report(file.info, sink, sort));
    return text.split('\n')[1].split(/ +/).at(-1) ?? '';
  };
  assert.equal(first('total'), 'main');
  assert.equal(first('self'), 'main');
  assert.equal(first('calls'), 'fib');
  assert.equal(first('avg'), 'std::vector<int>::resize');
  assert.equal(first('max'), 'std::vector<int>::resize');
});

test('hidden calls leave their time to the call around them, so own times add up to the same', () => {
  for (const filter of [{ minTicks: 1_500 }, { maxDepth: 2 }, { minTicks: 600, maxDepth: 2 }]) {
    const selfOfMainThread = (text: string): number =>
      text
        .split('\n')
        .filter((line) => line.startsWith('server'))
        .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
    assert.equal(selfOfMainThread(textOf(sampleRecording(), folded, filter)), 2_734_000_999);
  }
});

test('folded stacks have the thread first and nanoseconds last, and no stray semicolons', () => {
  assert.equal(
    textOf(sampleRecording(), folded),
    `server (4711);main 1486995000
server (4711);main;fib 2500
server (4711);main;fib;fib 2500
worker: 1 (4712);job 2233
server (4711);main;std::vector<int>::resize 12900000
server (4711);main;std::vector<int>::resize;throw_it 100000
server (4711);main;wait 1234000999
`,
  );
});

test('folded stacks of entries count them', () => {
  const entries = new SyntheticRecording('entries')
    .thread(0, 1, 't')
    .leaf(0, 0, 'main', 0x9000)
    .leaf(0, 1, 'a', 0x8000)
    .leaf(0, 2, 'a', 0x8000);
  assert.equal(textOf(entries, folded), 't (1);main 1\nt (1);main;a 2\n');
});

interface TraceEvent {
  readonly ph: string;
  readonly name: string;
  readonly pid: number;
  readonly tid: number;
  readonly ts: number;
  readonly dur: number;
  readonly args?: Readonly<Record<string, string>>;
}

function eventsOf(recording: SyntheticRecording): TraceEvent[] {
  return (JSON.parse(textOf(recording, chrome)) as { traceEvents: TraceEvent[] }).traceEvents;
}

test('the Chrome trace is JSON with a complete event for each call and names for threads', () => {
  const events = eventsOf(sampleRecording());
  const names = events.filter(({ ph }) => ph === 'M').map(({ args }) => args?.['name'] ?? '');
  assert.deepEqual(names.sort(), ['server', 'server --port 1', 'worker; 1']);
  const calls = events.filter(({ ph }) => ph === 'X');
  assert.equal(calls.length, 9);
  const inner = calls.find(({ name, ts }) => name === 'fib' && ts === 2);
  assert.deepEqual(inner, { ph: 'X', name: 'fib', pid: 4711, tid: 4711, ts: 2, dur: 0.5 });
  assert.deepEqual(calls.find(({ name }) => name === 'throw_it')?.args, { end: 'unwound' });
  const lost = events.find(({ ph }) => ph === 'i');
  assert.equal(lost?.name, '12,345 records lost');
  assert.equal(lost.ts, 7);
});

test('a thread id that was used twice has two tracks in the Chrome trace', () => {
  const recording = new SyntheticRecording()
    .thread(0, 5, 'first')
    .enter(0, 0, 'a')
    .leave(0, 1_000)
    .message({ kind: 'thread-end', lane: 0 })
    .thread(1, 5, 'second')
    .enter(1, 2_000, 'a')
    .leave(1, 3_000);
  const tids = eventsOf(recording)
    .filter(({ ph }) => ph === 'X')
    .map(({ tid }) => tid);
  assert.deepEqual(tids, [5, 5 + 2 ** 22]);
});

test('JSON lines have an object for each call, whose parent is the id of the call around it', () => {
  const recording = new SyntheticRecording()
    .thread(0, 7, 'main "thread"')
    .enter(0, 100, 'main')
    .enter(0, 110, 'a')
    .lost(0, 115, 2)
    .leave(0, 120)
    .leave(0, 150);
  assert.equal(
    textOf(recording, jsonl),
    String.raw`{"lost":2,"tid":7,"thread":"main \"thread\"","depth":2,"at_ns":115}
{"id":2,"parent":1,"function":"a","module":"/bin/server","tid":7,"thread":"main \"thread\"","depth":1,"start_ns":110,"duration_ns":10,"self_ns":10,"end":"returned"}
{"id":1,"parent":null,"function":"main","module":"/bin/server","tid":7,"thread":"main \"thread\"","depth":0,"start_ns":100,"duration_ns":50,"self_ns":40,"end":"returned"}
`,
  );
});
