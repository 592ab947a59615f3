import { Option } from 'commander';
import { REPORT_KEYS, Report, TextBatch } from '../../index.js';
import type { ReportKey } from '../../index.js';
import type { RegisterCommand } from './index.js';
import { addRecordingOptions, useRecording } from './recording-options.js';
import type { RecordingOptions } from './recording-options.js';

interface ReportOptions extends RecordingOptions {
  readonly sort: ReportKey;
}

export const registerReport: RegisterCommand = (program, terminal) => {
  const command = program
    .command('report')
    .description('print a table of the functions of a recording: calls, total and own time');
  addRecordingOptions(command)
    .addOption(new Option('--sort <key>', 'largest first').choices(REPORT_KEYS).default('total'))
    .action((path: string, options: ReportOptions) => {
      const batch = new TextBatch((text) => terminal.data(text));
      useRecording(terminal, {
        path,
        options,
        makeOutput: (recording) => new Report(recording.info, batch.write, options.sort, terminal.colors),
        order: 'file',
        flush: () => batch.flush(),
      });
    });
};
