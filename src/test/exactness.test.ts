import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  Running,
  Target,
  assertNested,
  build,
  callsOf,
  parseJsonLines,
  runTraced,
  safepoke,
  tally,
} from './targets.test.support.js';

/** Calls of fib and of leaf that fib(n) makes, itself included. */
function callsOfFib(n: number): { fib: number; leaf: number } {
  let [now, next] = [1, 1];
  for (let i = 0; i < n; i++) [now, next] = [next, now + next];
  return { fib: 2 * now - 1, leaf: now };
}

test('every one of 2,692,537 calls of fib(30) is recorded, entry and exit, within its parent', () => {
  const traced = runTraced(['-F', 'fib'], build('fib.c'), '30');
  assert.equal(traced.status, 0, traced.stderr);
  assert.equal(traced.stdout, 'fib(30)=832040\n');
  assert.deepEqual(traced.summary.calls, { fib: 2_692_537 });
  assert.equal(traced.summary.records, 2 * 2_692_537);
  assert.equal(traced.summary.dropped, 0);
});

test('calls within calls have the right parents, depths and durations', () => {
  const traced = runTraced([], build('fib.c'), '18');
  const calls = callsOf(traced.recording);
  const { fib, leaf } = callsOfFib(18);
  const ends = tally(calls);
  assert.equal(ends['fib returned'], fib);
  assert.equal(ends['leaf returned'], leaf);
  assert.equal(ends['round_of returned'], 1);
  assertNested(calls);
  const byId = new Map(calls.map((call) => [call.id, call]));
  const children = new Map<number, string[]>();
  for (const call of calls) {
    const parent = call.parent === null ? undefined : byId.get(call.parent);
    assert.equal(call.depth, parent === undefined ? 0 : parent.depth + 1);
    if (parent !== undefined) children.set(parent.id, [...(children.get(parent.id) ?? []), call.function]);
  }
  for (const call of calls) {
    if (call.function !== 'fib') continue;
    const inside = (children.get(call.id) ?? []).join();
    assert.ok(inside === 'fib,fib' || inside === 'leaf', inside);
  }
});

test('a process that is attached to shows all calls that it makes from then on', async () => {
  const target = await Target.ready(build('fib.c'), '-');
  target.say('20');
  await target.expect(/^fib\(20\)=6765$/);
  const running = await Running.attach(target.pid, '-F', 'fib');
  target.say('22');
  await target.expect(/^fib\(22\)=17711$/);
  const { status, summary, recording } = await running.stop();
  assert.equal(status, 0);
  assert.deepEqual(summary.calls, { fib: callsOfFib(22).fib });
  assert.equal(summary.records, 2 * callsOfFib(22).fib);
  assert.equal(summary.ended, 'stopped');
  assertNested(callsOf(recording));
  target.say('20');
  await target.expect(/^fib\(20\)=6765$/);
  await target.finish();
});

test('with --entry-only entries are recorded and exits are not', () => {
  const traced = runTraced(['--entry-only', '-F', 'fib'], build('fib.c'), '20');
  assert.deepEqual(traced.summary.calls, { fib: callsOfFib(20).fib });
  assert.equal(traced.summary.records, callsOfFib(20).fib);
  assert.deepEqual(tally(callsOf(traced.recording)), { 'fib entry-only': callsOfFib(20).fib });
});

test('--depth counts levels below the outermost traced call', () => {
  for (const depth of [0, 3]) {
    const traced = runTraced(['--depth', String(depth), '-F', 'fib'], build('fib.c'), '15');
    const exported = safepoke('export', '--format', 'jsonl', traced.recording);
    const calls = parseJsonLines(exported.stdout);
    assert.equal(traced.stdout, 'fib(15)=610\n');
    // Every level of fib's tree is full so far up.
    assert.equal(calls.length, 2 ** (depth + 1) - 1);
    assert.equal(Math.max(...calls.map((call) => call.depth)), depth);
    assert.equal(traced.summary.dropped, 0);
    assertNested(calls);
  }
});

test('--time-filter leaves the short calls out of what is shown', () => {
  const run = safepoke('run', '--format', 'jsonl', '-t', '1s', '--', build('fib.c'), '10');
  assert.deepEqual(parseJsonLines(run.stdout), []);
  assert.match(run.stdout, /^fib\(10\)=55$/m);
});

test('records that a small ring has no room for are counted, and the loss is shown where it was', () => {
  const { fib } = callsOfFib(27);
  for (const mode of [[], ['--entry-only']]) {
    const traced = runTraced(['--buffer', '64K', '-F', 'fib', ...mode], build('fib.c'), '27');
    assert.equal(traced.stdout, 'fib(27)=196418\n');
    const { records, dropped } = traced.summary;
    assert.ok(dropped > 0);
    assert.equal(records + dropped, mode.length === 0 ? 2 * fib : fib);
    assert.match(traced.stderr, /records were dropped: a ring was full/);
    assert.doesNotMatch(traced.stderr, /never finished/);
    const graph = safepoke('graph', traced.recording);
    assert.equal(graph.status, 0, graph.stderr);
    assert.match(graph.stdout, /lost/);
    const exported = safepoke('export', '--format', 'jsonl', traced.recording);
    let lost = 0;
    for (const [, n] of exported.stdout.matchAll(/^\{"lost":(\d+)/gm)) lost += Number(n);
    assert.equal(lost, dropped);
  }
});

test('-F and -N choose by glob, regular expression and module', () => {
  const program = build('fib.c');
  const traced = (...options: string[]): string[] =>
    Object.keys(runTraced(options, program, '5').summary.calls)
      // What the compiler adds to every program.
      .filter((name) => !/^_|tm_clones|frame_dummy/.test(name))
      .sort();
  assert.deepEqual(traced(), ['fib', 'leaf', 'main', 'round_of']);
  assert.deepEqual(traced('-F', 'f*', '-F', 'round_?f'), ['fib', 'round_of']);
  assert.deepEqual(traced('-F', '/^(fib|main)$/'), ['fib', 'main']);
  assert.deepEqual(traced('-N', 'm*', '-N', '/eaf/'), ['fib', 'round_of']);
  assert.deepEqual(traced('-F', 'libc.so.6!puts', '-F', 'libc.so.6!*printf', '-F', 'leaf'), [
    'leaf',
    'printf',
  ]);
});
