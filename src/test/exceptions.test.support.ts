// Programs that throw without a pause while safepoke comes, goes, and is killed.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { attach } from '../index.js';
import { textOf } from './process-state.test.support.js';
import type { Rounds } from './rounds.test.support.js';
import { Running, Target, answered, build, pause } from './targets.test.support.js';

/** Functions of leaves.cc through which exceptions are thrown. */
export const THROWN_THROUGH = ['on_user', 'throws', 'work', 'step'] as const;
/** Its main thread and those that throw. */
const LEAVING_THREADS = 4;

/** leaves.cc, once its threads are there: before that not all of its text is. */
export async function startThrowing(): Promise<Target> {
  const target = new Target(build('leaves.cc'), '0');
  while (readdirSync(`/proc/${target.pid}/task`).length < LEAVING_THREADS) await pause(2);
  return target;
}

/** Kills safepoke in the middle of a session. All text is the files' again then, after a while. */
export async function killInSession(
  target: Target,
  before: Buffer,
  ms: number,
  functions: readonly string[],
): Promise<void> {
  const running = await Running.attach(target.pid, ...functions.flatMap((name) => ['-F', name]));
  await pause(ms);
  running.child.kill('SIGKILL');
  await running.gone();
  while (target.child.exitCode === null && target.child.signalCode === null) {
    if (textOf(target.pid).equals(before)) return;
    await pause(2);
  }
}

/** It ends by itself, and has found nothing wrong. Returns what it has counted. */
export async function assertFine(target: Target): Promise<Record<string, number>> {
  target.kill('SIGINT');
  const { status, signal } = await target.ended();
  assert.deepEqual({ status, signal }, { status: 0, signal: null }, target.stderr);
  return answered(await target.rest());
}

/** Sessions end as they should, or safepoke is killed in them, beside threads that throw all the while. */
export async function throwing(rounds: Rounds): Promise<void> {
  const target = await startThrowing();
  try {
    const before = textOf(target.pid);
    while (rounds.next()) {
      if (rounds.done % 4 === 0) {
        await killInSession(target, before, Math.random() * 100, THROWN_THROUGH);
        continue;
      }
      const session = attach(target.pid, { filters: [...THROWN_THROUGH] });
      await pause((rounds.done % 12) * 3);
      const { restored, removed } = await session.stop();
      assert.deepEqual({ restored, removed }, { restored: true, removed: true }, target.stderr);
    }
    await assertFine(target);
  } finally {
    target.kill();
  }
}
