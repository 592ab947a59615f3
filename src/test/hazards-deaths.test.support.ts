// The tracer dies: between any two changes in a target, and at any moment.
import assert from 'node:assert/strict';
import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { readdirSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { SHARED_PATH, readAgentPage } from '../agent/index.js';
import { attach } from '../index.js';
import { readMaps } from '../linux/index.js';
import { OutsideMemory } from '../target/index.js';
import {
  assertAsBefore,
  assertWell,
  stateOf,
  textOf,
  type ProcessState,
} from './process-state.test.support.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Target, build, pause, statusField } from './targets.test.support.js';

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

/** A tracer has died: the target goes on, its text is turned back, and whatever else was left the next session takes away. */
async function assertRecovers(
  target: Target,
  before: ProcessState,
  rounds: Rounds,
  when: string,
): Promise<void> {
  const died = performance.now();
  while (!textOf(target.pid).equals(before.text)) {
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
  assertAsBefore(target.pid, before, when);
  await assertWell(target, when);
}

/** What sessions.ts says when it begins to do it, once per session. */
const STEPS = { attach: 'a', trace: 't', detach: 'd' } as const;
type Step = keyof typeof STEPS;

/** A program that traces, one session after the other. */
class Tracer {
  readonly pid: number;
  /** How it ended: a signal or a status. */
  readonly ended: Promise<string | number | null>;
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #began: Record<Step, number[]> = { attach: [], trace: [], detach: [] };
  #wake: (() => void) | undefined;
  #isOver = false;

  private constructor(pid: number, most: number, dieAt: number) {
    this.#child = spawn(process.execPath, [sessions, String(pid), String(most)], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, SAFEPOKE_DIE_AT: String(dieAt) },
    });
    assert.ok(this.#child.pid !== undefined);
    this.pid = this.#child.pid;
    this.ended = new Promise((resolve) => {
      this.#child.once('exit', (status, signal) => {
        this.#isOver = true;
        this.#wake?.();
        resolve(signal ?? status);
      });
    });
  }

  /** Starts one; resolves when it is about to trace. It dies at its fault point `dieAt`, if that is not 0. */
  static async ready(pid: number, most: number, dieAt: number): Promise<Tracer> {
    const tracer = new Tracer(pid, most, dieAt);
    const { stdout } = tracer.#child;
    await new Promise((resolve) => stdout.once('data', resolve));
    stdout.on('data', (text: Buffer) => {
      tracer.#hear(text.toString());
    });
    return tracer;
  }

  begin(): void {
    this.#child.stdin.end();
  }

  /** Resolves when it begins with this step, or has ended. `session` counts from 0. */
  async reaches(step: Step, session: number): Promise<void> {
    const isOver = (): boolean => this.#isOver;
    while (this.#began[step].length <= session && !isOver())
      await new Promise<void>((resolve) => (this.#wake = resolve));
  }

  /** The step that it was at when it was last heard of; undefined: it had not begun. */
  get step(): Step | undefined {
    const { attach: a, trace: t, detach: d } = this.#began;
    if (a.length === 0) return undefined;
    return d.length === a.length ? 'detach' : t.length === a.length ? 'trace' : 'attach';
  }

  /** How long a step took in its first session, in ms; undefined: it did not get through it. */
  took(step: Step): number | undefined {
    const { attach: a, trace: t, detach: d } = this.#began;
    const [from, to] = { attach: [a[0], t[0]], trace: [t[0], d[0]], detach: [d[0], a[1]] }[step];
    return (to as number | undefined) === undefined ? undefined : to - from;
  }

  #hear(text: string): void {
    for (const step of Object.keys(STEPS) as Step[]) {
      const times = text.split(STEPS[step]).length - 1;
      for (let i = 0; i < times; i++) this.#began[step].push(performance.now());
    }
    this.#wake?.();
  }
}

/** So many tracers, each started while the one before it works, as most of its time goes by before it traces. */
async function* tracersOf(pid: number, most: number, wanted: () => boolean): AsyncGenerator<Tracer, void> {
  let next = Tracer.ready(pid, most, 0);
  try {
    while (wanted()) {
      const tracer = await next;
      next = Tracer.ready(pid, most, 0);
      tracer.begin();
      yield tracer;
    }
  } finally {
    process.kill((await next).pid, 'SIGKILL');
  }
}

/** So long it is until anything may be going on in a session. */
async function momentsOf(pid: number): Promise<number> {
  const tracer = await Tracer.ready(pid, 1, 0);
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
      const tracer = await Tracer.ready(target.pid, 1, point);
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

/** The steps of sessions in which a tracer is killed, in turn; attaching has most of what can go wrong. */
const KILLED_IN: readonly Step[] = ['attach', 'trace', 'attach', 'detach'];
/** One of so many is killed in its second session, the others in their first. */
const SECOND = 4;
/** Deaths of one target; then another has its turn, whose thread that works for the tracer does something else. */
const DEATHS = 60;
/** A step takes so long at most when it is asked for, in parts of what it has taken in the sessions before. */
const STEP_PART = 1.1;
/** Until one has been seen to its end. */
const FIRST_GUESS_MS = 100;

/** Where it was in the target's life when it died. From the journal on, sites may be changed. */
function phaseAtDeath(pid: number, step: Step | undefined): string {
  if (step !== 'attach') return step === undefined ? 'before its first session' : step;
  const shared = (readMaps(pid) ?? []).find(({ path }) => path === SHARED_PATH);
  if (shared === undefined) return 'attach, before anything was there';
  const memory = new OutsideMemory(pid);
  try {
    const hasJournal = readAgentPage(memory, shared.start)?.hasJournal === true;
    return hasJournal ? 'attach, while sites were changed' : 'attach, while code was mapped';
  } finally {
    memory.close();
  }
}

/** Killed at any moment of sessions that come and go: at a random moment of each of their steps. */
async function atAnyMoment(rounds: Rounds): Promise<void> {
  // A thread in epoll_wait gets a false EINTR if the tracer dies before it has seen it stop: nobody can keep it from that.
  const leaders = LEADERS.filter((leader) => leader !== 'wait');
  let hasTime = true;
  while (hasTime) {
    const leader = leaders[++turn % leaders.length];
    const target = await Target.ready(build('busy.c'), THREADS, leader);
    await assertWell(target, 'before');
    const before = stateOf(target.pid);
    const lengths: Record<Step, number> = { attach: 0, trace: 0, detach: 0 };
    let deaths = 0;
    const wanted = (): boolean => deaths++ < DEATHS && (hasTime = rounds.next(target.pid));
    for await (const tracer of tracersOf(target.pid, MANY, wanted)) {
      const step = KILLED_IN[rounds.done % KILLED_IN.length];
      await tracer.reaches(step, rounds.done % SECOND === 0 ? 1 : 0);
      const ms = Math.random() * (lengths[step] || FIRST_GUESS_MS) * STEP_PART;
      await pause(ms);
      process.kill(tracer.pid, 'SIGKILL');
      const when = `killed ${ms} ms after the beginning of ${step}, ${leader}`;
      assert.equal(await tracer.ended, 'SIGKILL', when);
      for (const one of Object.keys(lengths) as Step[])
        lengths[one] = Math.max(
          tracer.took(one) ?? 0,
          (lengths[one] + (tracer.took(one) ?? lengths[one])) / 2,
        );
      rounds.count(`deaths: ${phaseAtDeath(target.pid, tracer.step)}`);
      await assertRecovers(target, before, rounds, when);
    }
    await target.finish();
  }
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
