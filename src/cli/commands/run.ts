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
    const [{ passOnFiles, run }, { follow }, { comesFromKeys, isPassedOn, statusOf, statusOfSignal }] =
      await Promise.all([import('../../index.js'), import('./live-parts.js'), import('./live-session.js')]);
    passOnFiles();
    const { session, signal } = await follow(terminal, options, (wanted) => run(command, wanted));
    if (signal !== undefined && !isPassedOn(signal)) {
      setStatus(statusOfSignal(signal));
      return;
    }
    // At a terminal Ctrl-C reaches the program without us.
    if (signal !== undefined && !comesFromKeys(signal)) session.signal(signal);
    setStatus(statusOf(await session.waitForTarget()));
  });
};
