/** The library: everything that the command line does, it does through this file. */
import { RecordingFile } from './output/index.js';

export { CannotError, SafepokeError, UsageError, isSafepokeError } from './errors/index.js';
export type { ErrorDetails } from './errors/index.js';
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
