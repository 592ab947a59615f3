import { availableParallelism } from 'node:os';
import { UsageError } from '../../errors/index.js';
import { UnknownStep } from '../../protocol/index.js';
import type { StressCase, StressResult, StressSettings } from '../../stress/index.js';
import { json, lines, painted, text } from '../../text/index.js';
import { parseCount } from '../units.js';
import type { RegisterCommand } from './index.js';
import { collect } from './trace-options.js';

/** Something was seen that what the checker calls safe must never do. */
const EXIT_BROKEN = 1;
const DEFAULT_SECONDS = '2';

interface StressFlags {
  readonly protocol?: readonly string[];
  readonly without?: readonly string[];
  readonly seconds: string;
  readonly modifications?: string;
  readonly threads?: string;
  readonly verdicts: boolean;
  readonly json?: boolean;
}

type Stress = typeof import('../../stress/index.js');

export const registerStress: RegisterCommand = (program, terminal, setStatus) => {
  program
    .command('stress')
    .description(
      'Change code under running threads and a storm of signals on this machine, by each protocol.',
    )
    .option(
      '--protocol <name>',
      'only this one (repeatable); without it, all, and each step left out',
      collect,
    )
    .option('--without <step>', 'leave a step of it out (repeatable)', collect)
    .option('--seconds <s>', 'for each', DEFAULT_SECONDS)
    .option('--modifications <n>', 'go on to the next after so many changes')
    .option('--threads <n>', 'threads that call the functions (default: one for each processor)')
    .option('--no-verdicts', 'do not ask the checker what it says')
    .option('--json', 'print one JSON object a line')
    .action(async (flags: StressFlags) => {
      await terminal.measure();
      const stress = await import('../../stress/index.js');
      const settings = settingsOf(stress, flags);
      const cases = casesOf(stress, flags);
      terminal.note(
        `${settings.seconds} s each, ${settings.threads} ${settings.threads === 1 ? 'thread' : 'threads'} on ${availableParallelism()} processors, ${cases.length} to go`,
      );
      if (flags.json !== true) terminal.data(lines(`${stress.tableHeading().join('\n')}\n`));
      const { red } = terminal.colors;
      let broken = false;
      for (const [index, stressCase] of cases.entries()) {
        terminal.progress(`${index + 1}/${cases.length} ${titleOf(stressCase)}`);
        let result = await stress.runCase(stressCase, settings);
        if (flags.verdicts) result = stress.withVerdict(result, stressCase);
        broken ||= stress.isBroken(result) && (result.verdict ?? 'safe') === 'safe';
        terminal.data(
          flags.json === true
            ? text`${json(jsonOf(result))}\n`
            : painted(`${stress.tableRow(result, red)}\n`),
        );
      }
      if (broken) setStatus(EXIT_BROKEN);
    });
};

function titleOf({ name, without }: StressCase): string {
  return without.length === 0 ? name : `${name} without ${without.join(', ')}`;
}

function settingsOf(stress: Stress, flags: StressFlags): StressSettings {
  const threads =
    flags.threads === undefined
      ? Math.min(availableParallelism(), stress.MAX_THREADS)
      : parseCount(flags.threads, 'a number of threads');
  if (threads > stress.MAX_THREADS)
    throw new UsageError('STRESS_THREADS', {
      tried: `run ${threads} threads`,
      why: `there is room for ${stress.MAX_THREADS}`,
      next: 'give a smaller number',
    });
  const seconds = Number(flags.seconds);
  if (!(seconds > 0))
    throw new UsageError('BAD_NUMBER', {
      tried: `take "${flags.seconds}" as a number of seconds`,
      why: 'it is not a number above 0',
      next: `give a number such as ${DEFAULT_SECONDS}`,
    });
  const modifications =
    flags.modifications === undefined
      ? Number.MAX_SAFE_INTEGER
      : parseCount(flags.modifications, 'a number of changes');
  return { seconds, modifications, threads };
}

function casesOf(stress: Stress, flags: StressFlags): readonly StressCase[] {
  const without = flags.without ?? [];
  if (flags.protocol === undefined) {
    if (without.length === 0) return stress.allCases;
    throw new UsageError('STRESS_NEEDS_PROTOCOL', {
      tried: `leave out ${without.join(', ')}`,
      why: 'it is a step of one protocol, and none is named',
      next: 'add --protocol NAME (see safepoke check --list)',
    });
  }
  return flags.protocol.map((name) => {
    try {
      const found = stress.caseNamed(name, without);
      if (found !== undefined) return found;
    } catch (error) {
      if (error instanceof UnknownStep) throw unknown('step', error.step, error.known);
      throw error;
    }
    throw unknown('protocol', name, stress.caseNames());
  });
}

function unknown(what: string, name: string, known: readonly string[]): UsageError {
  return new UsageError('STRESS_UNKNOWN_NAME', {
    tried: `put ${what} "${name}" under stress`,
    why: `there is no such ${what}`,
    next: known.length === 0 ? 'leave it away' : `use one of: ${known.join(', ')}`,
  });
}

/** The result as data; what a protocol does not have is null. */
function jsonOf(result: StressResult): unknown {
  return {
    ...result,
    verdict: result.verdict ?? null,
    helped: result.helped ?? null,
    waits: result.waits ?? null,
    longestWaitNs: result.longestWaitNs ?? null,
  };
}
