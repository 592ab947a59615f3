// The pages of text that hold sites, in runs. Where they are the file's own pages before anything is changed, taking our copies
// of them away turns every site back at once, with no thread held. What a page must look like is kept: if anybody else has
// changed it meanwhile, it is not taken away.
import type { Witness, WitnessedText } from '../agent/index.js';
import { PAGE, filePages, pageOf, readMaps } from '../linux/index.js';
import type { TargetMemory } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import type { SiteChanges } from './patch.js';

/** Longer runs are cut: a run is read whole to look for changes that are not ours. */
const MAX_RUN = 4 << 20;

/** Neighbouring pages of a file's text; the witnesses are of its first site and of its last. */
export interface TextRun extends WitnessedText {
  /** The file's bytes, and those with all of our changes made. */
  readonly pristine: Uint8Array;
  readonly changed: Uint8Array;
}

export type TextRuns = readonly TextRun[];

export const NO_TEXT_RUNS: TextRuns = [];

/** Sites by index, from one up to another, and the pages that they are on. */
export interface Stretch {
  readonly from: number;
  to: number;
  readonly start: number;
  end: number;
}

/** `whole` are those that lie in one mapping each. */
export interface SitePages {
  readonly all: readonly Stretch[];
  readonly whole: readonly Stretch[];
}

/** The fewest pages that can be turned back together: no site is on two stretches. */
function stretches({ addresses }: SiteChanges): Stretch[] {
  const found: Stretch[] = [];
  addresses.forEach((address, i) => {
    const last = found.at(-1);
    const [start, end] = [pageOf(address), endOfPage(address)];
    if (last === undefined || start >= last.end) {
      found.push({ from: i, to: i + 1, start, end });
    } else {
      last.to = i + 1;
      last.end = end;
    }
  });
  return found;
}

/**
 * The pages with sites, neighbours in one mapping together. One that lies in two
 * mappings all the same, as a site does, cannot be turned back in one go.
 */
export function pagesOfSites(pid: number, changes: SiteChanges): SitePages {
  const starts = new Set((readMaps(pid) ?? []).map(({ start }) => start));
  const joined: Stretch[] = [];
  for (const stretch of stretches(changes)) {
    const last = joined.at(-1);
    const isNear = last?.end === stretch.start && !starts.has(stretch.start);
    if (last !== undefined && isNear && last.end - last.start < MAX_RUN) {
      last.to = stretch.to;
      last.end = stretch.end;
    } else joined.push({ ...stretch });
  }
  const isWithinOne = ({ start, end }: Stretch): boolean => {
    for (let page = start + PAGE; page < end; page += PAGE) if (starts.has(page)) return false;
    return true;
  };
  return { all: joined, whole: joined.filter(isWithinOne) };
}

/** Sorts changes that are not yet made into runs of pages that are the file's; those on other pages are in none. `pages` are those of the changes. */
export function planTextRuns(
  pid: number,
  memory: TargetMemory,
  changes: SiteChanges,
  pages: SitePages,
): TextRuns {
  const { addresses, expected, wanted } = changes;
  const runs: TextRun[] = [];
  for (const { from, to, start, end } of pages.whole) {
    const length = end - start;
    const pristine = memory.readSome(start, length);
    if (pristine.length === length && filePages(pid, start, length).every(Boolean)) {
      const changed = pristine.slice();
      for (let i = from; i < to; i++) {
        const at = addresses[i] - start;
        const bytes = i * SITE_LENGTH;
        for (let k = 0; k < SITE_LENGTH; k++) {
          if (pristine[at + k] === expected[bytes + k]) changed[at + k] = wanted[bytes + k];
        }
      }
      const witnessOf = (i: number): Witness => witness(start, addresses[i] - start, pristine, changed);
      const witnesses = [witnessOf(from), witnessOf(to - 1)] as const;
      runs.push({ start, length, pristine, changed, witnesses });
    }
  }
  return runs;
}

const WORD = 4;

/** An aligned word with a byte that is changed of the site at an offset in a run. */
function witness(start: number, site: number, pristine: Uint8Array, changed: Uint8Array): Witness {
  let at = site;
  while (at < site + SITE_LENGTH - 1 && pristine[at] === changed[at]) at++;
  at -= at % WORD;
  const wordOf = (bytes: Uint8Array): number =>
    new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true);
  return { address: start + at, changed: wordOf(changed), pristine: wordOf(pristine) };
}

/** End of the page that a site at `address` ends in. */
function endOfPage(address: number): number {
  return pageOf(address + SITE_LENGTH - 1) + PAGE;
}

/** True if nobody but us has changed the run: each byte is the file's or ours. */
export function isOnlyOurs(memory: TargetMemory, { start, length, pristine, changed }: TextRun): boolean {
  const bytes = memory.readSome(start, length);
  if (bytes.length !== length) return false;
  if (Buffer.compare(bytes, changed) === 0) return true;
  return bytes.every((byte, i) => byte === changed[i] || byte === pristine[i]);
}
