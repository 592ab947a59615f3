// Which mappings of text are to be writable while functions are traced, so that probes of the kernel wait (src/agent/open-text.ts).
import { rangesBetween, readOnlyText, type OpeningText } from '../agent/index.js';
import { readMaps } from '../linux/index.js';
import type { SiteChanges } from './patch.js';
import { pagesOfSites, type TextRuns } from './text-runs.js';

/** The mappings in which sites lie, as far as the kernel would put probes there. `runs` are those that can be turned back. */
export function planOpening(
  pid: number,
  changes: SiteChanges,
  hooks: ReadonlySet<number>,
  runs: TextRuns,
): OpeningText[] {
  const all = pagesOfSites(changes, hooks);
  const byStart = new Map(runs.map((run) => [run.start, run]));
  return readOnlyText(readMaps(pid) ?? []).flatMap(({ start, end, offset, inode }) => {
    const pages = all.filter((some) => some.start < end && some.end > start);
    if (pages.length === 0) return [];
    const within = pages.map((some) => byStart.get(some.start));
    const [first, last] = [within.at(0), within.at(-1)];
    const isWhole =
      !within.includes(undefined) && pages[0].start >= start && pages[pages.length - 1].end <= end;
    const witnesses =
      isWhole && first !== undefined && last !== undefined
        ? ([first.witnesses[0], last.witnesses[1]] as const)
        : undefined;
    return [
      {
        start,
        length: end - start,
        offset,
        inode,
        witnesses,
        page: Math.max(start, pages[0].start),
        gaps: rangesBetween({ start, length: end - start }, pages),
      },
    ];
  });
}
