// Processes of many threads, and of many functions.
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { attach } from '../index.js';
import type { SessionSummary } from '../trace/index.js';
import { buildScale } from './programs.js';
import { renderTable } from './table.js';
import { median, pause } from './timed-target.js';

const RUNS = 3;
const THREADS = 1000;
const BUSY = 500;
const RING = 1 << 20;
const SETTLE_MS = 50;

interface Case {
  readonly name: string;
  readonly goal: string;
  readonly start: () => ChildProcess;
  readonly filters: readonly string[];
}

interface Figures {
  readonly attach: number[];
  readonly held: number[];
  readonly summary: SessionSummary;
}

/** Attaches and leaves some times; with threads that are always busy, nobody but us gives us the processor. */
async function measure({ start, filters }: Case): Promise<Figures> {
  const child = start();
  try {
    await once(child.stdout ?? child, 'data');
    const attachTimes: number[] = [];
    const held: number[] = [];
    let summary: SessionSummary | undefined;
    for (let i = 0; i < RUNS; i++) {
      const session = attach(child.pid ?? 0, { filters, bufferBytes: RING });
      await pause(SETTLE_MS);
      summary = await session.stop();
      attachTimes.push(summary.attach_ms);
      held.push(summary.held_us / 1000);
    }
    if (summary === undefined) throw new Error('nothing was measured');
    return { attach: attachTimes, held, summary };
  } finally {
    child.kill('SIGKILL');
  }
}

/** Most memory that this process has had, in MiB. */
function peakMemory(): number {
  const text = readFileSync('/proc/self/status', 'utf8');
  return Number(/^VmHWM:\s*(\d+) kB$/m.exec(text)?.[1] ?? Number.NaN) / 1024;
}

export async function benchScale(directory: string): Promise<string> {
  const program = buildScale(directory);
  if (program === undefined) throw new Error('gcc is missing: apt-get install gcc');
  const idle = `console.log('ready'); setInterval(() => undefined, 10)`;
  const cases: readonly Case[] = [
    {
      name: `${THREADS} threads, asleep`,
      goal: 'held 15 ms',
      start: () => spawn(program, [String(THREADS), '0']),
      filters: ['step'],
    },
    {
      name: `${THREADS} threads, ${BUSY} of them busy`,
      goal: 'held 100 ms',
      start: () => spawn(program, [String(THREADS), String(BUSY)]),
      filters: ['step'],
    },
    {
      name: 'node, all of its own functions',
      goal: 'attach 5 s, held 100 ms, 1536 MiB',
      start: () => spawn(process.execPath, ['-e', idle]),
      filters: ['*'],
    },
  ];
  const rows: string[][] = [];
  for (const which of cases) {
    const { attach: times, held, summary } = await measure(which);
    rows.push([
      which.name,
      String(summary.patched),
      median(times).toFixed(0),
      median(held).toFixed(1),
      Math.max(...held).toFixed(1),
      peakMemory().toFixed(0),
      which.goal,
    ]);
  }
  return renderTable(
    `Large processes: median of ${RUNS}`,
    ['', 'functions', 'attach, ms', 'held, ms', 'most', 'our memory, MiB', 'goal'],
    rows,
  );
}
