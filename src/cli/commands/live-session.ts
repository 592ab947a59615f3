// Running a session from the command line. Apart from its options, so that `--help` needs nothing of what a session needs.
import { writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import {
  ControlServer,
  ENDED,
  FileSink,
  GraphOutput,
  JsonLinesOutput,
  NO_RUNTIME_FOLDER,
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
import { CaughtSignals, ENDING_SIGNALS, awaitWritable } from '../../linux/index.js';
import { writeWhole, type SinkWaiting } from '../../output/index.js';
import { json, text } from '../../text/index.js';
import { OutputClosed, isInputTerminal, type Terminal } from '../terminal.js';
import { milliseconds, parseCount, parseSize, parseTime } from '../units.js';
import type { LiveOptions } from './trace-options.js';

/** A signal that ends us has ended the session within two seconds: this, and what it then still takes to close it. */
const END_PATIENCE_MS = 1200;
/** Exit status of a program that a signal ended, as shells tell it. */
const SIGNAL_STATUS = 128;
/** By which one ends a session as a matter of course. */
const USUAL_SIGNALS: ReadonlySet<number> = new Set(
  (['SIGINT', 'SIGTERM', 'SIGHUP'] as const).map((name) => constants.signals[name]),
);
/** Further ones that a program may expect from whoever started it. */
const PASSED_ON: ReadonlySet<number> = new Set([
  ...USUAL_SIGNALS,
  constants.signals.SIGQUIT,
  constants.signals.SIGUSR2,
]);
/** What a terminal sends to all programs that run in its foreground. */
const KEYS: ReadonlySet<number> = new Set([constants.signals.SIGINT, constants.signals.SIGQUIT]);
/** OOM_SCORE_ADJ_MAX, include/uapi/linux/oom.h */
const FIRST_TO_DIE = '1000';
const DEFAULT_NEWEST_BYTES = 64 << 20;
/** How often a library is looked for that is to be traced and is not loaded yet. */
const LIBRARY_POLL_MS = 200;
/** How often it is looked whether a signal has come. */
const SIGNAL_POLL_MS = 20;
const STOPPING_SIGNALS: ReadonlySet<number> = new Set(
  [...ENDING_SIGNALS].filter((signal) => signal !== constants.signals.SIGUSR1),
);
/** Lines that wait for others are shown after this long all the same. */
const FLUSH_MS = 50;
/** Of a program with so few functions most have no symbol, as a rule. */
const FEW_FUNCTIONS = 50;

function sessionOptions(options: LiveOptions, terminal: Terminal, isEnding: () => boolean): SessionOptions {
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
    isEnding,
    onNote: (line) => {
      terminal.warn(line);
    },
  };
}

/** Opens the summary's file before anything is done, so that a bad path is known in time. What is there stays until there is a summary. */
function checkSummaryPath(path: string | undefined): void {
  if (path !== undefined) new FileSink(path, 'text').discard();
}

/** Status to exit with for a target that has ended. */
export function statusOf(end: TargetEnd): number {
  if (end.kind === 'exited') return end.status;
  return end.kind === 'killed' ? SIGNAL_STATUS + end.signal : 0;
}

/** Status to exit with for a signal that has ended an attached session: 0 for those that are meant to. */
export function statusOfSignal(signal: number | undefined): number {
  return signal === undefined || USUAL_SIGNALS.has(signal) ? 0 : SIGNAL_STATUS + signal;
}

/** True if the program that was started is to get the signal as well that has ended its session. */
export function isPassedOn(signal: number): boolean {
  return PASSED_ON.has(signal);
}

/** True if the program has got it already, as it shares our terminal. */
export function comesFromKeys(signal: number): boolean {
  return KEYS.has(signal) && isInputTerminal();
}

/** A signal came before a session had begun; nothing has changed in the process, and a program that was to be started has not run. */
export class EndedEarly extends Error {
  constructor(readonly signal: number) {
    super(`ended by signal ${signal} before the session had begun`);
  }
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
  let signal: number | undefined;
  let session: Session | undefined;
  let failure: Error | undefined;
  const stop = (withinMs?: number): void => void session?.stop(withinMs).catch(() => undefined);
  /** What nobody else has minded while the target is changed: it is restored first. */
  const onFailure = (error: Error): void => {
    failure ??= error;
    stop(END_PATIENCE_MS);
  };
  // Before the target is touched: a signal that comes while it is must not end us in the middle.
  const caught = new CaughtSignals(ENDING_SIGNALS);
  const isEnding = (): boolean => signal !== undefined || caught.has(STOPPING_SIGNALS);
  const waiting: SinkWaiting = { awaitWritable, isEnding };
  const takeSignals = (): void => {
    for (let taken = caught.take(); taken !== undefined; taken = caught.take()) {
      if (taken === constants.signals.SIGUSR1) {
        terminal.note(`safepoke: ${describeNow(session)}`);
        continue;
      }
      // Who presses a key may wait for the last records; who presses it again, or ends us, does not.
      const isPatient = taken === constants.signals.SIGINT && signal === undefined;
      signal ??= taken;
      stop(isPatient ? undefined : END_PATIENCE_MS);
    }
  };
  process.on('uncaughtException', onFailure);
  terminal.waitAs(waiting);
  const timers: NodeJS.Timeout[] = [setInterval(takeSignals, SIGNAL_POLL_MS)];
  let control: ControlServer | undefined;
  try {
    const wanted = sessionOptions(options, terminal, isEnding);
    checkSummaryPath(options.summary);
    const isOver = (): boolean => isEnding() || (deadline !== undefined && deadline.msLeft < 0);
    session = await beginWhenLoaded(options, isOver, () => begin(wanted));
    deadline?.begin();
    const begun = session;
    offerOurselves();
    const batch = new TextBatch((shown) => {
      terminal.data(shown);
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
      timers.push(setTimeout(stop, deadline.msLeft));
    }
    let closed = false;
    const flush = (): void => {
      if (closed) return;
      try {
        batch.flush();
      } catch (error) {
        closed = true;
        if (!(error instanceof OutputClosed)) failure ??= asError(error);
        stop();
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
        if (summary !== undefined) tell(terminal, options, summary, waiting);
        throw error;
      }
    }
    if (summary !== undefined) tell(terminal, options, summary, waiting);
    takeSignals();
    rethrow(failure);
    return { session: begun, summary, signal };
  } catch (error) {
    takeSignals();
    if (signal === undefined || !isSafepokeError(error) || error.code !== ENDED) throw error;
    terminal.note('safepoke: a signal came before the session had begun: nothing is traced');
    throw new EndedEarly(signal);
  } finally {
    control?.close();
    for (const timer of timers) clearInterval(timer);
    terminal.waitAs(undefined);
    process.off('uncaughtException', onFailure);
    caught.close();
  }
}

/** It is set by what is called from elsewhere. */
function rethrow(failure: Error | undefined): void {
  if (failure !== undefined) throw failure;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

function counted(n: number, what: string): string {
  return `${formatCount(n)} ${what}${n === 1 ? '' : 's'}`;
}

/** One line for SIGUSR1. */
function describeNow(session: Session | undefined): string {
  if (session === undefined) return 'the session has not begun yet';
  const { pid, on, records, dropped, threads } = session.status;
  const { startTime, filters = [] } = session.info.header;
  const what = filters.length === 0 ? '' : ` (${filters.join(', ')})`;
  return `process ${pid} is traced since ${startTime}: ${counted(on, 'function')}${what}, ${counted(threads, 'thread')}, ${counted(records, 'record')}, ${formatCount(dropped)} dropped`;
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
    // A user without such a folder (cron, a container) has not asked to be told of it.
    if (error.code !== NO_RUNTIME_FOLDER) terminal.warn(error.message);
    return undefined;
  }
}

function tell(terminal: Terminal, options: LiveOptions, summary: SessionSummary, waiting: SinkWaiting): void {
  if (options.summary !== undefined) writeWhole(options.summary, text`${json(summary, 2)}\n`, waiting);
  const calls = Object.values(summary.calls).reduce((sum, n) => sum + n, 0);
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
  if (summary.corrupt > 0) {
    terminal.warn(
      `${formatCount(summary.corrupt)} lanes were not read to their end, as the program had changed them (corrupt): what is shown is not all there was`,
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
