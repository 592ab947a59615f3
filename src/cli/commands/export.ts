import { Option } from 'commander';
import { UsageError, isSafepokeError } from '../../errors/index.js';
import type { FileSink, RecordingFile, TextOutput, TextSink } from '../../output/index.js';
import type { RegisterCommand } from './index.js';
import { addRecordingOptions } from './recording-options.js';
import type { RecordingOptions } from './recording-options.js';

type Outputs = typeof import('../../output/index.js');

interface Format {
  readonly make: (outputs: Outputs, recording: RecordingFile, sink: TextSink) => TextOutput;
  /** Where calls are written as they end they are in the order of time; sums need no order. */
  readonly order: 'time' | 'file';
}

const FORMATS = {
  chrome: {
    make: (outputs: Outputs, recording: RecordingFile, sink: TextSink) =>
      new outputs.ChromeOutput(recording.info, sink),
    order: 'file',
  },
  folded: {
    make: (outputs: Outputs, recording: RecordingFile, sink: TextSink) =>
      new outputs.FoldedOutput(recording.info, sink),
    order: 'file',
  },
  jsonl: {
    make: (outputs: Outputs, recording: RecordingFile, sink: TextSink) =>
      new outputs.JsonLinesOutput(recording.info, sink),
    order: 'time',
  },
} as const satisfies Readonly<Record<string, Format>>;

interface ExportOptions extends RecordingOptions {
  readonly format: keyof typeof FORMATS;
  readonly output?: string;
}

export const registerExport: RegisterCommand = (program, terminal) => {
  const command = program.command('export').description('write a recording in a format of other tools');
  addRecordingOptions(command)
    .addOption(
      new Option('-f, --format <format>', 'chrome (also for Perfetto), folded (flame graphs) or jsonl')
        .choices(Object.keys(FORMATS))
        .makeOptionMandatory(),
    )
    .option('-o, --output <file>', 'write there instead of to standard output')
    .action(async (path: string, options: ExportOptions) => {
      const [outputs, { useRecording }] = await Promise.all([
        import('../../output/index.js'),
        import('./use-recording.js'),
      ]);
      const format: Format = FORMATS[options.format];
      let file: FileSink | undefined;
      const batch = new outputs.TextBatch((text) => {
        if (file === undefined) terminal.data(text);
        else file.write([Buffer.from(text)]);
      });
      try {
        useRecording(terminal, {
          path,
          options,
          makeOutput: (recording) => {
            if (options.output !== undefined && recording.isAt(options.output))
              throw new UsageError('OUTPUT_IS_INPUT', {
                tried: `write to ${options.output}`,
                why: 'it is the recording itself',
                next: 'choose another file for -o',
              });
            // Only now, so that a recording that cannot be read leaves an older output as it was.
            if (options.output !== undefined) file = new outputs.FileSink(options.output, 'text');
            return format.make(outputs, recording, batch.write);
          },
          order: format.order,
          flush: () => batch.flush(),
        });
      } catch (error) {
        // What could be read of a damaged recording is written; a disk that is full leaves what was there.
        if (isSafepokeError(error) && error.code !== 'OUTPUT_UNWRITABLE') file?.commit();
        file?.discard();
        throw error;
      }
      file?.commit();
      file?.close();
    });
};
