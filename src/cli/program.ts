import { readFileSync } from 'node:fs';
import { isSafepokeError } from '../errors/index.js';
import { lines } from '../text/index.js';
import { OutputClosed, Terminal, leaveStreams, replaceStreams } from './terminal.js';

/** Exit statuses of the command line, documented in docs/commands/safepoke.md. */
const EXIT_CANNOT = 1;
const EXIT_USAGE = 2;
/** Nobody's fault: too many open files, of ours or of the machine, and no memory. */
const WANTING: ReadonlySet<string> = new Set(['EMFILE', 'ENFILE', 'ENOMEM']);

/** Help is as wide on every terminal and in every pipe. */
const HELP_COLUMNS = 80;

const VERSION_OPTIONS: ReadonlySet<string> = new Set(['-V', '--version']);

/** The version that package.json gives; it lies two folders up, in the source tree as in the installed package. */
function packageVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  const { version } = JSON.parse(text) as { readonly version: string };
  return version;
}

/**
 * A SIGUSR1 that has come before `main.ts` could take it has made Node open its inspector, on a port that every user of the machine
 * reaches. Whoever has asked for it in words (`--inspect`) may have it.
 */
async function closeInspector(): Promise<void> {
  const words = [...process.execArgv, process.env['NODE_OPTIONS'] ?? ''];
  if (words.some((word) => word.includes('--inspect'))) return;
  const inspector = await import('node:inspector');
  if (inspector.url() !== undefined) inspector.close();
}

/** Does what the command line says. Returns the exit status. */
export async function main(): Promise<number> {
  replaceStreams();
  process.on('exit', leaveStreams);
  const terminal = new Terminal();
  let status = 0;
  try {
    await runCommand(terminal, (exitStatus) => {
      status = exitStatus;
    });
  } catch (error) {
    if (error instanceof OutputClosed) return status;
    if (isSafepokeError(error)) {
      terminal.error(error.message);
      return error.exitStatus;
    }
    const code = (error as NodeJS.ErrnoException | undefined)?.code ?? '';
    if (WANTING.has(code)) {
      terminal.error(
        `cannot go on: the system gives nothing more (${code}); raise the limit (ulimit -n), or make room`,
      );
      return EXIT_CANNOT;
    }
    terminal.error('internal error, please report it:');
    // A line that a name in the message begins is not taken for one of ours.
    const told = error instanceof Error ? (error.stack ?? error.message) : String(error);
    terminal.noteLines(`  ${told.replaceAll('\n', '\n  ')}`);
    return EXIT_CANNOT;
  }
  return status;
}

async function runCommand(terminal: Terminal, setStatus: (status: number) => void): Promise<void> {
  const args = process.argv.slice(2);
  if (args.length === 1 && VERSION_OPTIONS.has(args[0])) {
    // Needs nothing of what follows, and scripts ask for it often.
    terminal.data(lines(`${packageVersion()}\n`));
    return;
  }
  const [{ Command, CommanderError }, { registerCommands }] = await Promise.all([
    import('commander'),
    import('./commands/index.js'),
    closeInspector(),
  ]);
  const program = new Command('safepoke')
    .description(
      'See what a running native program does, by changing its code while it runs, and never break it.',
    )
    .configureOutput({
      writeOut: (help) => {
        terminal.data(lines(help));
      },
      writeErr: (help) => {
        terminal.noteLines(help.trimEnd());
      },
      // What it would find out itself, by looking at process.stdout and process.stderr.
      getOutHelpWidth: () => HELP_COLUMNS,
      getErrHelpWidth: () => HELP_COLUMNS,
      getOutHasColors: () => false,
      getErrHasColors: () => false,
      outputError: (text, write) => {
        write(`${text.trimEnd().replaceAll('\n', ' ')} (safepoke COMMAND --help lists the options)`);
      },
    })
    .version(packageVersion())
    .enablePositionalOptions()
    .exitOverride();
  try {
    await registerCommands(program, terminal, setStatus, args);
    await program.parseAsync(process.argv);
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    setStatus(error.exitCode === 0 ? 0 : EXIT_USAGE);
  }
}
