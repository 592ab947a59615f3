/**
 * The litmus tests by which memory models are told apart, put as protocols: the patcher is one side, NMIs the other, and
 * what must not be seen makes the patcher's change return 1.
 */
import { test } from 'node:test';
import assert from 'node:assert/strict';
import type { Operation, Protocol, Word } from '../protocol/index.js';
import { atomicAdd, branch, label, load, set, smpMb, smpWmb, store } from '../protocol/index.js';
import { memoryModels, twoSites } from '../model/index.js';
import type { Scenario } from '../model/index.js';
import { check } from './check.js';

const nothing: Scenario = {
  ...twoSites,
  changes: [{ ...twoSites.changes[0], to: twoSites.changes[0].from }],
  functions: { lockdep_off: [], handlers: [], thread_work: [] },
};

function verdicts(patcher: readonly Operation[], nmi: readonly Operation[]): string[] {
  const words: Word[] = ['x', 'y', 'seen'].map((name) => ({ name, initial: 0, use: 'value', meaning: name }));
  const protocol: Protocol = {
    name: 'litmus',
    title: '',
    purpose: '',
    words,
    steps: [],
    routines: [
      { name: 'patch', operations: [set('result', 0), ...patcher] },
      { name: 'nmi', operations: nmi },
    ],
    patch: 'patch',
    nmi: 'nmi',
  };
  return memoryModels.map(
    (memory) => check(protocol, { cpus: 2, nmis: 1, memory, overlap: 'any' }, nothing).verdict,
  );
}

const ifOldAfterNew: readonly Operation[] = [
  load('new', 'y'),
  branch('new', 'equal', 0, 'over'),
  load('old', 'x'),
  branch('old', 'not-equal', 0, 'over'),
  store('seen', 1),
  label('over'),
];
const ifItMissed: readonly Operation[] = [
  load('theirs', 'x'),
  branch('theirs', 'not-equal', 0, 'over'),
  store('seen', 1),
  label('over'),
];
const ifBothMissed: readonly Operation[] = [
  load('theirs', 'y'),
  smpMb(),
  branch('theirs', 'not-equal', 0, 'fine'),
  load('result', 'seen'),
  label('fine'),
];

test('message passing: two stores leave in order but under pso and relaxed, unless smp_wmb is between them', () => {
  const seen = load('result', 'seen');
  assert.deepEqual(verdicts([store('x', 1), store('y', 1), seen], ifOldAfterNew), [
    'safe',
    'safe',
    'unsafe',
    'unsafe',
  ]);
  assert.deepEqual(verdicts([store('x', 1), smpWmb(), store('y', 1), seen], ifOldAfterNew), [
    'safe',
    'safe',
    'safe',
    'safe',
  ]);
});

test('store buffering: a load overtakes a store but under sc, unless smp_mb is between them on both sides', () => {
  assert.deepEqual(verdicts([store('x', 1), ...ifBothMissed], [store('y', 1), ...ifItMissed]), [
    'safe',
    'unsafe',
    'unsafe',
    'unsafe',
  ]);
  assert.deepEqual(
    verdicts([store('x', 1), smpMb(), ...ifBothMissed], [store('y', 1), smpMb(), ...ifItMissed]),
    ['safe', 'safe', 'safe', 'safe'],
  );
});

test('an atomic increment is a full barrier but under relaxed, where smp_mb must follow it', () => {
  assert.deepEqual(verdicts([store('x', 1), smpMb(), ...ifBothMissed], [atomicAdd('y', 1), ...ifItMissed]), [
    'safe',
    'safe',
    'safe',
    'unsafe',
  ]);
  assert.deepEqual(
    verdicts([store('x', 1), smpMb(), ...ifBothMissed], [atomicAdd('y', 1), smpMb(), ...ifItMissed]),
    ['safe', 'safe', 'safe', 'safe'],
  );
});

test('a CPU reads its own store before it leaves the buffer', () => {
  const own: readonly Operation[] = [
    store('x', 1),
    load('mine', 'x'),
    branch('mine', 'equal', 1, 'fine'),
    set('result', 1),
    label('fine'),
  ];
  assert.deepEqual(verdicts(own, []), ['safe', 'safe', 'safe', 'safe']);
});
