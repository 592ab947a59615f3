// Programs that change their own code (`run --inside`): how long it takes, how long threads stand, how late signals come.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { attach, run, type Session, type SessionSummary } from '../index.js';
import { buildDelay, buildMany, buildScale } from './programs.js';
import { renderTable } from './table.js';
import { median, pause } from './timed-target.js';

const FUNCTIONS = 20_000;
const RUNS = 7;
const THREADS = 10;
const RING = 1 << 20;
const SETTLE_MS = 50;
const STARTUP_MS = 200;
const US_PER_MS = 1000;
/** Signals that are to come during a rendezvous, and how often sessions come and go for them at most. */
const SIGNALS = 1000;
const MAX_ROUNDS = 400;
/** Not the whole of the time that a session tells is its threads' in the rendezvous. */
const MARGIN = 3;
/** Of those that come without us. */
const PLAIN_MS = 1000;
/** The timer of bench/targets/delay.c. */
const SIGNALS_PER_MS = 5;

interface Case {
  readonly name: string;
  readonly goal: string;
  readonly command: readonly string[];
  readonly filters: readonly string[];
}

/** Sessions from inside on one program, the first of which it begins with. All are ended. */
async function sessions(
  command: readonly string[],
  filters: readonly string[],
  goOn: (done: readonly SessionSummary[]) => boolean,
): Promise<SessionSummary[]> {
  const options = { inside: true, bufferBytes: RING, filters };
  const first: Session = run(command, options);
  const ended = first.waitForTarget();
  try {
    await pause(STARTUP_MS);
    const summaries = [await first.stop()];
    while (goOn(summaries)) {
      const session = attach(first.pid, options);
      await pause(SETTLE_MS);
      summaries.push(await session.stop());
    }
    return summaries;
  } finally {
    process.kill(first.pid, 'SIGTERM');
    await ended;
  }
}

async function measure({ name, goal, command, filters }: Case): Promise<string[]> {
  const [, ...summaries] = await sessions(command, filters, (done) => done.length <= RUNS);
  const held = summaries.map(({ held_us: us }) => us / US_PER_MS);
  const last = summaries[summaries.length - 1];
  return [
    name,
    String(last.patched),
    median(summaries.map(({ attach_ms: ms }) => ms)).toFixed(0),
    median(held).toFixed(1),
    Math.max(...held).toFixed(1),
    `${last.inside?.waits ?? 0}, ${last.inside?.helper_writes ?? 0}`,
    goal,
  ];
}

/** What delay.c has written. */
function delays(file: string): { count: number; medianUs: number; lateUs: number }[] {
  return readFileSync(file, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => line.split(' ').map(Number))
    .map(([count, middle, late]) => ({ count, medianUs: middle / 1000, lateUs: late / 1000 }));
}

async function signalDelays(directory: string, program: string): Promise<string> {
  const file = join(directory, 'delays');
  const child = spawn(program, [file, String(THREADS)], { stdio: 'ignore' });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  await pause(PLAIN_MS);
  child.kill('SIGTERM');
  await ended;
  const [plain] = delays(file);
  let during = 0;
  await sessions([program, file, String(THREADS)], ['handle'], (done) => {
    during += ((done.at(-1)?.held_total_us ?? 0) / US_PER_MS) * SIGNALS_PER_MS;
    return during < MARGIN * SIGNALS && done.length < MAX_ROUNDS;
  });
  const [between, standing] = delays(file);
  const rows = [
    { name: 'without us', figures: plain, goal: '' },
    { name: 'from inside, between rendezvous', figures: between, goal: '' },
    { name: 'from inside, during one', figures: standing, goal: 'median 100 us more' },
  ];
  return renderTable(
    `Signals to one of ${THREADS} threads: how late the handler begins`,
    ['', 'signals', 'median, us', '99 of 100, us', 'goal'],
    rows.map(({ name, figures: { count, medianUs, lateUs }, goal }) => [
      name,
      String(count),
      medianUs.toFixed(1),
      lateUs.toFixed(0),
      goal,
    ]),
  );
}

export async function benchInside(directory: string): Promise<string> {
  const [many, scale, delay] = [
    buildMany(directory, FUNCTIONS, 'inside', []),
    buildScale(directory),
    buildDelay(directory),
  ];
  if (many === undefined || scale === undefined || delay === undefined)
    throw new Error('gcc is missing: apt-get install gcc');
  const cases: readonly Case[] = [
    { name: `${FUNCTIONS} functions`, goal: 'held 50 ms', command: [many], filters: ['function_*'] },
    {
      name: `${THREADS} threads, asleep`,
      goal: 'most 25 ms',
      command: [scale, String(THREADS), '0', 'on'],
      filters: ['step'],
    },
    {
      name: `${THREADS} threads, busy`,
      goal: 'most 25 ms',
      command: [scale, String(THREADS), String(THREADS), 'on'],
      filters: ['step'],
    },
  ];
  const rows: string[][] = [];
  for (const which of cases) rows.push(await measure(which));
  return (
    renderTable(
      `From inside, on a program that runs: median of ${RUNS}`,
      ['', 'functions', 'attach, ms', 'held, ms', 'most', 'waits, helps', 'goal'],
      rows,
    ) + (await signalDelays(directory, delay))
  );
}
