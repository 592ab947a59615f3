import { test } from 'node:test';
import assert from 'node:assert/strict';
import {
  UnknownStep,
  architectures,
  emptyHooks,
  hasHooks,
  nmi2008,
  protocols,
  routineOf,
  withoutSteps,
} from './index.js';

test('every protocol is plain data', () => {
  for (const protocol of protocols) assert.deepEqual(JSON.parse(JSON.stringify(protocol)), protocol);
});

test('every routine that is called is there, and every word that is used is declared', () => {
  for (const protocol of protocols) {
    const words = protocol.words.map((w) => w.name);
    for (const entry of [protocol.patch, protocol.nmi, protocol.thread, protocol.trap])
      if (entry !== undefined) routineOf(protocol, entry);
    for (const { operations } of protocol.routines)
      for (const o of operations) {
        if (o.op === 'call') routineOf(protocol, o.routine);
        if ('word' in o) assert.ok(words.includes(o.word), `${protocol.name}: ${o.word}`);
        if (o.op === 'wait-until' && o.waits !== undefined) assert.ok(words.includes(o.waits), o.waits);
      }
  }
});

test('every step of a protocol stands for operations, and every operation with a step names a step', () => {
  for (const protocol of protocols) {
    const all = protocol.routines.flatMap((r) => r.operations);
    const named = new Set(all.flatMap((o) => [o.step, o.instead]).filter((s) => s !== undefined));
    assert.deepEqual([...named].sort(), protocol.steps.map((s) => s.name).sort(), protocol.name);
  }
});

test('the protocol of 2008 has the steps that can be left out by name', () => {
  assert.deepEqual(
    nmi2008.steps.map((s) => s.name),
    [
      'fill-barrier',
      'flag-barrier',
      'first-wait',
      'wait-barrier',
      'write-barrier',
      'clear-barrier',
      'last-wait',
      'enter-barrier',
      'exit-barrier',
      'count',
      'help',
      'hook-first',
    ],
  );
});

test('a step that is left out is gone, and the others stay in their order', () => {
  const without = withoutSteps(nmi2008, ['first-wait', 'help']);
  const before = routineOf(nmi2008, 'do_ftrace_mod_code').operations;
  const after = routineOf(without, 'do_ftrace_mod_code').operations;
  assert.deepEqual(
    after,
    before.filter((o) => o.step !== 'first-wait'),
  );
  assert.ok(!routineOf(without, 'ftrace_nmi_enter').operations.some((o) => o.op === 'call'));
  assert.deepEqual(without.without, ['first-wait', 'help']);
});

test('the hook stands first on the way in, and behind lockdep_off if that step is left out', () => {
  const order = (steps: readonly string[]): string[] =>
    routineOf(withoutSteps(nmi2008, steps), 'nmi_enter').operations.map((o) => o.op);
  assert.deepEqual(order([]), ['call', 'execute']);
  assert.deepEqual(order(['hook-first']), ['execute', 'call']);
});

test('a step that is not there is refused, with the list of those that are', () => {
  assert.throws(
    () => withoutSteps(nmi2008, ['hope']),
    (error) => {
      assert.ok(error instanceof UnknownStep);
      assert.equal(error.step, 'hope');
      assert.ok(error.known.includes('last-wait'));
      return true;
    },
  );
});

test('only x86 with dynamic ftrace and the function tracer has hooks', () => {
  for (const architecture of architectures)
    for (const dynamicFtrace of [false, true])
      for (const functionTracer of [false, true])
        assert.equal(
          hasHooks({ architecture, dynamicFtrace, functionTracer }),
          architecture === 'x86' && dynamicFtrace && functionTracer,
        );
  const empty = emptyHooks(nmi2008.routines);
  assert.deepEqual(empty.find((r) => r.name === 'ftrace_nmi_enter')?.operations, []);
  assert.deepEqual(empty.find((r) => r.name === 'ftrace_nmi_exit')?.operations, []);
});
