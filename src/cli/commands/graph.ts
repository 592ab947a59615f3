import { GraphOutput, TextBatch } from '../../index.js';
import type { RegisterCommand } from './index.js';
import { addRecordingOptions, useRecording } from './recording-options.js';
import type { RecordingOptions } from './recording-options.js';

export const registerGraph: RegisterCommand = (program, terminal) => {
  const command = program
    .command('graph')
    .description('print the calls of a recording, nested, with their durations');
  addRecordingOptions(command).action((path: string, options: RecordingOptions) => {
    const batch = new TextBatch((text) => terminal.data(text));
    useRecording(terminal, {
      path,
      options,
      makeOutput: (recording) => new GraphOutput(recording.info, batch.write, terminal.colors),
      order: 'time',
      flush: () => batch.flush(),
    });
  });
};
