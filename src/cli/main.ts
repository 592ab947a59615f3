#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { isSafepokeError } from '../errors/index.js';
import { OutputClosed, Terminal } from './terminal.js';
import { registerCommands } from './commands/index.js';

/** Exit statuses of the command line, documented in docs/commands/safepoke.md. */
const EXIT_CANNOT = 1;
const EXIT_USAGE = 2;

/** The version that package.json gives; it lies two folders up, in the source tree as in the installed package. */
function packageVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  const { version } = JSON.parse(text) as { readonly version: string };
  return version;
}

async function main(): Promise<number> {
  const terminal = new Terminal();
  const program = new Command('safepoke')
    .description(
      'See what a running native program does, by changing its code while it runs, and never break it.',
    )
    .configureOutput({
      writeOut: (text) => {
        terminal.data(text);
      },
      writeErr: (text) => {
        terminal.note(text.trimEnd());
      },
      outputError: (text, write) => {
        write(`${text.trimEnd().replaceAll('\n', ' ')} (safepoke COMMAND --help lists the options)`);
      },
    })
    .version(packageVersion())
    .enablePositionalOptions()
    .exitOverride();
  let status = 0;
  registerCommands(program, terminal, (exitStatus) => {
    status = exitStatus;
  });
  try {
    await program.parseAsync(process.argv);
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    if (error instanceof OutputClosed) return status;
    if (isSafepokeError(error)) {
      terminal.error(error.message);
      return error.exitStatus;
    }
    terminal.error(
      `internal error, please report it: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
    );
    return EXIT_CANNOT;
  }
  return status;
}

process.exitCode = await main();
