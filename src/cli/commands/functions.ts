import { UsageError } from '../../errors/index.js';
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
      const { listFunctions } = await import('../../index.js');
      const { functions } = listFunctions(of, options.filter, options.notrace);
      const wanted = functions.filter((f) => (f.refusal !== undefined) === (options.refused ?? false));
      const moduleColumns = Math.max(0, ...wanted.map((f) => f.module.length));
      const lines = wanted.map((f) => {
        const address = f.address.toString(16).padStart(ADDRESS_DIGITS, '0');
        const what = (f.kind ?? f.refusal?.reason ?? '').padEnd(KIND_COLUMNS);
        const exit = f.exit === undefined ? '' : `exit: ${f.exit}`.padEnd(EXIT_COLUMNS);
        const why = f.refusal === undefined ? '' : `  # ${f.refusal.explanation}`;
        return `${address} ${String(f.size).padStart(SIZE_COLUMNS)} ${f.module.padEnd(moduleColumns)} ${what} ${exit}${f.name}${why}\n`;
      });
      terminal.data(lines.join(''));
      const others = functions.length - wanted.length;
      if (options.refused !== true && others > 0) {
        terminal.note(`${wanted.length} functions can be traced; ${others} cannot: --refused lists them`);
      }
    });
};
