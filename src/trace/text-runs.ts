// The pages of text that hold sites, in runs. Where they are the file's own pages before anything is changed, taking our copies
// of them away turns every site back at once, with no thread held. What a page must look like is kept: if anybody else has
// changed it meanwhile, it is not taken away.
import { filePages } from '../linux/index.js';
import type { TargetMemory } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import type { SiteChange } from './patch.js';

const PAGE = 4096;
/** Longer runs are cut: a run is read whole to look for changes that are not ours. */
const MAX_RUN = 4 << 20;

/** Neighbouring pages of a file's text. */
export interface TextRun {
  readonly start: number;
  readonly length: number;
  /** The file's bytes. */
  readonly pristine: Uint8Array;
  /** The changes that lie in it. */
  readonly changes: readonly SiteChange[];
}

/** Runs that may be taken away, and the changes that lie elsewhere. */
export interface TextRuns {
  readonly runs: readonly TextRun[];
  readonly others: readonly SiteChange[];
}

/** Sorts changes, ascending in address and not yet made, into runs of pages that are the file's. */
export function planTextRuns(pid: number, memory: TargetMemory, changes: readonly SiteChange[]): TextRuns {
  const runs: TextRun[] = [];
  const others: SiteChange[] = [];
  for (let from = 0; from < changes.length;) {
    const start = pageOf(changes[from].address);
    let end = pageOf(changes[from].address + SITE_LENGTH - 1) + PAGE;
    let to = from + 1;
    while (to < changes.length && pageOf(changes[to].address) <= end && end - start < MAX_RUN) {
      end = pageOf(changes[to].address + SITE_LENGTH - 1) + PAGE;
      to++;
    }
    const own = changes.slice(from, to);
    from = to;
    const pristine = memory.readSome(start, end - start);
    const isFile = filePages(pid, start, end - start).every(Boolean);
    if (isFile && pristine.length === end - start)
      runs.push({ start, length: end - start, pristine, changes: own });
    else others.push(...own);
  }
  return { runs, others };
}

function pageOf(address: number): number {
  return address - (address % PAGE);
}

/** True if nobody but us has changed the run: it has our changes, all or some of them, and else the file's bytes. */
export function isOnlyOurs(memory: TargetMemory, run: TextRun): boolean {
  const bytes = memory.readSome(run.start, run.length);
  if (bytes.length !== run.length) return false;
  for (const { address, expected, wanted } of run.changes) {
    const at = address - run.start;
    const site = Buffer.from(bytes.buffer, bytes.byteOffset + at, SITE_LENGTH);
    if (!site.equals(wanted) && !site.equals(expected)) return false;
    bytes.set(expected, at);
  }
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).equals(run.pristine);
}
