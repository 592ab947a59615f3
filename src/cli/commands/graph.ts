import type { RegisterCommand } from './index.js';
import { addRecordingOptions } from './recording-options.js';
import type { RecordingOptions } from './recording-options.js';

export const registerGraph: RegisterCommand = (program, terminal) => {
  const command = program
    .command('graph')
    .description('print the calls of a recording, nested, with their durations');
  addRecordingOptions(command).action(async (path: string, options: RecordingOptions) => {
    const [{ GraphOutput, TextBatch }, { useRecording }] = await Promise.all([
      import('../../output/index.js'),
      import('./use-recording.js'),
    ]);
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
