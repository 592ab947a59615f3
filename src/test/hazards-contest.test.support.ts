// Several that begin with one process at the same moment.
import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { attach, type SessionSummary } from '../index.js';
import { assertAsBefore, assertWell, stateOf } from './process-state.test.support.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Target, build, pause } from './targets.test.support.js';

const program = fileURLToPath(new URL('contender.js', import.meta.url));

const CONTENDERS = 3;
const THREADS = '2';
/** Calls of known(), by one thread, whose ring has room for all of them. */
const CALLS = 1000;
/** In one round of so many one is killed; in the others one of them must get in. */
const KILLS = 4;
/** Killed so long after all were told to begin, at most, in parts of what the one that got in last has taken for it; and before one has. */
const KILL_PART = 1.5;
const FIRST_GUESS_MS = 300;
/** Another session, or one that is dying, or has just died and is not buried yet. */
const REFUSED = /^refused ALREADY_TRACED /;

function contender(pid: number): Promise<Target> {
  return Target.ready(process.execPath, program, String(pid));
}

/** What the one that traces has seen is exact; the target's results are. */
async function assertExact(target: Target, tracer: Target, when: string): Promise<void> {
  target.say(String(CALLS));
  assert.equal(await target.line(), 'fine', when);
  tracer.say('detach');
  const { calls, restored, removed } = JSON.parse(await tracer.line()) as SessionSummary;
  assert.deepEqual(
    { when, known: calls['known'], restored, removed },
    { when, known: CALLS, restored: true, removed: true },
  );
}

/** What it says next; if it ends before it says anything, how it ended. */
async function lineOf(contender: Target): Promise<string> {
  try {
    return await contender.line();
  } catch {
    const { status, signal } = await contender.ended();
    return `ended: ${signal ?? status ?? 'unknown'} ${contender.stderr}`;
  }
}

/** Each attaches at the same moment, and is either refused or traces exactly, whoever is killed meanwhile. */
async function contest(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('busy.c'), THREADS);
  await assertWell(target, 'before');
  const before = stateOf(target.pid);
  const all = await Promise.all(Array.from({ length: CONTENDERS }, () => contender(target.pid)));
  let attachMs = FIRST_GUESS_MS;
  while (rounds.next(target.pid)) {
    const victim = rounds.done % KILLS === 1 ? Math.floor(Math.random() * CONTENDERS) : undefined;
    const ms = Math.random() * attachMs * KILL_PART;
    const when = victim === undefined ? 'nobody killed' : `one killed after ${ms} ms`;
    for (const one of all) one.say('attach');
    const began = performance.now();
    const answers = Promise.all(
      all.map(async (one) => {
        const line = await lineOf(one);
        if (line === 'traces') attachMs = performance.now() - began;
        return line;
      }),
    );
    if (victim !== undefined) {
      await pause(ms);
      all[victim].kill();
      await all[victim].ended();
    }
    const said = await answers;
    const alive = all.map((_, i) => i).filter((i) => i !== victim);
    for (const i of alive) if (said[i] !== 'traces') assert.match(said[i], REFUSED, when);
    const tracers = alive.filter((i) => said[i] === 'traces');
    assert.ok(tracers.length <= 1, `${when}: ${said.join('; ')}`);
    if (victim === undefined) assert.equal(tracers.length, 1, said.join('; '));
    else
      rounds.count(
        `killed, of them ${said[victim] === 'traces' ? 'that traced' : 'in or before their attach'}`,
      );
    rounds.count(tracers.length === 0 ? 'rounds in which nobody got in' : 'rounds in which one got in');
    for (const i of tracers) await assertExact(target, all[i], when);
    await assertWell(target, when);
    if (victim !== undefined) {
      const replaced = contender(target.pid);
      // What one left that was killed goes with the next session.
      const next = attach(target.pid, { filters: ['mix'], bufferBytes: 1 << 18 });
      const { restored, removed } = await next.stop();
      assert.deepEqual({ when, restored, removed }, { when, restored: true, removed: true });
      all[victim] = await replaced;
    }
    assertAsBefore(target.pid, before, when);
    await assertWell(target, when);
  }
  for (const one of all) await one.finish();
  await target.finish();
}

export const contestHazards: readonly Hazard[] = [
  {
    name: 'several safepokes begin at the same moment, and some are killed: each is refused or traces exactly',
    run: contest,
  },
];
