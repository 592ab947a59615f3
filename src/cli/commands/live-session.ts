// Running a session from the command line. Apart from its options, so that `--help` needs nothing of what a session needs.
import { writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import {
  CannotError,
  ControlServer,
  GraphOutput,
  JsonLinesOutput,
  TextBatch,
  filterCalls,
  formatCount,
  isSafepokeError,
  type Session,
  type SessionOptions,
  type SessionSummary,
  type TargetEnd,
  type TextOutput,
} from '../../index.js';
import { OutputClosed, type Terminal } from '../terminal.js';
import { milliseconds, parseCount, parseSize, parseTime } from '../units.js';
import type { LiveOptions } from './trace-options.js';

/** Exit status of a program that a signal ended, as shells tell it. */
const SIGNAL_STATUS = 128;
/** OOM_SCORE_ADJ_MAX, include/uapi/linux/oom.h */
const FIRST_TO_DIE = '1000';
const DEFAULT_NEWEST_BYTES = 64 << 20;
/** How often a library is looked for that is to be traced and is not loaded yet. */
const LIBRARY_POLL_MS = 200;
/** Lines that wait for others are shown after this long all the same. */
const FLUSH_MS = 50;
/** Of a program with so few functions most have no symbol, as a rule. */
const FEW_FUNCTIONS = 50;

function sessionOptions(options: LiveOptions, terminal: Terminal): SessionOptions {
  return {
    ...(options.filter === undefined ? {} : { filters: options.filter }),
    ...(options.notrace === undefined ? {} : { notrace: options.notrace }),
    ...(options.depth === undefined ? {} : { depth: parseCount(options.depth, 'a depth', 0) }),
    ...(options.timeFilter === undefined ? {} : { minDurationNs: parseTime(options.timeFilter) }),
    ...(options.entryOnly === true || options.exits === 'none' ? { exits: 'none' } : {}),
    ...(options.buffer === undefined ? {} : { bufferBytes: parseSize(options.buffer) }),
    ...(options.ringMemory === undefined ? {} : { ringMemoryBytes: parseSize(options.ringMemory) }),
    ...(options.output === undefined ? {} : { output: options.output }),
    ...(options.keep === 'newest'
      ? { newestBytes: options.size === undefined ? DEFAULT_NEWEST_BYTES : parseSize(options.size) }
      : {}),
    ...(options.readOnlyText === true ? { readOnlyText: true } : {}),
    ...(options.way === 'auto' ? {} : { way: options.way }),
    ...(options.followDlopen === true ? { untilLoaded: true } : {}),
    ...(options.inside === true ? { inside: true } : {}),
    ...(options.follow === true ? { followExec: true } : {}),
    onNote: (line) => {
      terminal.warn(line);
    },
  };
}

/** Opens the summary's file before anything is done, so that a bad path is known in time. */
function checkSummaryPath(path: string | undefined): void {
  if (path === undefined) return;
  try {
    writeFileSync(path, '');
  } catch (error) {
    throw new CannotError('OUTPUT_UNWRITABLE', {
      tried: `write ${path}`,
      why: (error as NodeJS.ErrnoException).code ?? String(error),
      next: 'choose another file for --summary',
      cause: error,
    });
  }
}

/** Status to exit with for a target that has ended. */
export function statusOf(end: TargetEnd): number {
  if (end.kind === 'exited') return end.status;
  return end.kind === 'killed' ? SIGNAL_STATUS + end.signal : 0;
}

/** What came of a session. */
export interface Followed {
  readonly session: Session;
  readonly summary: SessionSummary | undefined;
  /** The signal that ended it, if one did. */
  readonly signal: number | undefined;
}

/**
 * When a trace is to end: so long after its first session has begun to record, whatever that took. The wait for a library before it
 * lasts no longer either.
 */
export class Deadline {
  readonly #ms: number;
  #endAt: number;
  #hasBegun = false;

  constructor(ms: number) {
    this.#ms = ms;
    this.#endAt = performance.now() + ms;
  }

  get msLeft(): number {
    return this.#endAt - performance.now();
  }

  /** A session records. Only the first counts. */
  begin(): void {
    if (this.#hasBegun) return;
    this.#hasBegun = true;
    this.#endAt = performance.now() + this.#ms;
  }
}

/**
 * With `--follow-dlopen` a session may have to wait for the library that it is to trace, with `--follow` for a program that is executed
 * while it begins. Nothing is done to the process before.
 */
async function beginWhenLoaded(
  options: LiveOptions,
  isOver: () => boolean,
  begin: () => Session,
): Promise<Session> {
  for (;;) {
    try {
      return begin();
    } catch (error) {
      const code = isSafepokeError(error) ? error.code : undefined;
      const waits =
        (options.followDlopen === true && code === 'NO_MODULE') ||
        (options.follow === true && code === 'EXECUTED');
      if (!waits || isOver()) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, LIBRARY_POLL_MS));
  }
}

/**
 * Runs a session to its end: until the target ends, the time is over, a signal comes, or nobody reads any more. The session's
 * summary is written and noted in each case.
 */
export async function followOne(
  terminal: Terminal,
  options: LiveOptions,
  begin: (options: SessionOptions) => Session,
  deadline: Deadline | undefined,
): Promise<Followed> {
  const wanted = sessionOptions(options, terminal);
  checkSummaryPath(options.summary);
  let signal: number | undefined;
  let session: Session | undefined;
  const onSignal = (name: NodeJS.Signals): void => {
    signal = constants.signals[name];
    void session?.stop().catch(() => undefined);
  };
  // Before the target is touched: a signal that comes while it is must not end us in the middle.
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const name of signals) process.on(name, onSignal);
  const timers: NodeJS.Timeout[] = [];
  let control: ControlServer | undefined;
  try {
    const isOver = (): boolean => signal !== undefined || (deadline !== undefined && deadline.msLeft < 0);
    session = await beginWhenLoaded(options, isOver, () => begin(wanted));
    deadline?.begin();
    const begun = session;
    offerOurselves();
    const batch = new TextBatch((text) => {
      terminal.data(text);
    });
    let output: TextOutput | undefined;
    if (options.output === undefined) {
      output =
        options.format === 'jsonl'
          ? new JsonLinesOutput(begun.info, batch.write)
          : new GraphOutput(begun.info, batch.write, terminal.colors);
      const { minDurationNs, depth } = wanted;
      const filter = {
        ...(minDurationNs === undefined ? {} : { minTicks: minDurationNs / begun.info.clock.nsPerTick }),
        ...(depth === undefined ? {} : { maxDepth: depth + 1 }),
      };
      begun.follow(filterCalls(output, filter));
    }
    if (deadline !== undefined) {
      const stop = (): void => void begun.stop().catch(() => undefined);
      timers.push(setTimeout(stop, deadline.msLeft));
    }
    let closed = false;
    const flush = (): void => {
      if (closed) return;
      try {
        batch.flush();
      } catch (error) {
        if (!(error instanceof OutputClosed)) throw error;
        closed = true;
        void begun.stop().catch(() => undefined);
      }
    };
    timers.push(setInterval(flush, FLUSH_MS));
    control = await listen(begun, terminal);
    let summary: SessionSummary | undefined;
    try {
      summary = await begun.done;
      output?.finish();
      flush();
    } catch (error) {
      summary = begun.summary;
      if (!(error instanceof OutputClosed)) {
        if (summary !== undefined) tell(terminal, options, summary);
        throw error;
      }
    }
    if (summary !== undefined) tell(terminal, options, summary);
    return { session: begun, summary, signal };
  } finally {
    control?.close();
    for (const timer of timers) clearInterval(timer);
    for (const name of signals) process.off(name, onSignal);
  }
}

/**
 * Should the system run out of memory, the kernel is to end us and not the target, which then restores itself (proc(5), oom_score_adj).
 * A program that was started by us has been, and keeps its own.
 */
function offerOurselves(): void {
  try {
    writeFileSync('/proc/self/oom_score_adj', FIRST_TO_DIE);
  } catch {
    // Without it things are as they are for any other program.
  }
}

/** For `safepoke control`. Whoever cannot have that still has the trace. */
async function listen(session: Session, terminal: Terminal): Promise<ControlServer | undefined> {
  try {
    return await ControlServer.open(session);
  } catch (error) {
    if (!isSafepokeError(error)) throw error;
    terminal.warn(error.message);
    return undefined;
  }
}

function tell(terminal: Terminal, options: LiveOptions, summary: SessionSummary): void {
  if (options.summary !== undefined)
    writeFileSync(options.summary, `${JSON.stringify(summary, undefined, 2)}\n`);
  const calls = Object.values(summary.calls).reduce((sum, n) => sum + n, 0);
  const counted = (n: number, what: string): string => `${formatCount(n)} ${what}${n === 1 ? '' : 's'}`;
  const parts = [
    `${counted(calls, 'call')} of ${counted(summary.patched, 'traced function')} in ${counted(summary.threads, 'thread')}`,
  ];
  const refused = Object.values(summary.refused).reduce((sum, n) => sum + n, 0);
  if (refused > 0) parts.push(`${counted(refused, 'function')} refused (see safepoke functions --refused)`);
  if (summary.held_us > 0) parts.push(`no thread held longer than ${milliseconds(summary.held_us)}`);
  else if (summary.lent_us > 0) parts.push(`no thread held, one lent for ${milliseconds(summary.lent_us)}`);
  terminal.note(`safepoke: ${parts.join('; ')}`);
  if (summary.laneless > 0) {
    terminal.warn(
      `${formatCount(summary.laneless)} records were not kept: they were made before the program had set up its thread, or there were too many threads`,
    );
  }
  if (summary.abandoned > 0) {
    terminal.warn(
      `${formatCount(summary.abandoned)} records were dropped: they were never finished, as their thread ended, or a signal handler jumped away, in the middle`,
    );
  }
  const full = summary.dropped - summary.laneless - summary.abandoned;
  if (full > 0) {
    terminal.warn(
      `${formatCount(full)} records were dropped: a ring was full, or calls were too deep; give a larger --buffer or --ring-memory, or trace less with -F`,
    );
  }
  if (calls === 0 && options.filter === undefined && summary.patched <= FEW_FUNCTIONS) {
    terminal.warn(
      "none of the few functions that have symbols was called: the program is stripped, perhaps (see safepoke functions); name its libraries to trace those, as in -F 'libc.so.6!*'",
    );
  }
  if (summary.not_kept > 0)
    terminal.note(`safepoke: ${formatCount(summary.not_kept)} older records were not kept (--keep newest)`);
  if (!summary.restored)
    terminal.warn('not every site has its original bytes: somebody else has changed them meanwhile');
}
