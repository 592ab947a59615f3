// The machine's time of day is set while safepoke and the target run. The tests set no clock: a library that both are loaded with
// tells them another time at each look.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import type { Hazard, Rounds } from './rounds.test.support.js';
import {
  Running,
  Target,
  answered,
  build,
  callsOf,
  changedBytes,
  folder,
  fresh,
  main,
  parseJsonLines,
  readSummary,
  recordedMs,
  type JsonCall,
  type Traced,
} from './targets.test.support.js';

const NAPS = 16;
/** A session that the clock ends. */
const DURATION_MS = 100;
/** Timers may come so much early, as they count whole milliseconds. */
const TIMER_MS = 2;
/** The clock is set by hours: whatever takes less has not gone by it. */
const LEAST_SET_MS = 3_600_000;
/** The counter's rate is measured, against a clock that is itself being adjusted. */
const TOLERANCE = 0.01;

/** Looks at the time of day as often as it takes to see whether it is set. */
const LOOK = `
  const looks = Array.from({ length: 12 }, () => Date.now());
  process.exitCode = looks.some((ms, i) => i > 0 && ms < looks[i - 1] - ${LEAST_SET_MS}) ? 0 : 1;`;

/** What a nap took, as the program measured it: within the function, and around its call. */
interface Nap {
  readonly inner: number;
  readonly outer: number;
}

async function naps(target: Target): Promise<Nap[]> {
  target.say(String(NAPS));
  const line = await target.line();
  assert.ok(answered(line)['backwards'] > 0, `the target's clock is not set: ${line}`);
  return [...line.matchAll(/(\d+)-(\d+)/g)].map(([, inner, outer]) => ({
    inner: Number(inner),
    outer: Number(outer),
  }));
}

/** The function began before the program's first look within it and ended behind its last; and the other way round for its call. */
function assertDurations(calls: readonly JsonCall[], own: readonly Nap[]): void {
  assert.deepEqual(
    calls.map(({ function: name, end }) => `${name} ${end}`),
    own.map(() => 'nap returned'),
  );
  calls.forEach(({ duration_ns }, i) => {
    const { inner, outer } = own[i];
    assert.ok(duration_ns !== null);
    const isBetween = duration_ns >= inner * (1 - TOLERANCE) && duration_ns <= outer * (1 + TOLERANCE);
    assert.ok(isBetween, `nap ${i}: ${inner} <= ${duration_ns} <= ${outer}`);
  });
  calls.forEach(({ start_ns }, i) => {
    assert.ok(i === 0 || start_ns >= calls[i - 1].start_ns, 'calls are in the order in which they were made');
  });
}

/** A session from beginning to end, which it finds by itself. */
function limitedSession(environment: NodeJS.ProcessEnv, pid: number): Traced {
  const [recording, summary] = [fresh('recording'), fresh('summary.json')];
  const options = ['-F', 'nap', '--duration', `${DURATION_MS}ms`, '-o', recording, '--summary', summary];
  const ran = spawnSync(process.execPath, [main, 'attach', '-p', String(pid), ...options], {
    cwd: folder,
    env: environment,
    encoding: 'utf8',
  });
  return { ...ran, recording, summary: readSummary(summary, ran.stderr) };
}

/** Records, is printed, is ended by its duration, is started by safepoke: the clock has nothing to do with any of it. */
async function clockIsSet(rounds: Rounds): Promise<void> {
  const library = build('clock-set.c', '-shared', '-fPIC');
  const environment = { ...process.env, LD_PRELOAD: library };
  const looked = spawnSync(process.execPath, ['-e', LOOK], { env: environment, encoding: 'utf8' });
  assert.equal(looked.status, 0, `node's clock is not set: ${looked.stderr}`);
  const target = await Target.ready('env', `LD_PRELOAD=${library}`, build('naps.c'));
  while (rounds.next(target.pid)) {
    const recording = await Running.attachUnder(environment, target.pid, 'recorded', '-F', 'nap');
    const own = await naps(target);
    const recorded = await recording.stop();
    assert.deepEqual([recorded.summary.restored, recorded.summary.removed], [true, true]);
    assert.deepEqual([recorded.summary.calls['nap'], recorded.summary.dropped], [NAPS, 0]);
    assertDurations(callsOf(recorded.recording), own);
    assert.ok(recordedMs(recorded.recording) < LEAST_SET_MS);

    const printing = await Running.attachUnder(
      environment,
      target.pid,
      'printed',
      ...['-F', 'nap', '--format', 'jsonl'],
    );
    const again = await naps(target);
    assertDurations(parseJsonLines((await printing.stop()).stdout), again);

    const limited = limitedSession(environment, target.pid);
    assert.deepEqual([limited.status, limited.summary.ended], [0, 'stopped'], limited.stderr);
    const ms = recordedMs(limited.recording);
    assert.ok(ms >= DURATION_MS - TIMER_MS && ms < LEAST_SET_MS, `${ms} ms`);
    assert.ok(limited.summary.held_us < LEAST_SET_MS && limited.summary.attach_ms < LEAST_SET_MS);
    assert.equal(changedBytes(target.pid), 0);
  }
  await target.finish();
}

/** It dies: what the target's thread of ours waits for is no time of day either. */
async function clockIsSetAndItDies(rounds: Rounds): Promise<void> {
  const library = build('clock-set.c', '-shared', '-fPIC');
  const environment = { ...process.env, LD_PRELOAD: library };
  const target = await Target.ready('env', `LD_PRELOAD=${library}`, build('naps.c'));
  while (rounds.next(target.pid)) {
    const running = await Running.attachUnder(environment, target.pid, 'recorded', '-F', 'nap');
    await naps(target);
    running.child.kill('SIGKILL');
    await running.gone();
    while (changedBytes(target.pid) > 0) await naps(target);
    assert.ok(readFileSync(`/proc/${target.pid}/maps`, 'utf8').includes('memfd:safepoke'));
    const next = await Running.attachUnder(environment, target.pid, 'recorded', '-F', 'nap');
    const own = await naps(target);
    const { summary, recording } = await next.stop();
    assert.deepEqual([summary.restored, summary.removed, changedBytes(target.pid)], [true, true, 0]);
    assertDurations(callsOf(recording), own);
  }
  await target.finish();
}

export const clockHazards: readonly Hazard[] = [
  {
    name: 'the time of day is set by hours at every look: durations, the order of calls and the end of the session go by other clocks',
    run: clockIsSet,
  },
  {
    name: 'the time of day is set and safepoke is killed: the text is whole again, and the next session puts the rest right',
    run: clockIsSetAndItDies,
  },
];
