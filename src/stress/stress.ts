import { closeSync } from 'node:fs';
import type { Verdict } from '../check/index.js';
import { createExecutableFile } from '../linux/index.js';
import { verdictOf } from './cases.js';
import type { StressCase } from './cases.js';
import { runChild } from './child.js';
import type { ChildEnd, ChildResult, ChildSettings } from './child.js';
import { makeExecutable } from './executable.js';
import type { StressExecutable } from './executable.js';
import { changeHeld } from './held.js';

export interface StressSettings {
  /** For each case. */
  readonly seconds: number;
  /** A case ends early after this many changes. */
  readonly modifications: number;
  /** Threads that call the functions, the patcher not counted: 1 to 32. */
  readonly threads: number;
}

/** What became of one case: the sums over all its processes, since a crash ends a process and not the case. */
export interface StressResult {
  readonly name: string;
  readonly without: readonly string[];
  /** What the checker says, if it was asked. */
  readonly verdict: Verdict | undefined;
  readonly seconds: number;
  readonly modifications: number;
  /** Changes that the protocol said it could not make: with a text that is not what it should be. */
  readonly refused: number;
  /** Times that a handler helped, where the protocol has that; and so on. */
  readonly helped: number | undefined;
  readonly waits: number | undefined;
  readonly longestWaitNs: number | undefined;
  readonly calls: number;
  readonly signals: number;
  readonly traps: number;
  readonly wrong: number;
  /** By signal. */
  readonly crashes: Readonly<Record<string, number>>;
  /** Processes in which for seconds nothing moved. */
  readonly stuck: number;
  readonly meanNs: number;
  readonly longestNs: number;
  /** The longest that one pass of a thread over all functions took, whatever the reason. */
  readonly longestPassNs: number;
}

/** From the end of a signal's handler to the next signal. */
const STORM_PERIOD_NS = 20_000;
/** Changes for which the threads are stopped once, as the kernel changes all its sites in one stop. */
const BATCH_STOPPED = 1024;
/** Changes between two looks at the clock where nobody is stopped. */
const BATCH_RUNNING = 64;
const NS_PER_SECOND = 1e9;
/** Processes in a row that do not live to make one change: enough has been seen then. */
const MAX_FUTILE_STARTS = 100;

/**
 * Puts one case under stress on this machine's processors.
 *
 * @throws CannotError STRESS_NOT_STARTED
 */
export async function runCase(stressCase: StressCase, settings: StressSettings): Promise<StressResult> {
  const executable = makeExecutable(stressCase.protocol, stressCase.patching, stressCase.writing);
  const fd = createExecutableFile('safepoke-stress', executable.file);
  const began = process.hrtime.bigint();
  const deadline = began + BigInt(Math.round(settings.seconds * NS_PER_SECOND));
  const children: ChildResult[] = [];
  let made = 0;
  let futile = 0;
  try {
    while (
      made < settings.modifications &&
      futile < MAX_FUTILE_STARTS &&
      process.hrtime.bigint() < deadline
    ) {
      const child = await runOnce(`/proc/${process.pid}/fd/${fd}`, stressCase, executable, {
        threads: settings.threads,
        deadline,
        modifications: settings.modifications - made,
        batch: stressCase.patching === 'stopped' ? BATCH_STOPPED : BATCH_RUNNING,
        stormPeriodNs: STORM_PERIOD_NS,
      });
      children.push(child);
      made += child.modifications;
      futile = child.modifications === 0 ? futile + 1 : 0;
    }
  } finally {
    closeSync(fd);
  }
  return total(stressCase, children, Number(process.hrtime.bigint() - began) / NS_PER_SECOND);
}

/** Adds what the checker says: a search, so not while something is under stress. */
export function withVerdict(result: StressResult, stressCase: StressCase): StressResult {
  return { ...result, verdict: verdictOf(stressCase) };
}

function runOnce(
  path: string,
  { changedBy }: StressCase,
  executable: StressExecutable,
  settings: ChildSettings,
): Promise<ChildResult> {
  if (changedBy !== 'held') return runChild(path, executable, settings);
  return runChild(path, executable, settings, (pid, shared, isOver) =>
    changeHeld(pid, shared, executable.changes, isOver),
  );
}

function total(
  { name, without }: StressCase,
  children: readonly ChildResult[],
  seconds: number,
): StressResult {
  const sum = (of: (child: ChildResult) => number): number => children.reduce((all, c) => all + of(c), 0);
  const longest = (of: (child: ChildResult) => number): number => Math.max(0, ...children.map(of));
  const modifications = sum((c) => c.modifications);
  return {
    name,
    without,
    verdict: undefined,
    seconds,
    modifications,
    refused: sum((c) => c.refused),
    helped: statistic(children, '_update_count', (values) => values.reduce((a, b) => a + b, 0)),
    waits: statistic(children, '_wait_count', (values) => values.reduce((a, b) => a + b, 0)),
    longestWaitNs: statistic(children, '_longest_wait', (values) => Math.max(...values)),
    calls: sum((c) => c.calls),
    signals: sum((c) => c.signals),
    traps: sum((c) => c.traps),
    wrong: sum((c) => c.wrong),
    crashes: crashesOf(children),
    stuck: children.filter((c) => c.end === 'stuck').length,
    meanNs: modifications === 0 ? 0 : sum((c) => c.totalNs) / modifications,
    longestNs: longest((c) => c.longestNs),
    longestPassNs: longest((c) => c.longestPassNs),
  };
}

/** The words of a definition that are counted for reports are told by how their names end. */
function statistic(
  children: readonly ChildResult[],
  ending: string,
  combine: (values: readonly number[]) => number,
): number | undefined {
  const values = children.flatMap((c) =>
    [...c.statistics].filter(([name]) => name.endsWith(ending)).map(([, value]) => value),
  );
  return values.length === 0 ? undefined : combine(values);
}

function crashesOf(children: readonly ChildResult[]): Readonly<Record<string, number>> {
  const crashes: Record<string, number> = {};
  const count = (end: ChildEnd): void => {
    if (end !== 'finished' && end !== 'stuck') crashes[end] = (crashes[end] ?? 0) + 1;
  };
  for (const { end } of children) count(end);
  return crashes;
}
