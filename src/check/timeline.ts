import type { Happening, Pending, Program, Violation } from '../model/index.js';
import type { CheckResult } from './check.js';
import type { TraceStep } from './trace.js';

/** A counterexample in words, for the terminal and for the page. */
export interface Timeline {
  readonly heading: string;
  /** What happened in the end, as sentences. */
  readonly conclusion: readonly string[];
  /** One per context that takes part: the patcher, a thread, an NMI on a CPU. */
  readonly columns: readonly string[];
  readonly sites: readonly string[];
  /** Bytes of each site at the start. */
  readonly initialText: readonly SiteText[];
  readonly rows: readonly TimelineRow[];
}

export interface TimelineRow {
  /** Counted from 1. */
  readonly step: number;
  /** For each column what happened in it, line by line; only one column has any. */
  readonly cells: readonly (readonly string[])[];
  readonly text: readonly SiteText[];
  /** Words of shared memory after the step, as `name=value`. */
  readonly words: readonly string[];
  /** Which of the words the step changed. */
  readonly changedWords: readonly boolean[];
  /** What waits in the store buffers, as `CPU 1: flag=1`. */
  readonly buffers: readonly string[];
  /** This is the step that breaks the protocol. */
  readonly breaks: boolean;
  /** The run returns to before this step for ever. */
  readonly repeatsFrom: boolean;
}

/** The bytes of one site, in hexadecimal, and which of them have just changed. */
export interface SiteText {
  readonly bytes: readonly string[];
  readonly changed: readonly boolean[];
}

const HEX = 16;
const MODEL_FLAG = 0x80;
const MODEL_HIGH = 0x70;
const MODEL_LOW = 0x0f;

/** Makes the timeline of a result that has a trace; undefined if there is none to show. */
export function timelineOf(result: CheckResult): Timeline | undefined {
  const { trace, program } = result;
  if (trace === undefined) return undefined;
  const columns: string[] = [];
  const columnKeys: string[] = [];
  for (const step of trace.steps)
    for (const h of step.happenings) {
      const key = columnKey(step, h);
      if (columnKeys.includes(key)) continue;
      columnKeys.push(key);
    }
  columnKeys.sort();
  for (const key of columnKeys) columns.push(columnTitle(key, program));
  let memory = trace.initial;
  const rows = trace.steps.map((step, index): TimelineRow => {
    const before = memory;
    memory = step.memory;
    return {
      step: index + 1,
      cells: columnKeys.map((key) =>
        step.happenings.filter((h) => columnKey(step, h) === key).flatMap((h) => words(h, program)),
      ),
      text: siteTexts(program, step.memory, before),
      words: program.cells.flatMap((c, i) =>
        c.kind === 'text' ? [] : [`${cellName(program, i)}=${valueText(program, i, step.memory[i])}`],
      ),
      changedWords: program.cells.flatMap((c, i) =>
        c.kind === 'text' ? [] : [step.memory[i] !== before[i]],
      ),
      buffers: step.buffers.flatMap((b, cpu) =>
        b.length === 0 ? [] : [`CPU ${cpu}: ${b.map((p) => pendingText(program, p)).join(', ')}`],
      ),
      breaks: trace.violation !== undefined && index === trace.steps.length - 1,
      repeatsFrom: trace.lasso === index,
    };
  });
  return {
    heading: headingOf(result),
    conclusion: conclusionOf(result),
    columns,
    sites: program.scenario.sites.map((s) => s.name),
    initialText: siteTexts(program, trace.initial, trace.initial),
    rows,
  };
}

/** `nmi-2008 without last-wait, two-sites, tso, 3 CPUs, 1 NMI each, NMIs overlap`. */
export function headingOf(result: CheckResult): string {
  const left = result.without.length === 0 ? '' : ` without ${result.without.join(', ')}`;
  const { scenario } = result.program;
  const nmis = scenario.storm
    ? 'NMIs keep coming on all CPUs but the first'
    : result.nmis === 'unbounded'
      ? 'any number of NMIs'
      : `${result.nmis} NMI${result.nmis === 1 ? '' : 's'} on each`;
  const overlap = result.overlap === 'any' ? 'on any CPUs at once' : 'never two at once';
  return `${result.protocol}${left}: ${result.scenario}, ${result.memory}, ${result.cpus} CPUs, ${nmis}, ${overlap}`;
}

function columnKey(step: TraceStep, h: Happening): string {
  return `${step.cpu}/${h.context}`;
}

function columnTitle(key: string, program: Program): string {
  const [cpu, context] = key.split('/');
  if (context === 'nmi') return `CPU ${cpu} NMI`;
  if (cpu === '0') return 'CPU 0 patcher';
  return program.live ? `CPU ${cpu} thread` : `CPU ${cpu} parked`;
}

function siteTexts(program: Program, memory: readonly number[], before: readonly number[]): SiteText[] {
  return program.scenario.sites.map((_, site) => {
    const bytes: string[] = [];
    const changed: boolean[] = [];
    for (const piece of [0, 1]) {
      const cell = program.textBase + 2 * site + piece;
      const now = program.pieces[memory[cell]];
      const was = program.pieces[before[cell]];
      now.forEach((byte, i) => {
        bytes.push(hex(byte));
        changed.push(was[i] !== byte);
      });
    }
    return { bytes, changed };
  });
}

function words(h: Happening, program: Program): string[] {
  const i = program.instructions[h.pc];
  const { where } = i;
  const number = where.number === undefined ? '' : `${where.number}) `;
  switch (h.what) {
    case 'arrived':
      return ['NMI arrives'];
    case 'returned':
      return ['NMI returns'];
    case 'left-buffer':
      return h.cell === undefined || h.wrote === undefined
        ? []
        : [`store buffer: ${assignment(program, h.cell, h.wrote)} reaches memory`];
    case 'executed':
      break;
  }
  switch (i.kind) {
    case 'jump':
    case 'branch':
    case 'calculate':
    case 'check-access':
    case 'end':
      return [];
    case 'set':
      return where.routine === 'stop_machine' && where.text.startsWith('change') && i.register === 0
        ? [where.text]
        : [];
    case 'load-code':
      return h.cell === undefined ? [] : [`${number}reads ${cellText(program, h)} from the buffer`];
    case 'load-text':
      return h.cell === undefined
        ? []
        : [`${number}verifies ${cellName(program, h.cell)}: ${cellText(program, h)}`];
    case 'check-lock':
      return h.cell === undefined ? [] : [`${number}finds that ${lockText(program, h.cell, h.read ?? 0)}`];
    case 'set-lock':
      return h.cell === undefined
        ? []
        : [`${number}${where.text}: ${lockText(program, h.cell, h.wrote ?? 0)}`];
    case 'store-text':
      if (h.cell === undefined) return [];
      return h.buffered === undefined
        ? [`${number}writes ${assignment(program, h.cell, h.wrote ?? 0)}`]
        : [`${number}writes ${assignment(program, h.cell, h.buffered)}, buffered`];
    case 'fetch-first':
    case 'fetch-second':
      return h.cell === undefined || h.read === undefined
        ? []
        : [`fetches ${cellName(program, h.cell)}: ${valueText(program, h.cell, h.read)}`];
    case 'expect':
      return [];
    case 'sync-wait':
      return [`${number}all CPUs have synchronised`];
    default: {
      const seen =
        h.read !== undefined && h.cell !== undefined ? `: ${valueText(program, h.cell, h.read)}` : '';
      const buffered = h.buffered === undefined ? '' : ', buffered';
      return [`${number}${where.text}${seen}${buffered}`];
    }
  }
}

/** `A is locked`. */
function lockText(program: Program, cell: number, value: number): string {
  return `${cellName(program, cell)} ${valueText(program, cell, value)}`;
}

function cellText(program: Program, h: Happening): string {
  return h.cell === undefined || h.read === undefined ? '' : valueText(program, h.cell, h.read);
}

/** `site A head`, `mod_code_write`. */
export function cellName(program: Program, cell: number): string {
  const c = program.cells[cell];
  switch (c.kind) {
    case 'word':
      return c.name;
    case 'text':
      return `${program.scenario.sites[c.site].name} ${pieceName(c.piece)}`;
    case 'buffer':
      return `static buffer ${pieceName(c.piece)}`;
    case 'lock':
      return `${program.scenario.sites[c.site].name} is`;
  }
}

function pieceName(piece: number): string {
  return piece === 0 ? 'head' : 'tail';
}

function assignment(program: Program, cell: number, value: number): string {
  return `${cellName(program, cell)} = ${valueText(program, cell, value)}`;
}

function pendingText(program: Program, p: Pending): string {
  switch (p.kind) {
    case 'fence':
      return '|';
    case 'store':
      return assignment(program, p.cell, p.value).replace(' = ', '=');
    case 'add':
      return `${cellName(program, p.cell)}+=${signed(p.value)}`;
  }
}

function signed(value: number): string {
  return value >= MODEL_FLAG ? `${value - 2 * MODEL_FLAG}` : `${value}`;
}

function hex(byte: number): string {
  return byte.toString(HEX).padStart(2, '0');
}

/** A cell's value in words: bytes, the name of a site or of code, a number, or flag and counts. */
export function valueText(program: Program, cell: number, value: number): string {
  const c = program.cells[cell];
  if (c.kind === 'lock') return value === 0 ? 'locked' : 'writable';
  if (c.kind !== 'word') return value === 0 ? 'nothing' : program.pieces[value].map(hex).join(' ');
  if (c.use === 'address') return value === 0 ? 'NULL' : `&${program.scenario.sites[value - 1].name}`;
  if (c.use === 'code') return value === 0 ? 'NULL' : `"${program.buffers[value]?.name ?? 'static buffer'}"`;
  const error = value - 2 * MODEL_FLAG;
  if (c.name.endsWith('status')) return value === 0 ? '0' : `${error}`;
  const parts: string[] = [];
  if ((value & MODEL_FLAG) !== 0) parts.push('FLAG');
  if ((value & MODEL_HIGH) !== 0) parts.push(`${(value & MODEL_HIGH) >> 4}<<16`);
  if ((value & MODEL_LOW) !== 0 || parts.length === 0) parts.push(`${value & MODEL_LOW}`);
  return parts.join('+');
}

function conclusionOf(result: CheckResult): string[] {
  const { program, trace } = result;
  if (result.violation !== undefined)
    return [violationText(program, result.violation, trace?.steps.at(-1)?.cpu)];
  const waiting = (trace?.waiting ?? []).map((cpu) => `CPU ${cpu}`).join(', ');
  if (trace?.lasso !== undefined)
    return [
      `Steps ${trace.lasso + 1} to ${trace.steps.length} repeat for ever: ${waiting} waits, and what it waits for never comes,`,
      'although every NMI finishes.',
    ];
  return [`Nothing is left to happen, and ${waiting} waits for ever.`];
}

/** What went wrong, in a sentence. */
export function violationText(program: Program, v: Violation, cpu?: number): string {
  const who = cpu === undefined ? 'A CPU' : `CPU ${cpu}`;
  const site = 'site' in v ? program.scenario.sites[v.site].name : '';
  const bytes = (...pieces: readonly number[]): string =>
    pieces.map((p) => program.pieces[p].map(hex).join(' ')).join(' ');
  switch (v.kind) {
    case 'torn':
      return `${who} decodes ${bytes(v.head, v.tail)} at site ${site}: a mixture of two instructions.`;
    case 'wrong-instruction':
      return `${who} decodes ${bytes(v.head, v.tail)} at site ${site}: an instruction that belongs elsewhere.`;
    case 'written-while-executed':
      return `${who}'s different bytes land in the ${pieceName(v.piece)} of site ${site} while CPU ${v.victim} is executing it: what it executes is undefined.`;
    case 'wrong-result': {
      const result = v.result >= MODEL_FLAG ? v.result - 2 * MODEL_FLAG : v.result;
      return `Change ${v.change + 1} returns ${result}, not ${program.changes[v.change].result}.`;
    }
    case 'wrong-emulation':
      return `${who} emulates "${program.buffers[v.code]?.name ?? 'nothing'}" at site ${site}, which is neither the old instruction nor the new one.`;
    case 'stray-breakpoint':
      return `${who} executes a breakpoint at site ${site} that nobody handles.`;
    case 'wrong-text':
      return `All is done, and site ${site} holds ${bytes(v.head, v.tail)}, which is not what was asked for.`;
    case 'left-writable':
      return `All is done, and the text of site ${site} is left writable, which it was not before.`;
  }
}
