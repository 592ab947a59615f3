/** The library: everything that the command line does, it does through this file. */
import { checkOptionTypes, type OptionType } from './errors/index.js';
import { awaitWritable } from './linux/index.js';
import { FileSink, RecordingFile } from './output/index.js';
import { attachTo, runProgram, type Session, type TraceOptions } from './trace/index.js';

export { CannotError, ENDED, SafepokeError, UsageError, isSafepokeError } from './errors/index.js';
export type { ErrorDetails } from './errors/index.js';
export type { Text } from './text/index.js';
export type {
  Call,
  CallEnd,
  CallEnding,
  CallVisitor,
  FunctionInfo,
  RecordingHeader,
  RecordingMode,
  ThreadInfo,
  TraceInfo,
} from './recording/index.js';
export {
  ChromeOutput,
  FileSink,
  FoldedOutput,
  GraphOutput,
  JsonLinesOutput,
  RecordingFile,
  Report,
  REPORT_KEYS,
  TextBatch,
  filterCalls,
  formatCount,
  formatDuration,
  formatLost,
} from './output/index.js';
export type {
  CallFilter,
  Palette,
  ReadSummary,
  ReportKey,
  ReportRow,
  TextOutput,
  TextSink,
} from './output/index.js';

/**
 * Opens a recording. A file that is cut short opens all the same, with the reason in `fault`.
 *
 * Throws `CannotError`: RECORDING_UNREADABLE, RECORDING_FOREIGN, RECORDING_VERSION; RECORDING_TRUNCATED or
 * RECORDING_MALFORMED if not even its header is whole.
 */
export function openRecording(path: string): RecordingFile {
  return new RecordingFile(path);
}

export {
  ControlServer,
  NO_RUNTIME_FOLDER,
  Session,
  control,
  examineMachine,
  listFunctions,
  whenLoaded,
} from './trace/index.js';
export type {
  ControlAnswer,
  ControlOptions,
  ControlRequest,
  Finding,
  FunctionListing,
  ListedFunction,
  RefusedFunction,
  SessionEnd,
  SessionStatus,
  SessionSummary,
  TargetEnd,
  TraceOptions,
  WayName,
} from './trace/index.js';

export { passOnFiles } from './target/index.js';

/** Options of `attach` and `run`. */
export interface SessionOptions extends TraceOptions {
  /** Record into this file; read it with `openRecording`. */
  readonly output?: string;
}

/**
 * Attaches to a running process: its functions are traced when this returns. Iterate over the session for its calls; `stop` it,
 * and the process is as it was.
 *
 *     for await (const call of attach(pid, { filters: ['call*'] })) console.log(call.function.name, call.duration);
 *
 * Throws `CannotError` if it cannot, with nothing changed in the process; `UsageError` for bad options.
 */
export function attach(pid: number, options: SessionOptions = {}): Session {
  checkOptionTypes('attach', options, SESSION_OPTION_TYPES);
  return withRecording(options, (sink) => attachTo(pid, { ...options, ...sink }));
}

/** Starts a program under trace, from its first instruction on. Throws as `attach` does; the program has not run then. */
export function run(command: readonly string[], options: SessionOptions = {}): Session {
  checkOptionTypes('run', options, SESSION_OPTION_TYPES);
  return withRecording(options, (sink) => runProgram(command, { ...options, ...sink }));
}

/** By name, so that one that is added and not told here does not compile. */
const SESSION_OPTION_TYPES: Readonly<Record<keyof SessionOptions, OptionType>> = {
  filters: 'strings',
  notrace: 'strings',
  depth: 'number',
  exits: 'string',
  bufferBytes: 'number',
  ringMemoryBytes: 'number',
  minDurationNs: 'number',
  newestBytes: 'number',
  untilLoaded: 'boolean',
  inside: 'boolean',
  followExec: 'boolean',
  way: 'string',
  readOnlyText: 'boolean',
  onNote: 'function',
  isEnding: 'function',
  output: 'string',
};

function withRecording(options: SessionOptions, start: (sink: { sink?: FileSink }) => Session): Session {
  if (options.output === undefined) return start({});
  const waiting = { awaitWritable, isEnding: options.isEnding ?? ((): boolean => false) };
  const sink = new FileSink(options.output, 'recording', waiting);
  let session: Session;
  try {
    session = start({ sink });
  } catch (error) {
    sink.discard();
    throw error;
  }
  try {
    sink.commit();
  } catch (error) {
    // The session has begun: it ends in order, and tells of this.
    session.fail(error instanceof Error ? error : new Error(String(error)));
  }
  const close = (): void => {
    sink.close();
  };
  session.done.then(close, close);
  return session;
}
