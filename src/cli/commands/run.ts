import type { RegisterCommand } from './index.js';
import { addLiveOptions, type LiveOptions } from './trace-options.js';

export const registerRun: RegisterCommand = (program, terminal, setStatus) => {
  addLiveOptions(
    program
      .command('run')
      .description('start a program under trace, from its first instruction on')
      .argument('<program...>', 'the program and its arguments, behind --')
      .option('--inside', 'without ptrace: the program changes its own code, by an object loaded with it')
      .passThroughOptions(),
  ).action(async (command: string[], options: LiveOptions) => {
    const [
      { passOnFiles, run },
      { follow },
      { EndedEarly, comesFromKeys, isPassedOn, statusOf, statusOfSignal },
    ] = await Promise.all([import('../../index.js'), import('./live-parts.js'), import('./live-session.js')]);
    passOnFiles();
    const followed = await follow(terminal, options, (wanted) => run(command, wanted)).catch(
      (error: unknown) => {
        if (!(error instanceof EndedEarly)) throw error;
        // As if it had been the program's from the beginning on.
        setStatus(statusOf({ kind: 'killed', signal: error.signal }));
      },
    );
    if (followed === undefined) return;
    const { session, signal } = followed;
    if (signal !== undefined && !isPassedOn(signal)) {
      setStatus(statusOfSignal(signal));
      return;
    }
    // At a terminal Ctrl-C reaches the program without us.
    if (signal !== undefined && !comesFromKeys(signal)) session.signal(signal);
    setStatus(statusOf(await session.waitForTarget()));
  });
};
