import { Option } from 'commander';
import type { ReportKey } from '../../output/index.js';
import type { RegisterCommand } from './index.js';
import { addRecordingOptions } from './recording-options.js';
import type { RecordingOptions } from './recording-options.js';

const SORT_KEYS = ['total', 'self', 'calls', 'avg', 'max'] as const satisfies readonly ReportKey[];

interface ReportOptions extends RecordingOptions {
  readonly sort: ReportKey;
}

export const registerReport: RegisterCommand = (program, terminal) => {
  const command = program
    .command('report')
    .description('print a table of the functions of a recording: calls, total and own time');
  addRecordingOptions(command)
    .addOption(new Option('--sort <key>', 'largest first').choices(SORT_KEYS).default('total'))
    .action(async (path: string, options: ReportOptions) => {
      const [{ Report, TextBatch }, { useRecording }] = await Promise.all([
        import('../../output/index.js'),
        import('./use-recording.js'),
      ]);
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
