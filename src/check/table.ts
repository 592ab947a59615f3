import type { Machine, MemoryModel, Scenario } from '../model/index.js';
import { callAndBack, memoryModels, scenarioNamed, twoSites } from '../model/index.js';
import type { Protocol } from '../protocol/index.js';
import {
  emptyHooks,
  int3,
  int3Help,
  int3HelpLate,
  int3NoRefs,
  int3Skip,
  nmi2008,
  nmiGated,
  nmiNoStorm,
  nmiNoStormNaive,
  nmiOneWord,
  nmiSpan,
  unprotected,
  withoutSteps,
} from '../protocol/index.js';
import type { CheckOptions, CheckResult, Verdict } from './check.js';
import { check } from './check.js';

/** A row of the verdict table: one protocol, with or without some step, in one or two scenarios. */
export interface TableRow {
  readonly group: string;
  readonly label: string;
  readonly protocol: Protocol;
  readonly scenarios: readonly Scenario[];
  readonly cpus: number;
  readonly nmis: Machine['nmis'];
  readonly overlap: Machine['overlap'];
}

/** A cell of the table: what `check` is asked. */
export interface TableCell {
  readonly row: TableRow;
  readonly scenario: Scenario;
  readonly memory: MemoryModel;
}

const both = [twoSites, callAndBack];
const CPUS = 3;

function row(
  group: string,
  label: string,
  protocol: Protocol,
  overlap: Machine['overlap'],
  more: Partial<TableRow> = {},
): TableRow {
  return { group, label, protocol, scenarios: both, cpus: CPUS, nmis: 1, overlap, ...more };
}

function eachStepLeftOut(
  group: string,
  protocol: Protocol,
  overlap: Machine['overlap'],
  more: Partial<TableRow> = {},
): TableRow[] {
  return protocol.steps
    .filter((s) => !(protocol.without ?? []).includes(s.name))
    .map((s) => row(group, `without ${s.name}`, withoutSteps(protocol, [s.name]), overlap, more));
}

const spans = { scenarios: [scenarioNamed('spans'), scenarioNamed('span-and-back')] };
const spanFaults = { scenarios: [scenarioNamed('faulting-span'), scenarioNamed('failing-helpers')] };
const lockedText = { scenarios: [scenarioNamed('locked-spans'), scenarioNamed('locked-and-back')] };
const sealedText = { scenarios: [scenarioNamed('sealed-span')] };
const storm = { scenarios: [scenarioNamed('nmi-storm')] };
const staticBuffer = { scenarios: [scenarioNamed('static-buffer'), scenarioNamed('static-buffer-back')] };
const faults = { scenarios: [scenarioNamed('faulting-site'), scenarioNamed('verified')] };
/** Where nobody is stopped the other CPUs run threads, each of which executes every site. */
const threads = { nmis: 0 };
const threadsAndNmis = { cpus: 2, nmis: 1 };
const oneCall = { scenarios: [callAndBack, scenarioNamed('call-to-call')] };
const hooksEmpty: Protocol = { ...nmi2008, routines: emptyHooks(nmi2008.routines) };

/** Every protocol and variant that the table judges. */
export const tableRows: readonly TableRow[] = [
  row('no protocol', 'unprotected', unprotected, 'never'),
  row('no protocol', 'unprotected', unprotected, 'any'),
  row('no protocol', 'nmi-2008, hooks empty', hooksEmpty, 'never'),
  row('no protocol', 'nmi-2008, hooks empty', hooksEmpty, 'any'),
  row('nmi-2008', 'as written', nmi2008, 'any'),
  row('nmi-2008', 'as written', nmi2008, 'never'),
  row('nmi-2008', 'as written', nmi2008, 'never', { nmis: 'unbounded' }),
  ...eachStepLeftOut('nmi-2008', nmi2008, 'never'),
  ...['count', 'help', 'hook-first'].map((s) =>
    row('nmi-2008', `without ${s}`, withoutSteps(nmi2008, [s]), 'any'),
  ),
  row('nmi-one-word', 'as written', nmiOneWord, 'any'),
  row('nmi-one-word', 'as written', nmiOneWord, 'any', { nmis: 2 }),
  row('nmi-one-word', 'as written', nmiOneWord, 'any', { nmis: 'unbounded' }),
  ...eachStepLeftOut('nmi-one-word', nmiOneWord, 'any'),
  row('nmi-span', 'as written', nmiSpan, 'any', spans),
  row('nmi-span', 'as written', nmiSpan, 'any', { ...spans, nmis: 2 }),
  row('nmi-span', 'as written', nmiSpan, 'any', { ...spans, nmis: 'unbounded' }),
  ...eachStepLeftOut('nmi-span', nmiSpan, 'any', spans),
  row('faults of spans', 'nmi-span', nmiSpan, 'any', spanFaults),
  ...['rehearsal', 'help', 'helper-wait'].map((s) =>
    row('faults of spans', `nmi-span, without ${s}`, withoutSteps(nmiSpan, [s]), 'any', spanFaults),
  ),
  row('faults of spans', 'nmi-one-word', nmiOneWord, 'any', {
    scenarios: [scenarioNamed('failing-helpers')],
  }),
  row('nmi-span, text locked', 'as written', nmiSpan, 'any', lockedText),
  row('nmi-span, text locked', 'as written', nmiSpan, 'any', { ...lockedText, nmis: 2 }),
  row('nmi-span, text locked', 'as written', nmiSpan, 'any', { ...lockedText, nmis: 'unbounded' }),
  ...eachStepLeftOut('nmi-span, text locked', nmiSpan, 'any', lockedText),
  row('nmi-span, text sealed', 'as written', nmiSpan, 'any', sealedText),
  ...['rehearsal', 'shared-unlock', 'lock'].map((s) =>
    row('nmi-span, text sealed', `without ${s}`, withoutSteps(nmiSpan, [s]), 'any', sealedText),
  ),
  row('nmi-gated', 'as written', nmiGated, 'any'),
  row('nmi-no-storm', 'naive', nmiNoStormNaive, 'any'),
  row('nmi-no-storm', 'as written', nmiNoStorm, 'any'),
  row('nmi-no-storm', 'as written', nmiNoStorm, 'any', { nmis: 'unbounded' }),
  ...eachStepLeftOut('nmi-no-storm', nmiNoStorm, 'any'),
  row('storm of NMIs', 'nmi-2008', nmi2008, 'any', { ...storm, nmis: 'unbounded' }),
  row('storm of NMIs', 'nmi-one-word', nmiOneWord, 'any', { ...storm, nmis: 'unbounded' }),
  row('storm of NMIs', 'nmi-no-storm', nmiNoStorm, 'any', { ...storm, nmis: 'unbounded' }),
  row('static code buffer', 'nmi-2008', nmi2008, 'never', staticBuffer),
  row(
    'static code buffer',
    'nmi-2008, without last-wait',
    withoutSteps(nmi2008, ['last-wait']),
    'never',
    staticBuffer,
  ),
  row(
    'static code buffer',
    'nmi-2008, without fill-barrier',
    withoutSteps(nmi2008, ['fill-barrier']),
    'never',
    staticBuffer,
  ),
  row('static code buffer', 'nmi-one-word', nmiOneWord, 'any', staticBuffer),
  row('static code buffer', 'nmi-no-storm', nmiNoStorm, 'any', staticBuffer),
  row('faults', 'nmi-2008', nmi2008, 'never', faults),
  row('faults', 'nmi-one-word', nmiOneWord, 'any', faults),
  row('faults', 'nmi-no-storm', nmiNoStorm, 'any', faults),
  row('int3', 'as written', int3, 'any', threads),
  row('int3', 'as written', int3, 'any', threadsAndNmis),
  ...eachStepLeftOut('int3', int3, 'any', threads),
  row('int3-help', 'as written', int3Help, 'any', threads),
  ...eachStepLeftOut('int3-help', int3Help, 'any', threads),
  row('int3, from call to call', 'int3', int3, 'any', { ...threadsAndNmis, ...oneCall }),
  row('int3, from call to call', 'int3-skip', int3Skip, 'any', { ...threadsAndNmis, ...oneCall }),
  row('int3, from call to call', 'int3-no-refs', int3NoRefs, 'any', { ...threadsAndNmis, ...oneCall }),
  row('int3, from call to call', 'int3-help', int3Help, 'any', { ...threadsAndNmis, ...oneCall }),
  row('int3, from call to call', 'int3-help-late', int3HelpLate, 'any', { ...threadsAndNmis, ...oneCall }),
];

export function cellsOf(r: TableRow): readonly TableCell[] {
  return r.scenarios.flatMap((scenario) => memoryModels.map((memory) => ({ row: r, scenario, memory })));
}

export function checkCell(cell: TableCell, options: CheckOptions = {}): CheckResult {
  return check(cell.row.protocol, machineOf(cell), cell.scenario, options);
}

export function machineOf(cell: TableCell): Machine {
  const { cpus, nmis, overlap } = cell.row;
  return { cpus, nmis, overlap, memory: cell.memory };
}

/** What the table says of one row. */
export interface JudgedRow {
  readonly row: TableRow;
  readonly verdicts: readonly Verdict[];
}

const LABEL_WIDTH = 34;
const CPUS_WIDTH = 6;
const NMIS_WIDTH = 11;
const OVERLAP_WIDTH = 8;
const VERDICT_WIDTH = 9;

/** The table as lines of text; `mark` makes up a verdict. */
export function renderTable(
  judged: readonly JudgedRow[],
  mark: (verdict: Verdict, text: string) => string,
): string[] {
  const lines: string[] = [];
  let shown = '';
  for (const { row: r, verdicts } of judged) {
    const scenarioNames = r.scenarios.map((s) => s.name);
    const heading = `${r.group}/${scenarioNames.join()}`;
    if (heading !== shown) {
      shown = heading;
      if (lines.length > 0) lines.push('');
      const left = LABEL_WIDTH + CPUS_WIDTH + NMIS_WIDTH + OVERLAP_WIDTH;
      lines.push(
        (
          r.group.padEnd(left) +
          scenarioNames.map((n) => n.padEnd(VERDICT_WIDTH * memoryModels.length)).join(' ')
        ).trimEnd(),
      );
      const models = memoryModels.map((m) => m.padEnd(VERDICT_WIDTH)).join('');
      lines.push(
        `${''.padEnd(LABEL_WIDTH)}${'CPUs'.padEnd(CPUS_WIDTH)}${'NMIs/CPU'.padEnd(NMIS_WIDTH)}${'overlap'.padEnd(OVERLAP_WIDTH)}${r.scenarios.map(() => models).join(' ')}`.trimEnd(),
      );
    }
    const parts: string[] = [];
    r.scenarios.forEach((_, s) => {
      const ofScenario = verdicts.slice(s * memoryModels.length, (s + 1) * memoryModels.length);
      parts.push(ofScenario.map((v) => mark(v, v) + ' '.repeat(VERDICT_WIDTH - v.length)).join(''));
    });
    lines.push(
      `${`  ${r.label}`.padEnd(LABEL_WIDTH)}${`${r.cpus}`.padEnd(CPUS_WIDTH)}${`${r.nmis}`.padEnd(NMIS_WIDTH)}${r.overlap.padEnd(OVERLAP_WIDTH)}${parts.join(' ')}`.trimEnd(),
    );
  }
  return lines;
}
