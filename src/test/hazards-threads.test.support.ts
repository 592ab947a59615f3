// Threads: many, busy, short-lived, in signal handlers, with signals blocked.
import assert from 'node:assert/strict';
import { attach, type SessionSummary } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Target, answered, build, changedBytes, pause } from './targets.test.support.js';

/** Small rings: what is drained is not the point. */
const BUFFER = 1 << 20;

function assertLeft(summary: SessionSummary, pid: number): void {
  assert.deepEqual(
    { restored: summary.restored, removed: summary.removed, changed: changedBytes(pid) },
    { restored: true, removed: true, changed: 0 },
  );
}

/** What a target counted itself, and nothing wrong, against what was recorded. */
function assertExact(answer: string, summary: SessionSummary): void {
  const { wrong, ...counts } = answered(answer);
  assert.equal(wrong, 0);
  const seen = Object.fromEntries(Object.keys(counts).map((name) => [name, summary.calls[name] ?? 0]));
  assert.deepEqual({ ...seen, dropped: summary.dropped }, { ...counts, dropped: 0 });
}

/** Attaches to and leaves a crowd that is busy; every eighth time counts what it does. */
async function toggleCrowd(rounds: Rounds, threads: number, flags: string, size: number): Promise<void> {
  const target = new Target(build('crowd.c'), String(threads), flags);
  await target.expect(/^done wrong=0 /);
  target.say('run');
  while (rounds.next(target.pid)) {
    if (rounds.done % 8 !== 1) {
      const filters = [[], ['step', 'mix'], ['round_of'], ['inner', 'handle', 'step']][rounds.done % 4];
      const session = attach(target.pid, { bufferBytes: BUFFER, filters });
      if (rounds.done % 3 === 0) await pause(rounds.done % 5);
      assertLeft(await session.stop(), target.pid);
      continue;
    }
    target.say('quiet');
    assert.equal(answered(await target.line())['wrong'], 0);
    const session = attach(target.pid, { filters: ['round_of', 'step', 'mix', 'inner', 'handle'] });
    target.say(`batch ${size}`);
    const answer = await target.line();
    const summary = await session.stop();
    assertLeft(summary, target.pid);
    assertExact(answer, summary);
    target.say('run');
  }
  target.say('quiet');
  assert.equal(answered(await target.line())['wrong'], 0);
  await target.finish();
}

/** Comes and goes beside threads that wait and wake up; every eighth time counts what they do. */
async function toggleWaiters(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('waiters.c'));
  target.say('run');
  while (rounds.next(target.pid)) {
    const session = attach(target.pid, {
      bufferBytes: BUFFER,
      filters: [[], ['turn'], ['caught', 'nap']][rounds.done % 3],
    });
    if (rounds.done % 3 === 0) await pause(rounds.done % 50);
    const summary = await session.stop();
    assertLeft(summary, target.pid);
    rounds.note('ms held', summary.held_us / 1000);
    if (rounds.done % 8 !== 1) continue;
    target.say('quiet');
    assert.equal(answered(await target.line())['wrong'], 0);
    const exact = attach(target.pid, { filters: ['turn', 'caught', 'nap'] });
    target.say('run');
    await pause(100);
    target.say('quiet');
    const answer = await target.line();
    const whole = await exact.stop();
    assertLeft(whole, target.pid);
    assertExact(answer, whole);
    target.say('run');
  }
  target.say('quiet');
  assert.equal(answered(await target.line())['wrong'], 0);
  await target.finish();
}

/** A storm of threads is traced as a whole, so that counts are exact; then safepoke comes and goes in the middle of others. */
async function churn(rounds: Rounds): Promise<void> {
  const STORM = 300;
  const STORMS = 8;
  const target = await Target.ready(build('threads.c'), '-');
  while (rounds.next(target.pid)) {
    const session = attach(target.pid, { bufferBytes: 1 << 16 });
    for (let i = 0; i < STORMS; i++) {
      target.say(String(STORM));
      await target.expect(/^done 0$/);
    }
    const whole = await session.stop();
    assertLeft(whole, target.pid);
    // More threads than there are lanes: each that ended left its lane to another, or its records are counted as lost.
    assert.equal(
      (whole.calls['body'] ?? 0) * 2 + (whole.calls['step'] ?? 0) * 2 + whole.dropped,
      2 * workOf(STORM, STORMS),
    );
    assert.ok(whole.threads + whole.laneless >= STORM * STORMS);
    for (let i = 0; i < STORMS; i++) target.say(String(STORM));
    for (let i = 0; i < STORMS; i++) {
      const passing = attach(target.pid, { bufferBytes: 1 << 16 });
      assertLeft(await passing.stop(), target.pid);
      await target.expect(/^done 0$/);
    }
  }
  await target.finish();
}

/** Calls of `body` and `step` in storms of so many threads: thread i takes i % 7 + 1 steps. */
function workOf(threads: number, storms: number): number {
  let calls = 0;
  for (let i = 0; i < threads; i++) calls += 1 + (i % 7) + 1;
  return calls * storms;
}

async function trapActions(rounds: Rounds): Promise<void> {
  const ways = [
    ['handled'],
    ['handled', 'blocked'],
    ['ignored'],
    ['ignored', 'blocked'],
    ['default', 'blocked'],
  ];
  while (rounds.next()) {
    for (const way of ways) {
      const target = await Target.ready(build('sigtrap.c'), ...way);
      for (let i = 0; i < 4; i++) {
        const session = attach(target.pid, { bufferBytes: BUFFER, filters: ['work'] });
        if (i % 2 === 0) await pause(3);
        assertLeft(await session.stop(), target.pid);
      }
      target.say('look');
      assert.equal(await target.line(), 'kept', way.join());
      await target.finish();
    }
  }
}

export const threadHazards: readonly Hazard[] = [
  {
    name: 'fifty busy threads on sites that come and go: every result right, every count exact',
    run: (rounds) => toggleCrowd(rounds, 50, '', 200),
  },
  {
    name: 'two hundred threads that wait in system calls and wake up: every call returns what it should, no signal is lost',
    run: toggleWaiters,
  },
  {
    name: 'fifty threads, each with a timer of its own and handlers that are traced, nested, on alternate stacks',
    run: (rounds) => toggleCrowd(rounds, 50, 'tan', 400),
  },
  {
    name: 'handlers that block every signal',
    run: (rounds) => toggleCrowd(rounds, 8, 'tm', 2000),
  },
  {
    name: 'threads that block every signal, SIGTRAP too',
    run: (rounds) => toggleCrowd(rounds, 16, 'b', 500),
  },
  {
    name: 'SIGTRAP handled, ignored or blocked stays so, and no thread dies of it',
    run: trapActions,
  },
  {
    name: 'threads that come and go by the hundred: no record without its thread, no lane used up for good',
    run: churn,
  },
];
