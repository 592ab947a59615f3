import type { StressResult } from './stress.js';

interface Column {
  readonly title: string;
  readonly unit: string;
  readonly width: number;
  readonly cell: (result: StressResult) => string;
}

const NAME_WIDTH = 36;
const NONE = '-';

const count = (n: number | undefined): string => (n === undefined ? NONE : n.toLocaleString('en'));
const microseconds = (ns: number): string => (ns / 1e3).toFixed(1);
const milliseconds = (ns: number | undefined): string => (ns === undefined ? NONE : (ns / 1e6).toFixed(2));
const ifChanged = (r: StressResult, text: string): string => (r.modifications === 0 ? NONE : text);

const columns: readonly Column[] = [
  { title: 'changes', unit: '', width: 11, cell: (r) => count(r.modifications) },
  { title: 'mean', unit: 'us', width: 9, cell: (r) => ifChanged(r, microseconds(r.meanNs)) },
  { title: 'longest', unit: 'ms', width: 9, cell: (r) => ifChanged(r, milliseconds(r.longestNs)) },
  { title: 'waits', unit: '', width: 12, cell: (r) => count(r.waits) },
  { title: 'longest', unit: 'ms', width: 9, cell: (r) => milliseconds(r.longestWaitNs) },
  { title: 'helped', unit: '', width: 10, cell: (r) => count(r.helped) },
  { title: 'traps', unit: '', width: 12, cell: (r) => count(r.traps) },
  { title: 'delay', unit: 'ms', width: 9, cell: (r) => milliseconds(r.longestPassNs) },
  { title: 'calls', unit: '', width: 15, cell: (r) => count(r.calls) },
  { title: 'wrong', unit: '', width: 10, cell: (r) => count(r.wrong + r.refused) },
  { title: 'crashes', unit: '', width: 9, cell: (r) => count(crashCount(r)) },
  { title: 'stuck', unit: '', width: 7, cell: (r) => count(r.stuck) },
];

/** Processes that a signal ended. */
export function crashCount({ crashes }: StressResult): number {
  return Object.values(crashes).reduce((all, n) => all + n, 0);
}

/** True if something was seen that a change of code must never do. */
export function isBroken(result: StressResult): boolean {
  return result.wrong + result.refused + crashCount(result) + result.stuck > 0;
}

/** The table's heading, two lines. */
export function tableHeading(): readonly string[] {
  const line = (text: (column: Column) => string, left: string): string =>
    left.padEnd(NAME_WIDTH) + columns.map((c) => text(c).padStart(c.width)).join('');
  return [`${line((c) => c.title, '')}  checker`, line((c) => c.unit, '').trimEnd()];
}

/** One line; `mark` makes up what was broken. */
export function tableRow(result: StressResult, mark: (text: string) => string): string {
  const name = result.without.length === 0 ? result.name : `  without ${result.without.join(', ')}`;
  const cells = columns.map((c) => c.cell(result).padStart(c.width)).join('');
  const text = name.padEnd(NAME_WIDTH) + cells;
  return `${isBroken(result) ? mark(text) : text}  ${result.verdict ?? NONE}`;
}
