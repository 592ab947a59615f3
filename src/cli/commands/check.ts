import type { Command } from 'commander';
import type { CheckResult, JudgedRow, Progress, Verdict } from '../../check/index.js';
import { UsageError } from '../../errors/index.js';
import type { Machine, NmiBound, Scenario } from '../../model/index.js';
import { writeWhole } from '../../output/index.js';
import type { Protocol } from '../../protocol/index.js';
import { json, painted, text } from '../../text/index.js';
import type { Terminal } from '../terminal.js';
import type { RegisterCommand, SetStatus } from './index.js';

/** Exit statuses, documented in docs/commands/check.md. */
const EXIT_SAFE = 0;
const EXIT_NOT_SAFE = 1;

/** A CPU mask in the model has this many bits that are tried; more CPUs are out of reach of an exhaustive search. */
const MAX_CPUS = 4;
const MAX_NMIS = 9;
const BYTES_PER_MIB = 2 ** 20;
const DEFAULT_MIB = 1536;
/** A pipe has no width; a timeline should have one for those who read what comes out of it. */
const PIPE_COLUMNS = 160;

interface CheckFlags {
  readonly protocol?: string;
  readonly without: readonly string[];
  readonly memory?: string;
  readonly cpus?: string;
  readonly nmis?: string;
  readonly overlap?: string;
  readonly scenario?: string;
  readonly arch?: string;
  readonly dynamicFtrace: boolean;
  readonly functionTracer: boolean;
  readonly reduction: boolean;
  readonly maxMemory?: string;
  readonly list?: boolean;
  readonly json?: boolean;
  readonly promela?: string;
  readonly html?: string;
}

type Core = typeof import('../../core.js');

export const registerCheck: RegisterCommand = (program, terminal, setStatus) => {
  describeFlags(program.command('check')).action(async (flags: CheckFlags) => {
    await terminal.measure();
    // The checker is loaded only if it is asked for, so that `safepoke --help` stays fast.
    const core = await import('../../core.js');
    if (flags.list === true) list(core, terminal);
    else if (flags.protocol === undefined) wholeTable(core, flags, terminal);
    else checkOne(core, flags.protocol, flags, terminal, setStatus);
  });
};

function describeFlags(command: Command): Command {
  return command
    .description('Search every interleaving of a code-modification protocol for a run that breaks it.')
    .option('--protocol <name>', 'check one protocol; without it, the table of all')
    .option(
      '--without <step>',
      'leave a step out (repeatable)',
      (step: string, all: readonly string[]) => [...all, step],
      [],
    )
    .option('--memory <model>', 'sc, tso, pso or relaxed (default tso)')
    .option('--scenario <name>', 'what is changed (default two-sites)')
    .option('--overlap <how>', 'may NMIs run on two CPUs at once: any or never (default any)')
    .option('--cpus <n>', 'CPUs (default 3)')
    .option('--nmis <n>', 'NMIs per CPU, or "unbounded" (default 1)')
    .option('--arch <name>', 'x86, arm, powerpc, sh or sparc: which hooks there are (default x86)')
    .option('--no-dynamic-ftrace', 'a kernel without CONFIG_DYNAMIC_FTRACE')
    .option('--no-function-tracer', 'a kernel without CONFIG_FUNCTION_TRACER')
    .option('--no-reduction', 'search without partial-order and symmetry reduction')
    .option('--max-memory <MiB>', `give up with "unknown" beyond this (default ${DEFAULT_MIB})`)
    .option('--list', 'print protocols, their steps, scenarios and memory models')
    .option('--json', 'print the result as JSON')
    .option('--promela <file>', 'write protocol, machine and scenario as a Promela model for SPIN')
    .option('--html <file>', 'write the counterexample as a page to step through');
}

function list(core: Core, terminal: Terminal): void {
  const { bold, dim } = terminal.colors;
  const lines: string[] = [bold('Protocols and their steps')];
  for (const p of core.protocols) {
    lines.push(`  ${bold(p.name.padEnd(20))}${p.title}`);
    for (const s of p.steps)
      lines.push(
        `    ${s.name.padEnd(18)}${dim(s.meaning)}${(p.without ?? []).includes(s.name) ? ' (left out here)' : ''}`,
      );
  }
  lines.push('', bold('Scenarios'));
  for (const s of core.scenarios) lines.push(`  ${s.name.padEnd(20)}${s.summary}`);
  lines.push('', bold('Memory models'), `  ${core.memoryModels.join(', ')}`);
  lines.push('', bold('Architectures'), `  ${core.architectures.join(', ')}`);
  terminal.data(painted(`${lines.join('\n')}\n`));
}

function wholeTable(core: Core, flags: CheckFlags, terminal: Terminal): void {
  const single = ['memory', 'cpus', 'nmis', 'overlap', 'scenario', 'arch', 'promela', 'html'] as const;
  const given =
    single.find((name) => flags[name] !== undefined) ?? (flags.without.length > 0 ? 'without' : undefined);
  if (given !== undefined)
    throw new UsageError('check-needs-protocol', {
      tried: `check with --${given}`,
      why: 'it concerns one protocol, and none is named',
      next: 'add --protocol NAME (see safepoke check --list)',
    });
  const began = performance.now();
  const judged: JudgedRow[] = [];
  let states = 0;
  let done = 0;
  const cells = core.tableRows.flatMap((row) => core.cellsOf(row)).length;
  for (const row of core.tableRows) {
    const verdicts: Verdict[] = [];
    for (const cell of core.cellsOf(row)) {
      const title = `${++done}/${cells} ${row.group}, ${row.label}: ${cell.scenario.name}, ${cell.memory}`;
      terminal.progress(title);
      const result = core.checkCell(cell, {
        ...reductions(flags),
        limits: { ...byteLimit(flags), onProgress: (p) => terminal.progress(`${title}: ${progressText(p)}`) },
      });
      states += result.states;
      verdicts.push(result.verdict);
      if (flags.json === true) terminal.data(text`${json(jsonOf(core, result, 'real', false))}\n`);
    }
    judged.push({ row, verdicts });
  }
  if (flags.json === true) return;
  const mark = (verdict: Verdict, text: string): string => markVerdict(terminal, verdict, text);
  terminal.data(painted(`${core.renderTable(judged, mark).join('\n')}\n`));
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  terminal.note(`${cells} verdicts, ${states.toLocaleString('en')} states, ${seconds} s`);
}

function checkOne(
  core: Core,
  name: string,
  flags: CheckFlags,
  terminal: Terminal,
  setStatus: SetStatus,
): void {
  const { protocol, hooks } = protocolOf(core, name, flags);
  const machine = machineOf(core, flags);
  const scenario = scenarioOf(core, flags.scenario ?? 'two-sites');
  if (flags.promela !== undefined) {
    writeWhole(flags.promela, core.promelaOf(core.compile(protocol, machine, scenario)));
    terminal.note(`Promela model written to ${flags.promela}`);
  }
  const result = core.check(protocol, machine, scenario, {
    ...reductions(flags),
    limits: { ...byteLimit(flags), onProgress: (p) => terminal.progress(progressText(p)) },
  });
  const timeline = core.timelineOf(result);
  if (flags.html !== undefined) {
    if (timeline === undefined) terminal.note(`no counterexample, so ${flags.html} was not written`);
    else {
      writeWhole(flags.html, core.pageOf(timeline));
      terminal.note(`counterexample written to ${flags.html}`);
    }
  }
  if (flags.json === true) terminal.data(text`${json(jsonOf(core, result, hooks, true))}\n`);
  else {
    const { bold, dim, red, yellow } = terminal.colors;
    const lines =
      timeline === undefined
        ? [core.headingOf(result)]
        : core.renderTimeline(timeline, { bold, dim, red, yellow }, Math.min(terminal.columns, PIPE_COLUMNS));
    const steps = timeline === undefined ? '' : `, ${timeline.rows.length} steps`;
    const reason = result.reason === undefined ? '' : `: ${result.reason}`;
    lines.push('', `${markVerdict(terminal, result.verdict, result.verdict)}${steps}${reason}`);
    terminal.data(painted(`${lines.join('\n')}\n`));
    terminal.note(
      `${result.states.toLocaleString('en')} states, ${result.transitions.toLocaleString('en')} transitions, depth ${result.depth}, ${result.ms.toFixed(0)} ms`,
    );
  }
  setStatus(result.verdict === 'safe' ? EXIT_SAFE : EXIT_NOT_SAFE);
}

function protocolOf(
  core: Core,
  name: string,
  flags: CheckFlags,
): { protocol: Protocol; hooks: 'real' | 'empty' } {
  const found = core.protocolNamed(name);
  if (found === undefined)
    throw unknownName(
      'protocol',
      name,
      core.protocols.map((p) => p.name),
    );
  let protocol: Protocol;
  try {
    protocol = core.withoutSteps(found, flags.without);
  } catch (error) {
    if (error instanceof core.UnknownStep) throw unknownName('step', error.step, error.known);
    throw error;
  }
  const architecture = oneOf(core.architectures, 'architecture', flags.arch ?? 'x86');
  const { dynamicFtrace, functionTracer } = flags;
  if (core.hasHooks({ architecture, dynamicFtrace, functionTracer })) return { protocol, hooks: 'real' };
  return { protocol: { ...protocol, routines: core.emptyHooks(protocol.routines) }, hooks: 'empty' };
}

function machineOf(core: Core, flags: CheckFlags): Machine {
  return {
    cpus: numberOf('--cpus', flags.cpus, core.defaultMachine.cpus, 1, MAX_CPUS),
    nmis: nmisOf(flags.nmis),
    memory: oneOf(core.memoryModels, 'memory model', flags.memory ?? core.defaultMachine.memory),
    overlap: oneOf(['any', 'never'] as const, 'overlap', flags.overlap ?? core.defaultMachine.overlap),
  };
}

function nmisOf(text: string | undefined): NmiBound {
  return text === 'unbounded' ? text : numberOf('--nmis', text, 1, 0, MAX_NMIS);
}

function scenarioOf(core: Core, name: string): Scenario {
  const found = core.scenarios.find((s) => s.name === name);
  if (found === undefined)
    throw unknownName(
      'scenario',
      name,
      core.scenarios.map((s) => s.name),
    );
  return found;
}

function oneOf<const T extends string>(known: readonly T[], what: string, text: string): T {
  const found = known.find((k) => k === text);
  if (found === undefined) throw unknownName(what, text, known);
  return found;
}

function numberOf(
  flag: string,
  text: string | undefined,
  otherwise: number,
  min: number,
  max: number,
): number {
  if (text === undefined) return otherwise;
  const number = Number(text);
  if (/^\d+$/.test(text) && number >= min && number <= max) return number;
  throw new UsageError('check-bad-number', {
    tried: `check with ${flag} ${text}`,
    why: `it is not a number from ${min} to ${max}`,
    next: 'give one that is',
  });
}

function unknownName(what: string, name: string, known: readonly string[]): UsageError {
  return new UsageError('check-unknown-name', {
    tried: `check with ${what} "${name}"`,
    why: `there is no such ${what}`,
    next: known.length === 0 ? 'leave it away' : `use one of: ${known.join(', ')}`,
  });
}

function reductions(flags: CheckFlags): { partialOrder: boolean; symmetry: boolean } {
  return { partialOrder: flags.reduction, symmetry: flags.reduction };
}

function byteLimit(flags: CheckFlags): { bytes: number } {
  const mib = numberOf('--max-memory', flags.maxMemory, DEFAULT_MIB, 1, 64 * 1024);
  return { bytes: mib * BYTES_PER_MIB };
}

function progressText(p: Progress): string {
  return `${p.states.toLocaleString('en')} states, depth ${p.depth}, ${p.frontier.toLocaleString('en')} to expand`;
}

function markVerdict(terminal: Terminal, verdict: Verdict, text: string): string {
  const { green, red, magenta, yellow } = terminal.colors;
  return { safe: green, unsafe: red, livelock: magenta, unknown: yellow }[verdict](text);
}

/** The result as data. `trace` is a list of steps in words; it is null if there is no counterexample. */
function jsonOf(core: Core, result: CheckResult, hooks: 'real' | 'empty', withTrace: boolean): unknown {
  const timeline = withTrace ? core.timelineOf(result) : undefined;
  const { violation, program } = result;
  return {
    protocol: result.protocol,
    without: result.without,
    hooks,
    memory: result.memory,
    scenario: result.scenario,
    overlap: result.overlap,
    cpus: result.cpus,
    nmis: result.nmis,
    verdict: result.verdict,
    ...(result.reason === undefined ? {} : { reason: result.reason }),
    states: result.states,
    transitions: result.transitions,
    depth: result.depth,
    ms: Math.round(result.ms),
    violation:
      violation === undefined
        ? null
        : {
            kind: violation.kind,
            text: core.violationText(program, violation, result.trace?.steps.at(-1)?.cpu),
          },
    trace:
      timeline?.rows.map((row) => ({
        step: row.step,
        by: timeline.columns.filter((_, i) => row.cells[i].length > 0),
        happens: row.cells.flat(),
        text: Object.fromEntries(row.text.map((t, i) => [timeline.sites[i], t.bytes.join(' ')])),
        words: row.words,
        buffers: row.buffers,
        ...(row.repeatsFrom ? { repeatsFrom: true } : {}),
      })) ?? null,
  };
}
