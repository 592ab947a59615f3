// Reading a recording from the command line. The outputs' room alone is asked: it knows nothing of live processes, so that
// nothing that they need is loaded.
import { UsageError } from '../../errors/index.js';
import { RecordingFile, filterCalls, formatCount, formatLost } from '../../output/index.js';
import type { CallFilter, ReadSummary, TextOutput } from '../../output/index.js';
import type { CallVisitor } from '../../recording/index.js';
import type { Terminal } from '../terminal.js';
import { parseCount, parseTime } from '../units.js';
import type { RecordingOptions } from './recording-options.js';

/** What a command does with the file: it makes its output, and chooses the order in which it wants to see the calls. */
export interface RecordingUse {
  readonly path: string;
  readonly options: RecordingOptions;
  readonly makeOutput: (recording: RecordingFile) => TextOutput;
  readonly order: 'time' | 'file';
  /** Writes what the output has batched; called after its last text. */
  readonly flush: () => void;
}

/** Feeds a recording to an output. What is not whole is an error after everything that could be read was written. */
export function useRecording(terminal: Terminal, use: RecordingUse): void {
  const recording = new RecordingFile(use.path);
  try {
    const filter = filterFrom(use.options, recording);
    const output = use.makeOutput(recording);
    const visitor: CallVisitor = filterCalls(output, filter);
    const summary = use.order === 'time' ? recording.visitByTime(visitor) : recording.visit(visitor);
    output.finish();
    use.flush();
    noteSummary(terminal, summary);
    if (recording.fault !== undefined) throw recording.fault;
  } finally {
    recording.close();
  }
}

function filterFrom(options: RecordingOptions, recording: RecordingFile): CallFilter {
  const { header, clock } = recording.info;
  if (options.timeFilter !== undefined && header.mode === 'entries')
    throw new UsageError('NO_DURATIONS', {
      tried: `choose calls of ${recording.path} by their duration`,
      why: 'only entries were recorded, so there are no durations',
      next: 'leave -t out',
    });
  const minNs = options.timeFilter === undefined ? header.minDurationNs : parseTime(options.timeFilter);
  const depth = options.depth === undefined ? header.maxDepth : parseCount(options.depth, 'a depth', 0);
  return {
    ...(minNs === undefined ? {} : { minTicks: minNs / clock.nsPerTick }),
    ...(depth === undefined ? {} : { maxDepth: depth + 1 }),
  };
}

function noteSummary(terminal: Terminal, summary: ReadSummary): void {
  if (summary.lost > 0) terminal.warn(`${formatLost(summary.lost)}: the ring was full`);
  if (summary.notKept > 0) terminal.note(`safepoke: ${formatLost(summary.notKept, true)} (--keep newest)`);
  if (summary.anomalies > 0)
    terminal.warn(`${formatCount(summary.anomalies)} of the records made no sense and were left out`);
}
