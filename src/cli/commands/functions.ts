import { UsageError } from '../../errors/index.js';
import { padEnd, plain, text } from '../../text/index.js';
import { parsePid } from './attach.js';
import type { RegisterCommand } from './index.js';
import { collect } from './trace-options.js';

interface FunctionsOptions {
  readonly pid?: string;
  readonly filter?: string[];
  readonly notrace?: string[];
  readonly refused?: boolean;
}

const ADDRESS_DIGITS = 16;
const SIZE_COLUMNS = 8;
const KIND_COLUMNS = 16;
const EXIT_COLUMNS = 12;
const NOTHING = plain('');

export const registerFunctions: RegisterCommand = (program, terminal) => {
  program
    .command('functions')
    .description(
      'list what can be traced of a process or a file: address, size, module, kind of site, exits, name',
    )
    .argument('[file]', 'a program or shared library')
    .option('-p, --pid <pid>', 'a running process')
    .option(
      '-F, --filter <pattern>',
      'these functions (repeatable): glob, /regular expression/, MODULE!PATTERN',
      collect,
    )
    .option('-N, --notrace <pattern>', 'but not these (repeatable)', collect)
    .option('--refused', 'list what cannot be traced instead, with the reason')
    .action(async (file: string | undefined, options: FunctionsOptions) => {
      if ((file === undefined) === (options.pid === undefined)) {
        throw new UsageError('WHICH_FUNCTIONS', {
          tried: 'list functions',
          why:
            file === undefined
              ? 'neither a file nor a process was given'
              : 'both a file and a process were given',
          next: 'give either -p PID or a FILE',
        });
      }
      const of = options.pid === undefined ? { file: file ?? '' } : { pid: parsePid(options.pid) };
      const { TextBatch, listFunctions } = await import('../../index.js');
      const { functions, unmatched } = listFunctions(of, options.filter, options.notrace);
      for (const line of unmatched) terminal.warn(line);
      const wanted = functions.filter((f) => (f.refusal !== undefined) === (options.refused ?? false));
      const moduleColumns = wanted.reduce((most, f) => Math.max(most, plain(f.module).length), 0);
      const batch = new TextBatch((shown) => terminal.data(shown));
      for (const f of wanted) {
        const address = plain(`0x${f.address.toString(16).padStart(ADDRESS_DIGITS, '0')}`);
        const size = plain(String(f.size).padStart(SIZE_COLUMNS));
        const module = padEnd(plain(f.module), moduleColumns);
        const what = padEnd(plain(f.kind ?? f.refusal?.reason ?? ''), KIND_COLUMNS);
        const exit = f.exit === undefined ? NOTHING : padEnd(plain(`exit: ${f.exit}`), EXIT_COLUMNS);
        const why = f.refusal === undefined ? NOTHING : text`  # ${plain(f.refusal.explanation)}`;
        batch.write(text`${address} ${size} ${module} ${what} ${exit}${plain(f.name)}${why}\n`);
      }
      batch.flush();
      const others = functions.length - wanted.length;
      if (options.refused !== true && others > 0) {
        terminal.note(`${wanted.length} functions can be traced; ${others} cannot: --refused lists them`);
      }
    });
};
