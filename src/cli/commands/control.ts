import { UsageError, control, formatCount, type ControlAnswer, type SessionStatus } from '../../index.js';
import { concat, json, padEnd, plain, text, type Text } from '../../text/index.js';
import { milliseconds, parseCount } from '../units.js';
import type { RegisterCommand } from './index.js';
import { collect } from './trace-options.js';

interface ControlFlags {
  readonly pid: string;
  readonly on?: readonly string[];
  readonly off?: readonly string[];
  readonly status?: boolean;
  readonly json?: boolean;
}

export const registerControl: RegisterCommand = (program, terminal) => {
  program
    .command('control')
    .description('Switch functions of a running trace on and off, and see what it is doing.')
    .requiredOption('-p, --pid <pid>', 'the process that is traced')
    .option('--on <pattern>', 'have these functions record (repeatable); before --off', collect)
    .option('--off <pattern>', 'have these functions not record (repeatable)', collect)
    .option('--status', 'print what the session is doing, which is also done without --on and --off')
    .option('--json', 'print the status as a JSON object')
    .action(async (flags: ControlFlags) => {
      const on = flags.on ?? [];
      const off = flags.off ?? [];
      const answer = await control(parseCount(flags.pid, 'a process id', 1), { on, off });
      const changes = on.length + off.length > 0;
      if (changes) {
        checkMatched(answer.matchedOn, on);
        checkMatched(answer.matchedOff, off);
        terminal.note(`safepoke: ${describeChange(answer)}`);
      }
      if (changes && flags.status !== true && flags.json !== true) return;
      const { status } = answer;
      terminal.data(flags.json === true ? text`${json(status)}\n` : describeStatus(status));
    });
};

function checkMatched(matched: number, patterns: readonly string[]): void {
  if (patterns.length === 0 || matched > 0) return;
  throw new UsageError('NO_MATCH', {
    tried: `switch ${patterns.join(' ')}`,
    why: 'the session traces no function that matches',
    next: 'give a pattern of those that it was started with (-F)',
  });
}

function describeChange({ matchedOn, matchedOff, status }: ControlAnswer): string {
  const parts = [];
  if (matchedOn > 0) parts.push(`${matchedOn} on`);
  if (matchedOff > 0) parts.push(`${matchedOff} off`);
  return `${parts.join(', ')}, in ${milliseconds(status.switch_us, 2)}; no thread was held`;
}

/** What only a program that changes its own code has. */
function describeInside({ inside }: SessionStatus): readonly (readonly [string, string])[] {
  if (inside === null) return [];
  const { waits, longest_wait_us: longest, helper_writes: helped, written_by: by } = inside;
  return [
    ['written', by === 'mprotect' ? 'by mprotect; signal handlers wait meanwhile' : 'by /proc/self/mem'],
    ['waited', `${times(waits)} for signal handlers, ${milliseconds(longest)} at longest`],
    ['helped', `${times(helped)} by signal handlers`],
  ];
}

function times(n: number): string {
  return n === 1 ? 'once' : `${formatCount(n)} times`;
}

function describeStatus(status: SessionStatus): Text {
  const ways = Object.entries(status.ways).map(([way, sites]) => `${formatCount(sites)} ${way}`);
  const rows: readonly (readonly [string, string])[] = [
    ['process', String(status.pid)],
    [
      'functions',
      `${formatCount(status.on)} on, ${formatCount(status.off)} off, ${formatCount(status.refused)} refused`,
    ],
    ['records', `${formatCount(status.records)}, ${formatCount(status.dropped)} dropped`],
    ['threads', formatCount(status.threads)],
    ['sites', ways.join(', ')],
    ['switched', `${formatCount(status.switched)} functions`],
    ['held', `${milliseconds(status.held_us)} at longest`],
    ['lent', `one thread, ${milliseconds(status.lent_us)} at longest`],
    ...describeInside(status),
  ];
  // What the peer has answered may be anything.
  return concat(rows.map(([name, value]) => text`${padEnd(plain(name), 10)} ${plain(value)}\n`));
}
