import { test } from 'node:test';
import assert from 'node:assert/strict';
import { check } from '../check/index.js';
import { callAndBack } from '../model/index.js';
import type { Machine, Scenario } from '../model/index.js';
import {
  atomicAdd,
  branch,
  fetchAdd,
  int3,
  int3Help,
  label,
  load,
  nmiNoStorm,
  nmiOneWord,
  nmiSpan,
  routineOf,
  set,
  smpMb,
  step,
  store,
  withoutSteps,
} from '../protocol/index.js';
import type { Protocol } from '../protocol/index.js';
import { protocolCase, verdictOf } from './cases.js';
import { crashCount, isBroken, runCase, tableHeading, tableRow, caseNamed } from './index.js';
import type { StressCase, StressResult } from './index.js';

/** Long enough for the changes that are asked for on the slowest machine: what ends a run is their number. */
const AMPLE_SECONDS = 300;

function run(stressCase: StressCase, modifications: number, threads = 1): Promise<StressResult> {
  return runCase(stressCase, { seconds: AMPLE_SECONDS, modifications, threads });
}

function assertNothingBroke(result: StressResult): void {
  const { wrong, refused, stuck, crashes } = result;
  assert.deepEqual({ wrong, refused, stuck, crashes }, { wrong: 0, refused: 0, stuck: 0, crashes: {} });
}

for (const protocol of [nmiOneWord, nmiSpan, nmiNoStorm, int3, int3Help])
  test(`${protocol.name} on two real threads with handlers: every call sees old or new code, as in the model`, async () => {
    const result = await run(protocolCase(protocol), 3000);
    assert.ok(result.modifications >= 3000);
    assert.ok(result.calls > 0 && result.signals > 0);
    assertNothingBroke(result);
  });

test('nmi-span where text must be made writable first: no writer finds it locked, and the naive form crashes', async () => {
  const way = caseNamed('nmi-span-mprotect', []);
  assert.ok(way !== undefined);
  const result = await run(way, 3000);
  assert.ok(result.modifications >= 3000 && verdictOf(way) === 'safe');
  assertNothingBroke(result);
  const naive = caseNamed('nmi-span-mprotect', ['shared-unlock']);
  assert.ok(naive !== undefined);
  let crashes = 0;
  // A writer that gives text its rights back while another writes is likely in each run, and certain in none.
  while (crashes === 0) {
    crashes = crashCount(await run(naive, 3000, 2));
  }
  assert.equal(verdictOf(naive), 'unsafe');
});

test('a page flip and a hold by ptrace change code under running threads and handlers', async () => {
  for (const name of ['page-flip', 'held']) {
    const way = caseNamed(name, []);
    assert.ok(way !== undefined);
    const result = await run(way, 30, 2);
    assert.ok(result.modifications >= 30, name);
    assertNothingBroke(result);
  }
});

test('a protocol that deceives threads is found out: a trap taken for a nop between two calls', async () => {
  const way = caseNamed('int3-skip', []);
  assert.ok(way !== undefined);
  let wrong = 0;
  // A trap in the moment of the change is likely in each run, and certain in none.
  while (wrong === 0) wrong = (await run(way, 3000, 2)).wrong;
  assert.ok(wrong > 0);
});

test('a process that crashes is counted, and another takes its place', async () => {
  const crashing: Protocol = {
    ...nmiOneWord,
    routines: nmiOneWord.routines.map((r) =>
      // At address 0 there is nothing to read.
      r.name === 'do_ftrace_mod_code' ? { ...r, operations: [set('ip', 0), ...readsSite(nmiOneWord)] } : r,
    ),
  };
  const result = await run({ ...protocolCase(nmiOneWord), protocol: crashing }, 1);
  assert.ok((result.crashes['SIGSEGV'] ?? 0) > 1);
  assert.equal(crashCount(result), result.crashes['SIGSEGV']);
  assert.ok(isBroken(result));
});

function readsSite(protocol: Protocol): Protocol['routines'][number]['operations'] {
  return routineOf(protocol, 'ftrace_modify_code').operations.filter((o) => o.op === 'compare-text');
}

/**
 * Two flags that exclude each other: each side raises its own, and goes inside if the other's is down. The patcher's change
 * returns 1 if it finds somebody inside.
 */
const twoFlags: Protocol = {
  name: 'two-flags',
  title: '',
  purpose: '',
  words: ['mine', 'theirs', 'inside'].map((name) => ({ name, initial: 0, use: 'value', meaning: name })),
  steps: [{ name: 'barrier', meaning: 'smp_mb between raising the own flag and looking at the other' }],
  routines: [
    {
      name: 'patch',
      operations: [
        set('result', 0),
        store('mine', 1),
        ...step('barrier', smpMb()),
        load('seen', 'theirs'),
        branch('seen', 'not-equal', 0, 'leave'),
        fetchAdd('others', 'inside', 1),
        branch('others', 'equal', 0, 'alone'),
        set('result', 1),
        label('alone'),
        atomicAdd('inside', -1),
        label('leave'),
        store('mine', 0),
      ],
    },
    {
      name: 'thread',
      operations: [
        store('theirs', 1),
        ...step('barrier', smpMb()),
        load('seen', 'mine'),
        branch('seen', 'not-equal', 0, 'leave'),
        atomicAdd('inside', 1),
        atomicAdd('inside', -1),
        label('leave'),
        store('theirs', 0),
      ],
    },
    { name: 'nmi', operations: [] },
  ],
  patch: 'patch',
  nmi: 'nmi',
  thread: 'thread',
};

test('what a full barrier forbids in the model is not seen on two real threads', async () => {
  const machine: Machine = { cpus: 2, nmis: 0, memory: 'tso', overlap: 'any' };
  const nothing: Scenario = {
    ...callAndBack,
    changes: [{ ...callAndBack.changes[0], to: callAndBack.changes[0].from }],
    functions: { lockdep_off: [], handlers: [], thread_work: [] },
  };
  assert.equal(check(twoFlags, machine, nothing).verdict, 'safe');
  assert.equal(check(withoutSteps(twoFlags, ['barrier']), machine, nothing).verdict, 'unsafe');
  const result = await run(protocolCase(twoFlags), 1_000_000);
  assertNothingBroke(result);
});

test('the table has a column for each figure, and marks what is broken', async () => {
  const result = await run(protocolCase(nmiOneWord), 100);
  const [heading] = tableHeading();
  const mark = (text: string): string => `<${text}>`;
  assert.match(heading, /changes .* wrong .* crashes .* checker$/);
  assert.ok(!tableRow(result, mark).includes('<'));
  assert.match(tableRow({ ...result, wrong: 1, verdict: 'unsafe' }, mark), /^<nmi-one-word .*> {2}unsafe$/);
});
