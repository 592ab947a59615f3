import type { Command } from 'commander';

/** Options of every command that reads a recording. */
export interface RecordingOptions {
  readonly timeFilter?: string;
  readonly depth?: string;
}

export function addRecordingOptions(command: Command): Command {
  return command
    .argument('<file>', 'a recording')
    .option('-t, --time-filter <time>', 'only calls that lasted at least this long: 2us, 1.5ms, 3s')
    .option('-D, --depth <n>', 'at most n levels below the outermost call');
}
