// Which mappings of text are to be writable while functions are traced, so that probes of the kernel wait (src/agent/open-text.ts).
import { rangesBetween, readOnlyText, type OpeningText, type TextRange } from '../agent/index.js';
import { PAGE, readMaps } from '../linux/index.js';
import type { SitePages, TextRuns } from './text-runs.js';

/** The mappings in which sites begin, as far as the kernel would put probes there. `runs` are those that can be turned back. */
export function planOpening(pid: number, { all }: SitePages, runs: TextRuns): OpeningText[] {
  const byStart = new Map(runs.map((run) => [run.start, run]));
  return readOnlyText(readMaps(pid) ?? []).flatMap(({ start, end, offset, inode }) => {
    const pages = all.filter((some) => some.start < end && some.end > start);
    if (pages.length === 0 || pages[pages.length - 1].start < start) return [];
    const within = pages.map((some) => byStart.get(some.start));
    const [first, last] = [within.at(0), within.at(-1)];
    const witnesses =
      !within.includes(undefined) && first !== undefined && last !== undefined
        ? ([first.witnesses[0], last.witnesses[1]] as const)
        : undefined;
    const page = Math.max(start, pages[0].start);
    const text = { start, length: end - start, offset, inode, witnesses, page };
    return [{ ...text, gaps: gapsIn(text, pages) }];
  });
}

/**
 * What lies between pages with sites, but for a page beside each of these: taken away with its whole mapping a page would take with it what
 * the kernel joins the pieces by again (unlink_anon_vmas, mm/mremap.c).
 */
function gapsIn(text: TextRange, pages: SitePages['all']): TextRange[] {
  const wide = pages.map(({ start, end }) => ({ start: start - PAGE, end: end + PAGE }));
  return rangesBetween(text, wide);
}
