import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import {
  callAndBack,
  defaultMachine,
  memoryModels,
  scenarioNamed,
  scenarios,
  twoSites,
} from '../model/index.js';
import type { Machine } from '../model/index.js';
import {
  int3,
  int3HelpLate,
  nmi2008,
  nmiNoStorm,
  nmiOneWord,
  nmiSpan,
  protocols,
  withoutSteps,
} from '../protocol/index.js';
import { check } from './check.js';
import type { CheckResult } from './check.js';
import { plainStyle, renderTimeline } from './timeline-text.js';
import { timelineOf } from './timeline.js';

const sc: Machine = { ...defaultMachine, memory: 'sc' };
const never: Machine = { ...defaultMachine, overlap: 'never' };

test('the protocol of 2008 is unsafe as soon as NMIs overlap, before the patcher has written anything', () => {
  const result = check(nmi2008, sc, twoSites);
  assert.equal(result.verdict, 'unsafe');
  assert.equal(result.violation?.kind, 'written-while-executed');
  const writers = result.trace?.steps.filter((s) =>
    s.happenings.some((h) => h.wrote !== undefined && h.context === 'base'),
  );
  const text = result.program.textBase;
  assert.ok(writers?.every((s) => s.happenings.every((h) => h.wrote === undefined || (h.cell ?? 0) < text)));
});

test('the timeline of the shortest counterexample is the golden one', async () => {
  const golden = await readFile(new URL('../../src/check/timeline-2008.txt', import.meta.url), 'utf8');
  const timeline = timelineOf(check(nmi2008, sc, twoSites));
  assert.ok(timeline);
  assert.equal(`${renderTimeline(timeline, plainStyle, 130).join('\n')}\n`, golden);
});

/** Any protocol, any few steps left out together, any memory model, overlap and scenario. */
const cases = fc.constantFrom(...protocols).chain((protocol) =>
  fc.record({
    protocol: fc.constant(protocol),
    without: fc.subarray(
      protocol.steps.map((s) => s.name),
      { maxLength: Math.min(3, protocol.steps.length) },
    ),
    memory: fc.constantFrom(...memoryModels),
    overlap: fc.constantFrom('any' as const, 'never' as const),
    scenario: fc.constantFrom(...scenarios.filter((s) => !s.storm)),
  }),
);

function agree(reduced: CheckResult, full: CheckResult): void {
  assert.equal(full.verdict, reduced.verdict);
  if (reduced.verdict === 'unsafe') assert.equal(full.depth, reduced.depth);
  if (reduced.verdict === 'safe') assert.ok(full.states >= reduced.states);
}

test('verdicts and lengths of shortest violations do not depend on the partial-order reduction', () => {
  fc.assert(
    fc.property(cases, ({ protocol, without, memory, overlap, scenario }) => {
      const variant = withoutSteps(protocol, without);
      // Without it a third CPU would take minutes, and so would threads with NMIs.
      const machine: Machine = { cpus: 2, nmis: protocol.thread === undefined ? 1 : 0, memory, overlap };
      agree(check(variant, machine, scenario), check(variant, machine, scenario, { partialOrder: false }));
    }),
    { numRuns: 120, seed: 2008 },
  );
});

test('verdicts and lengths of shortest violations do not depend on the symmetry reduction', () => {
  const stopped = cases.filter((c) => c.protocol.thread === undefined && c.memory !== 'relaxed');
  fc.assert(
    fc.property(stopped, ({ protocol, without, memory, overlap, scenario }) => {
      const variant = withoutSteps(protocol, without);
      const machine: Machine = { cpus: 3, nmis: 1, memory, overlap };
      agree(check(variant, machine, scenario), check(variant, machine, scenario, { symmetry: false }));
    }),
    { numRuns: 50, seed: 2009 },
  );
});

test('a run repeats itself step by step: the trace ends in the violation, one step per counted step', () => {
  for (const memory of memoryModels) {
    const result = check(withoutSteps(nmi2008, ['last-wait']), { ...never, memory }, twoSites);
    assert.equal(result.verdict, 'unsafe');
    assert.equal(result.trace?.steps.length, result.depth);
    assert.deepEqual(result.trace.violation, result.violation);
  }
});

test('too little memory gives an honest unknown, never safe', () => {
  const result = check(nmiOneWord, { ...defaultMachine, nmis: 2 }, twoSites, { limits: { bytes: 1000 } });
  assert.equal(result.verdict, 'unknown');
  assert.match(result.reason ?? '', /MiB/);
});

test('progress is reported while a long search runs', () => {
  let reports = 0;
  check(nmiOneWord, { ...defaultMachine, nmis: 2 }, twoSites, { limits: { onProgress: () => reports++ } });
  assert.ok(reports > 0);
});

test('a storm of NMIs starves the patcher of 2008 and of 2009 in a fair lasso, and not that of nmi-no-storm', () => {
  const storm = scenarioNamed('nmi-storm');
  for (const memory of memoryModels) {
    const machine = { ...defaultMachine, memory };
    for (const protocol of [nmi2008, nmiOneWord]) {
      const result = check(protocol, machine, storm);
      assert.equal(result.verdict, 'livelock');
      assert.deepEqual(result.trace?.waiting, [0]);
      const { steps, lasso = 0 } = result.trace;
      // The run really returns to where its cycle began.
      assert.deepEqual(steps[steps.length - 1].memory, steps[lasso - 1].memory);
      const cycle = steps.slice(lasso).flatMap((s) => s.happenings.map((h) => ({ cpu: s.cpu, ...h })));
      for (const cpu of [1, 2])
        assert.ok(
          cycle.some((h) => h.cpu === cpu && h.what === 'returned'),
          `NMIs on CPU ${cpu} finish`,
        );
    }
    assert.equal(check(nmiNoStorm, machine, storm).verdict, 'safe');
  }
});

test('finitely many NMIs starve nobody', () => {
  for (const protocol of [nmi2008, nmiOneWord, nmiNoStorm])
    assert.equal(check(protocol, { ...never, nmis: 2 }, callAndBack).verdict, 'safe');
});

test('a wait for what can no longer happen is a livelock', () => {
  const routines = nmi2008.routines.map((r) =>
    r.name === 'wait_for_nmi'
      ? {
          name: r.name,
          operations: [{ op: 'wait-until' as const, word: 'in_nmi', test: 'equal' as const, value: 9 }],
        }
      : r,
  );
  const result = check({ ...nmi2008, routines }, never, twoSites);
  assert.equal(result.verdict, 'livelock');
  assert.deepEqual(result.trace?.waiting, [0]);
});

test('a late helper of int3 writes into the next change of the same site', () => {
  const machine: Machine = { cpus: 3, nmis: 0, memory: 'sc', overlap: 'any' };
  assert.equal(check(int3HelpLate, machine, callAndBack).verdict, 'unsafe');
  assert.equal(check(int3HelpLate, machine, twoSites).verdict, 'safe');
  assert.equal(check(int3, machine, callAndBack).verdict, 'safe');
});

test('a span is left half changed where its write fails behind the first site, unless the old code is written first', () => {
  const scenario = scenarioNamed('faulting-span');
  for (const memory of memoryModels) {
    const machine: Machine = { ...defaultMachine, memory };
    assert.equal(check(nmiSpan, machine, scenario).verdict, 'safe');
    const { verdict, violation } = check(withoutSteps(nmiSpan, ['rehearsal']), machine, scenario);
    assert.deepEqual([verdict, violation?.kind], ['unsafe', 'wrong-result']);
  }
});

test('a helper that cannot write may neither go on nor take the flag down', () => {
  const scenario = scenarioNamed('failing-helpers');
  for (const memory of memoryModels) {
    const machine: Machine = { ...defaultMachine, memory };
    assert.equal(check(nmiSpan, { ...machine, nmis: 2 }, scenario).verdict, 'safe');
    for (const protocol of [withoutSteps(nmiSpan, ['helper-wait']), nmiOneWord]) {
      const { verdict, violation } = check(protocol, machine, scenario);
      assert.deepEqual([verdict, violation?.kind], ['unsafe', 'written-while-executed'], protocol.name);
    }
  }
});

test('text that must be made writable first is unlocked by the patcher for all: one that locks takes it from another writer', () => {
  const naive = withoutSteps(nmiSpan, ['shared-unlock']);
  for (const memory of memoryModels) {
    const machine: Machine = { ...defaultMachine, memory };
    for (const name of ['locked-spans', 'locked-and-back', 'sealed-span']) {
      assert.equal(check(nmiSpan, machine, scenarioNamed(name)).verdict, 'safe', name);
      const { verdict, violation } = check(withoutSteps(nmiSpan, ['lock']), machine, scenarioNamed(name));
      assert.deepEqual([verdict, violation?.kind], ['unsafe', 'left-writable'], name);
    }
    assert.equal(check(naive, machine, scenarioNamed('locked-spans')).verdict, 'unsafe');
  }
  // Some of the span is written, and the patcher is told that nothing is.
  const timeline = timelineOf(check(naive, sc, scenarioNamed('locked-spans')));
  const lines = timeline?.rows.map((row) => row.cells.flat().join('; ')) ?? [];
  const found = lines.findIndex((line) => line === 'finds that A is locked');
  assert.ok(
    found > 0 && lines[found - 1].includes('lock_text(mod_ip, mod_length): A is locked'),
    lines.join('\n'),
  );
  assert.deepEqual(timeline?.conclusion, ['Change 1 returns -1, not 0.']);
});

test('a protocol that knows nothing of locked text writes none of it, and says so', () => {
  for (const { verdict, violation } of [nmiOneWord, int3].map((p) =>
    check(p, sc, scenarioNamed('locked-spans')),
  ))
    assert.deepEqual([verdict, violation?.kind], ['unsafe', 'wrong-result']);
});

test('a helper that may wait for what it has interrupted waits for ever: the patcher must have NMIs off', () => {
  const { patcherMasked, ...unmasked } = nmiSpan;
  assert.equal(patcherMasked, true);
  assert.equal(check(unmasked, sc, scenarioNamed('failing-helpers')).verdict, 'livelock');
});
