// Programs that change their own code (`run --inside`) under a storm of signals, and whose tracer dies.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { attach, run } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { build, changedBytes, folder, fresh, main, pause, textMapsOf } from './targets.test.support.js';

const BUFFER = 1 << 20;
const SWITCHES = 40;
const SWITCHED = ['handle', 'inner', 'work', 'step'];
/** The storm goes on until it is told to end. */
const ENDLESS = '0';
const SIGTERM = 'SIGTERM';
/** The text is whole again within a second; a machine that others use gets longer. */
const WHOLE_MS = 20_000;
/** From the start of the program to well into its trace. */
const MOMENTS_MS = 1500;
/** The session ends by itself while it may be killed. */
const DURATION = '300ms';
/** Fault points that are gone over from one round to the next, so that a few rounds come to all parts of a session. */
const STRIDE = 17;

/** Sessions come and go, and functions are switched, while timers interrupt each thread 1,400 times a second. */
async function comeAndGo(rounds: Rounds): Promise<void> {
  const filters = [...SWITCHED, 'jump'];
  let session = run([build('signals.c'), ENDLESS, 'anq'], { inside: true, bufferBytes: BUFFER, filters });
  const { pid } = session;
  const ended = session.waitForTarget();
  try {
    while (rounds.next(pid)) {
      if (rounds.done > 1) session = attach(pid, { inside: true, bufferBytes: BUFFER, filters });
      // Where handlers do not get the processor for long, functions may be refused; then nothing of them is changed.
      const why = session.refused.map(({ function: { name }, reason }) => `${name} ${reason}`);
      const traced = SWITCHED.filter((name) => !why.some((line) => line.startsWith(`${name} `))).length;
      rounds.note('functions refused', SWITCHED.length - traced);
      assert.ok(
        why.every((line) => /(handler-busy|thread-inside)$/.test(line)),
        why.join(),
      );
      for (let i = 0; i < SWITCHES; i++) {
        assert.equal(session.switch(SWITCHED, i % 2 === 1), traced, why.join());
        await new Promise((resolve) => setImmediate(resolve));
      }
      const summary = await session.stop();
      const { ended: end, restored, removed, switched, inside } = summary;
      assert.deepEqual([end, restored, removed, switched], ['stopped', true, true, SWITCHES * traced]);
      assert.equal(changedBytes(pid), 0);
      assert.ok(inside !== null);
      rounds.note('changes that were made by handlers', inside.helper_writes);
      rounds.note('waits for handlers', inside.waits);
      rounds.note('us of such a wait', inside.longest_wait_us);
      rounds.note('ms that threads stood in a rendezvous', summary.held_us / 1000);
    }
    process.kill(pid, SIGTERM);
  } catch (error) {
    end(pid);
    throw error;
  }
  // It has compared every result.
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
}

/** What a round has left running when it failed. */
function end(pid: number): void {
  if (programOf(pid) === build('signals.c')) process.kill(pid, 'SIGKILL');
}

interface Tracer {
  readonly kill: () => void;
  /** True when its session has ended by itself, and it waits for its program. */
  readonly isThrough: () => boolean;
  /** True also when it has ended. */
  readonly isDone: () => boolean;
  /** How it ended: a signal or a status. */
  readonly ended: Promise<string | number | null>;
  /** The program that it has started. */
  readonly pid: number;
  /** What the program has said, when it has ended. */
  readonly said: Promise<string>;
}

/**
 * Starts safepoke with the storm; resolves when the program is there, which safepoke may not be any more. `confined`: neither can open
 * its own memory, so that code must be unlocked to be written.
 */
async function startTracer(dieAt: number, confined = false): Promise<Tracer> {
  const program = build('signals.c');
  const recording = fresh('recording');
  const place = confined ? [build('confine.c', '-DALSO=SYS_open')] : [];
  const [file, ...args] = [...place, process.execPath];
  const tracer = spawn(
    file,
    [
      ...args,
      main,
      'run',
      '--inside',
      '--buffer',
      '1M',
      '--duration',
      DURATION,
      '-o',
      recording,
      '--',
      program,
      ENDLESS,
      'an',
    ],
    {
      cwd: folder,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, SAFEPOKE_DIE_AT: String(dieAt) },
    },
  );
  assert.ok(tracer.pid !== undefined);
  const ended = new Promise<string | number | null>((resolve) => {
    tracer.once('exit', (status, signal) => {
      rmSync(recording, { force: true });
      resolve(signal ?? status);
    });
  });
  let told = '';
  tracer.stderr.on('data', (piece: Buffer) => (told += piece.toString()));
  const isThrough = (): boolean => told.includes('traced functions');
  const isDone = (): boolean => isThrough() || tracer.exitCode !== null || tracer.signalCode !== null;
  let text = '';
  tracer.stdout.on('data', (piece: Buffer) => (text += piece.toString()));
  const said = new Promise<string>((resolve) => {
    tracer.stdout.once('close', () => {
      resolve(text);
    });
  });
  for (;;) {
    const pid = processes().find((one) => parentOf(one) === tracer.pid && programOf(one) === program);
    if (pid !== undefined) return { pid, ended, said, isThrough, isDone, kill: () => tracer.kill('SIGKILL') };
    assert.equal(tracer.exitCode, null, told);
    await pause(1);
  }
}

function processes(): number[] {
  return readdirSync('/proc').map(Number).filter(Boolean);
}

function parentOf(pid: number): number {
  try {
    return Number(/^PPid:\s*(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
  } catch {
    return 0;
  }
}

function programOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/exe`);
  } catch {
    return '';
  }
}

function hasAgent(pid: number): boolean {
  return readdirSync(`/proc/${pid}/task`).some(
    (tid) => readFileSync(`/proc/${pid}/task/${tid}/comm`, 'utf8') === 'safepoke\n',
  );
}

/** The tracer is no more: the program has begun, or begins, has its own code, no thread of ours, and right results. */
async function assertLives({ pid, said }: Tracer, rounds: Rounds, when: string): Promise<void> {
  const died = performance.now();
  const until = async (isSo: () => boolean, what: string): Promise<void> => {
    while (!isSo()) {
      assert.ok(performance.now() - died < WHOLE_MS, `${when}: ${what}`);
      await pause(2);
    }
  };
  await until(() => changedBytes(pid) === 0, 'the text is still changed');
  rounds.note('ms until the text was whole', performance.now() - died);
  await until(() => !hasAgent(pid), 'our thread is still there');
  assert.deepEqual(
    textMapsOf(pid).filter((line) => line.includes(' rwx')),
    [],
    `${when}: code is left unlocked`,
  );
  await until(() => readdirSync(`/proc/${pid}/task`).length === 4, 'it does not begin');
  await pause(20);
  process.kill(pid, SIGTERM);
  assert.match(await said, /^wrong: 0$/m, when);
}

/** Killed at any moment from the program's start to behind the session's end. */
async function killedAnytime(rounds: Rounds, confined = false): Promise<void> {
  while (rounds.next()) {
    const tracer = await startTracer(0, confined);
    try {
      const ms = Math.random() * MOMENTS_MS;
      await pause(ms);
      tracer.kill();
      await tracer.ended;
      await assertLives(tracer, rounds, `killed after ${ms} ms`);
    } finally {
      end(tracer.pid);
    }
  }
}

/** The next fault point, over rounds and turns. */
let point = 1 + Math.floor(Math.random() * STRIDE);

/** It kills itself between two changes in the program; beyond the last it gets through, and the next round begins again. */
async function diesAnywhere(rounds: Rounds): Promise<void> {
  while (rounds.next()) {
    const tracer = await startTracer(point);
    const when = `fault point ${point}`;
    try {
      while (!tracer.isDone()) await pause(5);
      if (tracer.isThrough()) {
        rounds.note('fault points', point);
        point = 1 + Math.floor(Math.random() * STRIDE);
        process.kill(tracer.pid, SIGTERM);
        assert.equal(await tracer.ended, 0, when);
        assert.match(await tracer.said, /^wrong: 0$/m, when);
      } else {
        point += STRIDE;
        assert.equal(await tracer.ended, 'SIGKILL', when);
        await assertLives(tracer, rounds, when);
      }
    } finally {
      end(tracer.pid);
    }
  }
}

/** So often a program executes itself: longer than anybody lets it. */
const EXECUTIONS = 40;
/** What the first parts take, with all that is done in them. */
const EXECUTING_MS = 1500;
const FAULT_POINTS = 400;

/**
 * A program executes itself again and again, and is followed; safepoke is killed at any moment, or kills itself between two changes. The
 * last part tells what it finds.
 */
export async function killedWhileExecuting(rounds: Rounds): Promise<void> {
  const command = [build('execs.c'), String(EXECUTIONS), 'qv'] as const;
  const environment = { ...process.env, KEEP: '1', SAFEPOKE_DIE_AT: '0' };
  const alone = spawnSync(command[0], command.slice(1), { cwd: folder, encoding: 'utf8', env: environment });
  while (rounds.next()) {
    const dieAt = rounds.done % 2 === 0 ? 0 : 1 + Math.floor(Math.random() * FAULT_POINTS);
    const recording = fresh('recording');
    const tracer = spawn(
      process.execPath,
      [main, 'run', '--inside', '--follow', '-F', 'step', '-o', recording, '--', ...command],
      // Of what the program finds this variable is no part.
      {
        cwd: folder,
        stdio: ['ignore', 'pipe', 'pipe'],
        env: { ...environment, SAFEPOKE_DIE_AT: String(dieAt) },
      },
    );
    let [said, told] = ['', ''];
    tracer.stdout.on('data', (text: Buffer) => (said += text.toString()));
    tracer.stderr.on('data', (text: Buffer) => (told += text.toString()));
    const closed = new Promise((resolve) => tracer.once('close', resolve));
    const isThere = (): boolean => processes().some((one) => parentOf(one) === tracer.pid);
    while (!isThere() && tracer.exitCode === null && tracer.signalCode === null) await pause(1);
    const ms = Math.random() * EXECUTING_MS;
    if (dieAt === 0) await pause(ms);
    else while (tracer.signalCode === null && tracer.exitCode === null) await pause(5);
    tracer.kill('SIGKILL');
    // The program has their standard output, too, and ends it when it ends.
    await closed;
    for (let part = 1; part <= EXECUTIONS + 1; part++)
      rmSync(part === 1 ? recording : `${recording}.${part}`, { force: true });
    const when = dieAt === 0 ? `killed after ${ms} ms` : `fault point ${dieAt}`;
    assert.equal(said.replace(/SAFEPOKE_DIE_AT=\d+/, 'SAFEPOKE_DIE_AT=0'), alone.stdout, when);
    rounds.note(
      'programs that were followed before safepoke died',
      told.split('the trace goes on').length - 1,
    );
  }
}

export const insideHazards: readonly Hazard[] = [
  {
    name: 'from inside: sessions come and go and functions are switched under a storm of signals',
    run: comeAndGo,
  },
  {
    name: 'from inside: safepoke is killed at any moment: the program begins, or goes on, with its own code',
    run: (rounds) => killedAnytime(rounds),
  },
  {
    name: 'from inside, where code must be unlocked: safepoke is killed at any moment: the program has its own code, and its rights',
    run: (rounds) => killedAnytime(rounds, true),
  },
  {
    name: 'from inside: safepoke dies between two changes, whichever: the program begins, or goes on, with its own code',
    run: diesAnywhere,
  },
  {
    name: 'from inside: safepoke is killed at any moment while a program executes itself again and again: it goes on, without a trace of us',
    run: killedWhileExecuting,
  },
];
