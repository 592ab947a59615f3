import type { Command } from 'commander';
import { UsageError } from '../../errors/index.js';
import type { Terminal } from '../terminal.js';

/** Called by a command to set the exit status with which safepoke ends. */
export type SetStatus = (status: number) => void;

/** What each file of this folder exports: it adds its command to the program. */
export type RegisterCommand = (program: Command, terminal: Terminal, setStatus: SetStatus) => void;

/** In the order of the help. Each is loaded only where it is wanted: most of what they need, the others do not. */
const commands: ReadonlyMap<string, () => Promise<RegisterCommand>> = new Map([
  ['run', async () => (await import('./run.js')).registerRun],
  ['attach', async () => (await import('./attach.js')).registerAttach],
  ['control', async () => (await import('./control.js')).registerControl],
  ['functions', async () => (await import('./functions.js')).registerFunctions],
  ['graph', async () => (await import('./graph.js')).registerGraph],
  ['report', async () => (await import('./report.js')).registerReport],
  ['export', async () => (await import('./export.js')).registerExport],
  ['check', async () => (await import('./check.js')).registerCheck],
  ['stress', async () => (await import('./stress.js')).registerStress],
  ['doctor', async () => (await import('./doctor.js')).registerDoctor],
]);

/** Adds the command that `args` begin with, behind `help` perhaps; all of them where they name none. */
export async function registerCommands(
  program: Command,
  terminal: Terminal,
  setStatus: SetStatus,
  args: readonly string[],
): Promise<void> {
  const named = [args[0] === 'help' ? args.at(1) : args.at(0)].filter((name) => commands.has(name ?? ''));
  for (const [name, load] of commands) {
    if (named.length === 0 || named.includes(name)) (await load())(program, terminal, setStatus);
  }
  for (const command of program.commands) refuseRepeats(command);
}

/** The last of two values would be taken, and the first silently be none. */
function refuseRepeats(command: Command): void {
  for (const option of command.options) {
    // Its help says of one that it gathers values.
    if (!(option.required || option.optional) || option.description.includes('(repeatable')) continue;
    let given = 0;
    command.on(`option:${option.name()}`, () => {
      if (++given === 1) return;
      throw new UsageError('GIVEN_TWICE', {
        tried: `take ${option.flags} more than once`,
        why: 'it has one value',
        next: 'give it once',
      });
    });
  }
}
