// Traces that go on: into the program that a target executes, with libraries that it loads; and of which the newest is kept.
import assert from 'node:assert/strict';
import { existsSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { openRecording } from '../index.js';
import {
  Running,
  Target,
  assertNested,
  build,
  callsOf,
  changedBytes,
  isTraced,
  pause,
  readSummary,
  safepoke,
  tally,
} from './targets.test.support.js';

/** The summary of a later part of a trace. */
function partOf(summaryPath: string, part: number): string {
  return `${summaryPath}.${part}`;
}

async function untilTraced(pid: number): Promise<void> {
  while (!isTraced(pid)) await pause(5);
}

/** A recording's first message is written when the sites have been changed. */
async function untilWritten(recording: string): Promise<void> {
  while (!existsSync(recording) || statSync(recording).size === 0) await pause(5);
}

test('with --follow the trace goes on in the program that the target executes', async () => {
  const target = await Target.ready(build('processes.c'), 'wait');
  const running = await Running.attach(target.pid, '-F', 'step', '--follow');
  for (const n of [10, 20, 30]) {
    await untilTraced(target.pid);
    target.say(String(n));
    await target.expect(new RegExp(`^did ${n}$`));
    if (n === 30) break;
    target.say('exec');
    await target.expect(/^ready$/);
  }
  const { status, summary, recording, stderr } = await running.stop();
  assert.equal(status, 0, stderr);
  assert.deepEqual([summary.ended, summary.calls['step']], ['exec', 10]);
  assert.deepEqual(tally(callsOf(recording)), { 'step returned': 10 });
  for (const [part, n] of [
    [2, 20],
    [3, 30],
  ]) {
    assert.equal(readSummary(partOf(running.summaryPath, part)).calls['step'], n);
    assert.deepEqual(tally(callsOf(`${recording}.${part}`)), { 'step returned': n });
  }
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

test('safepoke run --follow traces what the program becomes, and ends as that does', async () => {
  const running = Running.run(['-F', 'step', '--follow'], build('processes.c'), 'wait');
  const said = async (pattern: RegExp): Promise<void> => {
    while (!pattern.test(running.stdout)) await pause(5);
    running.stdout = '';
  };
  await said(/^ready$/m);
  running.child.stdin.write('10\n');
  await said(/^did 10$/m);
  running.child.stdin.write('exec\n');
  await said(/^ready$/m);
  await untilWritten(`${running.recording}.2`);
  running.child.stdin.end('20\n');
  const { status, summary, stderr } = await running.ended();
  assert.equal(status, 0, stderr);
  assert.match(stderr, /executes another program: the trace goes on/);
  const second = readSummary(partOf(running.summaryPath, 2));
  assert.deepEqual([summary.calls['step'], second.calls['step']], [10, 20]);
});

test('with --follow-dlopen libraries are traced that are loaded during the trace, and before it began to matter', async () => {
  const target = await Target.ready(build('loads.c'), build('plugin.c', '-shared', '-fPIC'));
  const say = async (line: string): Promise<void> => {
    target.say(line);
    await target.expect(/^fine$/);
  };
  const running = await Running.attach(target.pid, '-F', 'own', '-F', 'plugin*!plugin_*', '--follow-dlopen');
  await say('load');
  while (!running.stderr.includes('has loaded a library')) await pause(5);
  await untilWritten(`${running.recording}.2`);
  await say('work 10');
  await say('unload');
  const { status, stderr, recording } = await running.stop();
  assert.equal(status, 0, stderr);
  const { calls, restored, removed } = readSummary(partOf(running.summaryPath, 2));
  assert.deepEqual([restored, removed], [true, true]);
  assert.deepEqual([calls['plugin_work'], calls['plugin_step'], calls['own']], [1, 10, 2]);
  assertNested(callsOf(`${recording}.2`));
  // Nothing but the library is wanted: it is waited for, and the process left alone until then.
  const waiting = Running.attachLater(target.pid, '-F', 'plugin*!plugin_*', '--follow-dlopen');
  await pause(300);
  assert.equal(isTraced(target.pid), false);
  await say('load');
  await untilWritten(waiting.recording);
  await say('work 10');
  await say('unload');
  const ended = await waiting.stop();
  assert.equal(ended.summary.calls['plugin_step'], 10, ended.stderr);
  await target.finish();
});

test('with --keep newest a recording has the newest calls, whole, and what is missing is counted exactly', async () => {
  const target = await Target.ready(build('fib.c'), '-');
  const running = await Running.attach(
    target.pid,
    '-F',
    'fib',
    '-F',
    'leaf',
    '--keep',
    'newest',
    '--size',
    '64K',
  );
  for (const [n, result] of [
    [22, 17711],
    [10, 55],
  ]) {
    target.say(String(n));
    await target.expect(new RegExp(`^fib\\(${n}\\)=${result}$`));
  }
  const { summary, recording, stderr } = await running.stop();
  assert.match(stderr, /older records were not kept/);
  const file = openRecording(recording);
  const { records, lost, notKept, anomalies } = file.visit({
    onEnter: () => 0,
    onLeave: () => undefined,
    onLeaf: () => 0,
    onLost: () => undefined,
  });
  assert.deepEqual([file.fault, anomalies], [undefined, 0]);
  assert.equal(records + summary.not_kept, summary.records);
  assert.deepEqual([lost, notKept], [summary.dropped, summary.not_kept]);
  const graph = safepoke('graph', recording);
  assert.match(graph.stdout, /records not kept: --keep newest/);
  assert.match(graph.stderr, /records not kept \(--keep newest\)\n/);
  assert.doesNotMatch(graph.stdout + graph.stderr, /the ring was full/);
  assert.ok(summary.not_kept > 0 && records > 0);
  file.close();
  const calls = callsOf(recording);
  assertNested(calls);
  assert.ok(calls.length >= 89 + 177, 'the last calls are there');
  await target.finish();
});

test('options that contradict each other are refused', () => {
  const size = safepoke('attach', '-p', String(process.pid), '--size', '1M');
  assert.equal(size.status, 2);
  assert.match(size.stderr, /--keep newest/);
  const printed = safepoke('attach', '-p', String(process.pid), '--keep', 'newest');
  assert.equal(printed.status, 2);
  assert.match(printed.stderr, /-o/);
});
