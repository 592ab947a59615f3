// Whoever reads what safepoke writes is slow, or stands still: the target waits for nobody, and what was not kept is counted exactly.
import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { rmSync } from 'node:fs';
import { openRecording } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Running, Target, build, changedBytes, fresh, pause, type Traced } from './targets.test.support.js';

/** Calls of fib(n), itself included, for the n that is used here. */
const FIB_20 = 21_891;
const FIB_25 = 242_785;
/** Much less than fib(25) records, and so is what a pipe holds. */
const RING = '256K';
/** More than a pipe holds; and a ring of more than that, but less than fib(25) records. */
const NEWEST = '1M';
const LARGER_RING = '4M';
/** How long a slow reader stands still between two looks, and how often. */
const STEP_MS = 5;
const STEPS = 20;

async function compute(target: Target): Promise<void> {
  target.say('25');
  await target.expect(/^fib\(25\)=75025$/);
}

async function computeLess(target: Target): Promise<void> {
  target.say('20');
  await target.expect(/^fib\(20\)=6765$/);
}

/** One that copies what comes through a pipe with a name into a file, and can be stopped. */
class Reader {
  readonly pipe = fresh('pipe');
  readonly file = fresh('recording');
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;

  constructor() {
    execFileSync('mkfifo', [this.pipe]);
    this.#child = spawn('sh', ['-c', 'exec cat "$0" > "$1"', this.pipe, this.file], { stdio: 'ignore' });
    this.#ended = new Promise((resolve) => this.#child.once('exit', resolve));
  }

  stop(): void {
    this.#child.kill('SIGSTOP');
  }

  goOn(): void {
    this.#child.kill('SIGCONT');
  }

  async slowly(): Promise<void> {
    for (let i = 0; i < STEPS; i++) {
      this.goOn();
      await pause(STEP_MS);
      this.stop();
      await pause(STEP_MS);
    }
    this.goOn();
  }

  /** Resolves when all has been read. */
  async end(): Promise<void> {
    this.goOn();
    await this.#ended;
    rmSync(this.pipe);
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}

/** The recording has the beginning and the end of all that the session counted, but for what the session says it has not; and no call is half there. */
function assertExact(file: string, { summary, stderr }: Traced, all: number): void {
  assert.equal(summary.records + summary.dropped, 2 * all, stderr);
  const recording = openRecording(file);
  let calls = 0;
  const { lost, notKept, anomalies } = recording.visit({
    onEnter: () => calls++,
    onLeave: () => undefined,
    onLeaf: () => 0,
    onLost: () => undefined,
  });
  assert.deepEqual(
    { fault: recording.fault, anomalies, lost, notKept, records: 2 * calls + notKept },
    {
      fault: undefined,
      anomalies: 0,
      lost: summary.dropped,
      notKept: summary.not_kept,
      records: summary.records,
    },
  );
  recording.close();
  rmSync(file);
}

/** `--keep oldest`: the rings fill, as nothing can be written. */
async function oldest(target: Target, reader: Reader): Promise<void> {
  const options = ['-F', 'fib', '--buffer', RING, '--keep', 'oldest', '-o', reader.pipe];
  const running = await Running.attachPrinting(target.pid, ...options);
  reader.stop();
  await compute(target);
  await reader.slowly();
  await computeLess(target);
  await reader.slowly();
  const traced = await running.stop();
  await reader.end();
  assert.ok(traced.summary.dropped > 0);
  assert.equal(traced.summary.not_kept, 0);
  assertExact(reader.file, traced, FIB_25 + FIB_20);
}

/** `--keep newest`: all is written at the end, when the target has its code back. */
async function newest(target: Target, reader: Reader): Promise<void> {
  const options = [
    '-F',
    'fib',
    '--buffer',
    LARGER_RING,
    '--keep',
    'newest',
    '--size',
    NEWEST,
    '-o',
    reader.pipe,
  ];
  const running = await Running.attachPrinting(target.pid, ...options);
  reader.stop();
  await compute(target);
  // safepoke itself cannot keep up either.
  running.child.kill('SIGSTOP');
  await compute(target);
  running.child.kill('SIGCONT');
  running.child.kill('SIGINT');
  while (changedBytes(target.pid) > 0) await pause(STEP_MS);
  await computeLess(target);
  assert.equal(running.child.exitCode, null, 'it waits for its reader');
  await reader.slowly();
  await reader.end();
  const traced = await running.ended();
  assert.ok(traced.summary.not_kept > 0 && traced.summary.dropped > 0);
  assertExact(reader.file, traced, 2 * FIB_25);
}

/** Printed as it comes: what is shown and what is said to be lost are all there was. */
async function printed(target: Target): Promise<void> {
  const running = await Running.attachPrinting(
    target.pid,
    ...['-F', 'fib', '--buffer', RING, '--format', 'jsonl'],
  );
  running.child.stdout.pause();
  await compute(target);
  running.child.stdout.resume();
  await computeLess(target);
  const { summary, stdout, stderr } = await running.stop();
  assert.equal(summary.records + summary.dropped, 2 * (FIB_25 + FIB_20), stderr);
  let lost = 0;
  for (const [, records] of stdout.matchAll(/^\{"lost":(\d+)/gm)) lost += Number(records);
  const shown = [...stdout.matchAll(/"function":"fib"/g)].length;
  assert.deepEqual({ lost, shown }, { lost: summary.dropped, shown: summary.calls['fib'] });
}

async function slowReaders(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  while (rounds.next(target.pid)) {
    for (const keep of [oldest, newest]) {
      const reader = new Reader();
      try {
        await keep(target, reader);
      } finally {
        reader.kill();
      }
    }
    await printed(target);
    assert.equal(changedBytes(target.pid), 0);
  }
  await target.finish();
}

export const readerHazards: readonly Hazard[] = [
  {
    name: 'a reader that is slow or stands still, with --keep oldest and newest: the target waits for nobody, and what was not kept is counted exactly',
    run: slowReaders,
  },
];
