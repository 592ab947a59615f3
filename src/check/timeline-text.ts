import { plain as plainText } from '../text/index.js';
import type { SiteText, Timeline, TimelineRow } from './timeline.js';

/** Colours, or nothing at all: each function returns its argument made up. */
export interface Style {
  readonly bold: (text: string) => string;
  readonly dim: (text: string) => string;
  readonly red: (text: string) => string;
  readonly yellow: (text: string) => string;
}

export const plainStyle: Style = {
  bold: (text) => text,
  dim: (text) => text,
  red: (text) => text,
  yellow: (text) => text,
};

const MIN_COLUMN = 14;
const GAP = '  ';
const STEP_WIDTH = 4;

/** A piece of text and how wide it is without its colours. */
interface Cell {
  readonly text: string;
  readonly width: number;
}

/**
 * The timeline as lines of text, `columns` wide where that can be done: contexts are folded at spaces, bytes never.
 */
export function renderTimeline(given: Timeline, style: Style, columns: number): string[] {
  const timeline = escaped(given);
  const lines = [style.bold(timeline.heading), ''];
  const textWidth = Math.max(...timeline.initialText.map((t, i) => siteWidth(timeline.sites[i], t)));
  const fixed = STEP_WIDTH + GAP.length + textWidth + GAP.length;
  const natural = timeline.columns.map((title, i) =>
    timeline.rows
      .flatMap((r) => r.cells[i])
      .reduce((widest, line) => Math.max(widest, line.length), title.length),
  );
  const widths = shrink(natural, columns - fixed - GAP.length * (timeline.columns.length - 1));
  const row = (step: string, cells: readonly Cell[], text: Cell): string =>
    [step.padStart(STEP_WIDTH), ...cells.map((c, i) => pad(c, widths[i])), text.text].join(GAP).trimEnd();
  lines.push(
    style.bold(
      row(
        'step',
        timeline.columns.map((title) => plain(title.slice(0, Math.max(title.length, 1)))),
        plain('text'),
      ),
    ),
  );
  timeline.initialText.forEach((t, i) => {
    lines.push(
      row(
        i === 0 ? '0' : '',
        timeline.columns.map(() => plain('')),
        siteCell(timeline.sites[i], t, style),
      ),
    );
  });
  for (const r of timeline.rows) lines.push(...renderRow(r));
  lines.push('', ...timeline.conclusion.map((c) => style.red(c)));
  return lines;

  function renderRow(r: TimelineRow): string[] {
    const made: string[] = [];
    if (r.repeatsFrom) made.push(style.yellow(`${' '.repeat(STEP_WIDTH)}${GAP}-- from here on, for ever --`));
    const cells = r.cells.map((cell, i) => cell.flatMap((line) => fold(line, widths[i])));
    const right: Cell[] = r.text.flatMap((t, i) =>
      t.changed.some(Boolean) ? [siteCell(timeline.sites[i], t, style)] : [],
    );
    for (const b of r.buffers) right.push({ text: style.dim(b), width: b.length });
    const height = Math.max(right.length, 1, ...cells.map((c) => c.length));
    for (let h = 0; h < height; h++) {
      const marked = r.breaks ? style.red : (text: string) => text;
      const line = row(
        h === 0 ? `${r.step}` : '',
        cells.map((c) => ({ text: marked(c[h] ?? ''), width: (c[h] ?? '').length })),
        right[h] ?? plain(''),
      );
      made.push(
        h === 0 && r.breaks
          ? line.replace(`${r.step}`.padStart(STEP_WIDTH), style.red(`>${r.step}`.padStart(STEP_WIDTH)))
          : line,
      );
    }
    return made;
  }
}

/** Names in it may be others' to choose. */
function escaped(timeline: Timeline): Timeline {
  return {
    ...timeline,
    heading: plainText(timeline.heading),
    columns: timeline.columns.map((title) => plainText(title)),
    sites: timeline.sites.map((name) => plainText(name)),
    conclusion: timeline.conclusion.map((line) => plainText(line)),
    rows: timeline.rows.map((row) => ({
      ...row,
      cells: row.cells.map((cell) => cell.map((line) => plainText(line))),
      buffers: row.buffers.map((line) => plainText(line)),
    })),
  };
}

function plain(text: string): Cell {
  return { text, width: text.length };
}

function pad(cell: Cell, width: number): string {
  return cell.text + ' '.repeat(Math.max(0, width - cell.width));
}

function siteWidth(name: string, text: SiteText): number {
  return name.length + 2 + text.bytes.length * 3;
}

function siteCell(name: string, text: SiteText, style: Style): Cell {
  const bytes = text.bytes.map((b, i) => (text.changed[i] ? style.yellow(b) : b)).join(' ');
  return { text: `${name}: ${bytes}`, width: siteWidth(name, text) };
}

/** Takes width from the widest columns until all fit, but leaves each readable. */
function shrink(natural: readonly number[], room: number): number[] {
  const widths = [...natural];
  for (let total = widths.reduce((a, b) => a + b, 0); total > room; total--) {
    const widest = widths.indexOf(Math.max(...widths));
    if (widths[widest] <= MIN_COLUMN) break;
    widths[widest]--;
  }
  return widths;
}

function fold(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = `  ${word}`;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  if (line !== '') lines.push(line);
  return lines;
}
