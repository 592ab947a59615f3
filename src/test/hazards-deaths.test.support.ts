// The tracer dies: between any two changes in a target, and at any moment.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { closeSync, openSync, readSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { attach } from '../index.js';
import { readMaps } from '../linux/index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Target, build, mapsOf, pause, statusField } from './targets.test.support.js';

const sessions = fileURLToPath(new URL('sessions.js', import.meta.url));

/** What the thread does that works for the tracer, in turn. */
const LEADERS = ['compute', 'sleep', 'call', 'wait'];
const THREADS = '2';
/** A round goes through each of so many fault points; the next round through their neighbours. */
const STRIDE = 7;
/** More fault points than a session has. */
const MANY = 10_000;
/** The text is whole again within a second; a machine that others use gets longer, and how often it did is told. */
const WHOLE_MS = 10_000;
const PROMISED_MS = 1000;
/** Of the time that a first session takes: so a moment within it is any of one, or of a later one, which is faster. */
const MOMENTS = 1.5;

/** That many sessions take longer than that. */
const SESSIONS = 5;
const SOME_MS = 200;
const MINUTE_MS = 60_000;

/** All that a session might leave behind in a process. */
function stateOf(pid: number): Record<string, unknown> {
  const threads = readdirSync(`/proc/${pid}/task`);
  return {
    maps: mapsOf(pid),
    text: textOf(pid),
    files: readdirSync(`/proc/${pid}/fd`),
    masks: threads.map((tid) => `${tid} ${statusField(pid, 'SigBlk', tid)}`),
    handlers: statusField(pid, 'SigCgt'),
  };
}

/** A tracer that dies leaves its own code behind, which is none of the program's. */
const OUR_CODE = '/memfd:safepoke';

/** The code of the program and its libraries, as it is in memory. */
function textOf(pid: number): string {
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  try {
    const parts = (readMaps(pid) ?? [])
      .filter(
        ({ permissions, path }) =>
          permissions.startsWith('r-x') && path.startsWith('/') && !path.startsWith(OUR_CODE),
      )
      .map(({ start, end }) => {
        const bytes = Buffer.alloc(end - start);
        try {
          return bytes.subarray(0, readSync(memory, bytes, 0, bytes.length, start));
        } catch {
          // Text that was just taken away: it was still in the list.
          return Buffer.alloc(0);
        }
      });
    return Buffer.concat(parts).toString('latin1');
  } finally {
    closeSync(memory);
  }
}

/** Its results are right, and go on being so. */
async function assertWell(target: Target, when: string): Promise<void> {
  target.say('go on');
  assert.equal(await target.line(), 'fine', when);
}

/** A tracer has died: the target goes on, its text is turned back, and whatever else was left the next session takes away. */
async function assertRecovers(
  target: Target,
  before: Record<string, unknown>,
  rounds: Rounds,
  when: string,
): Promise<void> {
  const died = performance.now();
  while (textOf(target.pid) !== before['text']) {
    assert.ok(performance.now() - died < WHOLE_MS, `${when}: the text is still changed`);
    await pause(1);
  }
  const ms = performance.now() - died;
  rounds.note('ms until the text was whole', ms);
  rounds.count('deaths');
  rounds.count(
    `of them with text that was changed for longer than ${PROMISED_MS} ms`,
    ms > PROMISED_MS ? 1 : 0,
  );
  await assertWell(target, when);
  const session = attach(target.pid, { filters: ['fib', 'mix'], bufferBytes: 1 << 18 });
  const { restored, removed } = await session.stop();
  assert.deepEqual({ when, restored, removed }, { when, restored: true, removed: true });
  const after = stateOf(target.pid);
  for (const what of Object.keys(before)) {
    // Megabytes would say nothing to anybody.
    if (what === 'text') assert.ok(after[what] === before[what], `${when}: ${what}`);
    else assert.deepEqual(after[what], before[what], `${when}: ${what}`);
  }
  await assertWell(target, when);
}

/** A program that traces, one session after the other. */
interface Tracer {
  readonly pid: number;
  /** Has it begin. */
  readonly begin: () => void;
  /** How it ended: a signal or a status. */
  readonly ended: Promise<string | number | null>;
}

/** Starts one; resolves when it is about to trace. */
async function tracerOf(pid: number, most: number, dieAt: number): Promise<Tracer> {
  const child = spawn(process.execPath, [sessions, String(pid), String(most)], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, SAFEPOKE_DIE_AT: String(dieAt) },
  });
  assert.ok(child.pid !== undefined);
  const ended = new Promise<string | number | null>((resolve) => {
    child.once('exit', (status, signal) => resolve(signal ?? status));
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  return { pid: child.pid, ended, begin: () => child.stdin.end() };
}

/** So many tracers, each started while the one before it works, as most of its time goes by before it traces. */
async function* tracersOf(pid: number, most: number, wanted: () => boolean): AsyncGenerator<Tracer, void> {
  let next = tracerOf(pid, most, 0);
  try {
    while (wanted()) {
      const tracer = await next;
      next = tracerOf(pid, most, 0);
      tracer.begin();
      yield tracer;
    }
  } finally {
    process.kill((await next).pid, 'SIGKILL');
  }
}

/** So long it is until anything may be going on in a session. */
async function momentsOf(pid: number): Promise<number> {
  const tracer = await tracerOf(pid, 1, 0);
  const began = performance.now();
  tracer.begin();
  assert.equal(await tracer.ended, 0);
  return MOMENTS * (performance.now() - began);
}

/** Goes on where the turn before stopped, so that a long soak comes to all points with all leaders. */
let turn = Math.floor(Math.random() * STRIDE * LEADERS.length);

/** It kills itself at every seventh of its fault points, until it gets through. */
async function atFaultPoints(rounds: Rounds): Promise<void> {
  while (rounds.next()) {
    turn++;
    const leader = LEADERS[turn % LEADERS.length];
    const target = await Target.ready(build('busy.c'), THREADS, leader);
    // Its threads have memory of their own from their first answer on.
    await assertWell(target, 'before');
    const before = stateOf(target.pid);
    for (let point = 1 + (Math.floor(turn / LEADERS.length) % STRIDE); ; point += STRIDE) {
      assert.ok(point < MANY);
      const when = `fault point ${point}, ${leader}`;
      const tracer = await tracerOf(target.pid, 1, point);
      tracer.begin();
      const how = await tracer.ended;
      if (how !== 'SIGKILL') {
        assert.equal(how, 0, when);
        rounds.note('fault points', point - 1);
        break;
      }
      await assertRecovers(target, before, rounds, when);
    }
    await target.finish();
  }
}

/** Killed at any moment of sessions that come and go. */
async function atAnyMoment(rounds: Rounds): Promise<void> {
  // A thread in epoll_wait gets a false EINTR if the tracer dies before it has seen it stop: nobody can keep it from that.
  const leaders = LEADERS.filter((leader) => leader !== 'wait');
  const leader = leaders[++turn % leaders.length];
  const target = await Target.ready(build('busy.c'), THREADS, leader);
  await assertWell(target, 'before');
  const before = stateOf(target.pid);
  const moments = await momentsOf(target.pid);
  for await (const tracer of tracersOf(target.pid, MANY, () => rounds.next(target.pid))) {
    const ms = Math.random() * moments;
    await pause(ms);
    process.kill(tracer.pid, 'SIGKILL');
    assert.equal(await tracer.ended, 'SIGKILL');
    await assertRecovers(target, before, rounds, `killed after ${ms} ms, ${leader}`);
  }
  await target.finish();
}

/** Stopped at any moment, for long, and let go on or killed then. The target waits for it only if it was just holding its threads. */
async function stoppedAnytime(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('busy.c'), THREADS, 'compute');
  await assertWell(target, 'before');
  const before = stateOf(target.pid);
  const moments = await momentsOf(target.pid);
  for await (const tracer of tracersOf(target.pid, SESSIONS, () => rounds.next(target.pid))) {
    const ms = Math.random() * moments;
    const when = `stopped after ${ms} ms`;
    await pause(ms);
    let how: string | number | null | undefined;
    void tracer.ended.then((end) => (how = end));
    process.kill(tracer.pid, 'SIGSTOP');
    await pause(rounds.isLong && rounds.done === 1 ? MINUTE_MS : SOME_MS);
    const isHeld = heldThreads(target.pid) > 0;
    rounds.count('times that threads were held meanwhile', isHeld ? 1 : 0);
    if (!isHeld) await assertWell(target, when);
    const dies = rounds.done % 2 === 0 && how === undefined;
    process.kill(tracer.pid, dies ? 'SIGKILL' : 'SIGCONT');
    assert.equal(await tracer.ended, dies ? 'SIGKILL' : 0, when);
    await assertRecovers(target, before, rounds, when);
  }
  await target.finish();
}

function heldThreads(pid: number): number {
  return readdirSync(`/proc/${pid}/task`).filter((tid) => /^t/.test(statusField(pid, 'State', tid))).length;
}

export const deathHazards: readonly Hazard[] = [
  {
    name: 'safepoke dies between two changes, whichever: the target lives, its text is whole at once',
    run: atFaultPoints,
  },
  {
    name: 'safepoke dies while it comes and goes: the target lives, its text is whole at once',
    run: atAnyMoment,
  },
  {
    name: 'safepoke is stopped at any moment, for long, and goes on or is killed then: the target lives, its text is whole',
    run: stoppedAnytime,
  },
];
