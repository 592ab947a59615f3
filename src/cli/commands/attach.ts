import { UsageError } from '../../errors/index.js';
import type { RegisterCommand } from './index.js';
import { addLiveOptions, type LiveOptions } from './trace-options.js';

/** A process id. Throws BAD_PID. */
export function parsePid(text: string): number {
  const pid = /^\d+$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (Number.isSafeInteger(pid) && pid > 0) return pid;
  throw new UsageError('BAD_PID', {
    tried: `take "${text}" as a process id`,
    why: 'it is not a whole number above 0',
    next: 'give one process, as in -p $(pidof -s redis-server)',
  });
}

interface AttachOptions extends LiveOptions {
  readonly pid: string;
}

export const registerAttach: RegisterCommand = (program, terminal, setStatus) => {
  addLiveOptions(
    program
      .command('attach')
      .description('trace a running process; stops at --duration, or at Ctrl-C')
      .requiredOption('-p, --pid <pid>', 'the process'),
  ).action(async (options: AttachOptions) => {
    const pid = parsePid(options.pid);
    const [{ attach }, { follow }, { statusOf, statusOfSignal }] = await Promise.all([
      import('../../index.js'),
      import('./live-parts.js'),
      import('./live-session.js'),
    ]);
    const { summary, signal } = await follow(terminal, options, (wanted) => attach(pid, wanted));
    setStatus(statusOfSignal(signal));
    const { exit_status: status, exit_signal: killer } = summary ?? { exit_status: null, exit_signal: null };
    if (status !== null) setStatus(statusOf({ kind: 'exited', status }));
    if (killer !== null) setStatus(statusOf({ kind: 'killed', signal: killer }));
  });
};
