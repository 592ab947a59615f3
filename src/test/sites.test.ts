import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';
import { attach, listFunctions } from '../index.js';
import {
  Target,
  assertNested,
  build,
  callsOf,
  changedBytes,
  runTraced,
  tally,
} from './targets.test.support.js';

/** Ways to compile a program, and the kind of site that fib then has. */
const WAYS: readonly (readonly [kind: string, ...flags: string[]])[] = [
  ['patchable', '-fpatchable-function-entry=5'],
  ['patchable', '-fpatchable-function-entry=16,5'],
  ['patchable', '-fpatchable-function-entry=5', '-fcf-protection=full'],
  ['fentry', '-pg', '-mfentry', '-mnop-mcount', '-mrecord-mcount', '-fno-pie', '-no-pie'],
  ['call-site', '-pg', '-fno-pie', '-no-pie'],
  ['call-site', '-pg', '-O0'],
  ['call-site', '-pg'],
  ['call-site', '-pg', '-mfentry', '-fno-pie', '-no-pie'],
  ['call-site', '-pg', '-mfentry'],
  ['relocated', '-fcf-protection=full'],
  ['relocated', '-O0'],
  ['relocated', '-O2'],
  ['relocated', '-Os'],
  ['relocated', '-O3', '-march=native'],
  ['relocated', '-static'],
  ['relocated', '-static-pie'],
  ['relocated', '-fno-pie', '-no-pie'],
  ['relocated', '-O2', '-fomit-frame-pointer', '-mcmodel=large'],
  ['relocated', '-O2', '-xc++'],
];

for (const [kind, ...flags] of WAYS) {
  test(`sites of kind ${kind}: gcc ${flags.join(' ')}`, () => {
    const program = build('fib.c', ...flags);
    const name = flags.includes('-xc++') ? 'fib(long)' : 'fib';
    const traced = runTraced(['-F', 'fib*', '-F', 'leaf*', '-F', 'round_of*'], program, '12', '14');
    assert.equal(traced.status, 0, traced.stderr);
    assert.equal(traced.stdout, 'fib(12)=144\nfib(14)=377\n');
    const calls = callsOf(traced.recording);
    const ends = tally(calls);
    // Small code has no room for its exits: only where calls begin is told, as the listing says.
    const exit = flags.includes('-Os') ? 'none' : 'sites';
    const end = exit === 'none' ? 'entry-only' : 'returned';
    assert.equal(ends[`${name} ${end}`], 465 + 1219, JSON.stringify(ends));
    assertNested(calls);
    assert.deepEqual(
      new Set(calls.filter((call) => call.function === name).map((call) => call.end)),
      new Set([end]),
    );
    for (const call of calls) if (call.function !== name) assert.equal(call.end, 'returned');
    const listed = listFunctions({ file: program }, ['fib*']).functions;
    assert.deepEqual(
      listed.map((f) => [f.kind, f.exit]),
      [[kind, exit]],
    );
  });
}

test('a thread that waits in a system call among the first bytes of a function is not led astray', async () => {
  const target = await Target.ready(build('restarts.c'));
  for (let i = 0; i < 5; i++) {
    const session = attach(target.pid, { filters: ['wait_here', 'other'], bufferBytes: 1 << 16 });
    target.say('wake');
    assert.equal(await target.line(), 'wrong=0 other=3');
    const summary = await session.stop();
    assert.equal(summary.restored, true);
    assert.ok(summary.removed);
    assert.ok((summary.calls['other'] ?? 0) > 0);
    target.say('wake');
    assert.equal(await target.line(), 'wrong=0 other=3');
  }
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

test('whatever a call carries arrives, and no register changes', () => {
  for (const flags of [
    ['-O0'],
    ['-O2', '-foptimize-sibling-calls', '-fpatchable-function-entry=5'],
    ['-O2'],
  ]) {
    const program = build('abi.c', ...flags);
    const plain = execFileSync(program, ['20', '10'], { encoding: 'utf8' });
    for (const options of [['--buffer', '4096'], ['--entry-only']]) {
      const traced = runTraced(options, program, '20', '10');
      assert.equal(traced.status, 0, traced.stderr);
      assert.match(traced.stdout, /bad=0$/m, flags.join());
      assert.equal(traced.stdout, plain);
    }
  }
});

test('each link of a chain of tail calls is a call of its own, and chains longer than can be kept are counted', () => {
  const program = build('abi.c', '-O2', '-foptimize-sibling-calls');
  const traced = runTraced(['-F', 'link_?'], program, '3', '10');
  assert.equal(traced.summary.dropped, 0);
  const calls = callsOf(traced.recording);
  assertNested(calls);
  assert.deepEqual(tally(calls), { 'link_a returned': 33, 'link_b returned': 33, 'link_c returned': 33 });
  const long = runTraced(['-F', 'link_?'], program, '3', '100000');
  assert.equal(long.status, 0, long.stderr);
  assert.equal(long.summary.records + long.summary.dropped, 2 * 3 * 3 * 100_001);
});
