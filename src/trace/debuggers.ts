// Debuggers that come while functions are traced. They set breakpoints within functions, also among the first five bytes, where our jump
// stands: an int3 in the middle of it, and it leads nowhere. So while a debugger is there functions have their own code. It stops
// all threads when it comes, and nobody executes anything then that is written; when it has gone all are held, and changed once more.
import { isSafepokeError } from '../errors/index.js';
import { readMaps, readStatus, readThreads } from '../linux/index.js';
import type { Standstill, TargetMemory } from '../target/index.js';
import { Interior, leaveSites } from './changing.js';
import { PreparedChanges, appliedOnes, type SiteChanges, type WriteWhole } from './patch.js';
import type { PlannedSite } from './site-plan.js';
import { withReader } from './thread-facts.js';

/** Tracers that set no breakpoints, by their names. */
const HARMLESS: readonly (string | undefined)[] = ['strace'];
/** After a try that came to nothing: another debugger may have come. */
const PAUSE_MS = 500;
/** Sites that are given back before it is looked once more whether all threads still stand. */
const GIVEN_AT_ONCE = 64;

/** What there is to be given back and taken again. */
interface Traced {
  readonly pid: number;
  readonly memory: TargetMemory;
  readonly sites: readonly PlannedSite[];
  readonly changes: SiteChanges;
  readonly writeWhole: WriteWhole | undefined;
  readonly standAll: () => Standstill;
}

/** What has come of a look: a debugger's name, or that it is gone. */
export type DebuggerNews = { readonly came: string } | 'went';

export class DebuggerWatch {
  readonly #traced: Traced;
  readonly #interior: Interior;
  /** Indices of those that a debugger has been given way in, and whether there are no others. */
  readonly #given = new Set<number>();
  #isAllGiven = false;
  #notBefore = 0;

  constructor(traced: Traced) {
    this.#traced = traced;
    this.#interior = new Interior(traced.sites);
  }

  /** Gives way to a debugger that has come, or goes on when it has gone. */
  look(): DebuggerNews | undefined {
    const { pid } = this.#traced;
    const tracer = Number(readStatus(pid)?.get('TracerPid') ?? 0);
    if (tracer === 0) return this.#given.size > 0 && this.#takeAgain() ? 'went' : undefined;
    if (this.#isAllGiven) return undefined;
    const name = readStatus(tracer)?.get('Name');
    if (HARMLESS.includes(name)) return undefined;
    const isNews = this.#given.size === 0;
    return this.#giveWay() && isNews ? { came: name ?? `process ${tracer}` } : undefined;
  }

  /** A tracer has stopped all threads. */
  #isStopped(): boolean {
    const { pid } = this.#traced;
    // Those that have ended may be listed still.
    return (readThreads(pid) ?? []).every((tid) => /^[tZX]/.test(readStatus(pid, tid)?.get('State') ?? 'X'));
  }

  /** Site by site, as the debugger may write near them: nothing but our jumps is written over. True if there was any. */
  #giveWay(): boolean {
    const { memory, changes } = this.#traced;
    if (!this.#isStopped()) return this.#given.size > 0;
    const ours = [...appliedOnes(memory, changes)];
    for (let at = 0; at < ours.length; at += GIVEN_AT_ONCE) {
      if (!this.#isStopped()) return this.#given.size > 0;
      for (const i of ours.slice(at, at + GIVEN_AT_ONCE)) {
        memory.write(changes.addresses[i], changes.expectedOf(i));
        this.#given.add(i);
      }
    }
    this.#isAllGiven = this.#given.size > 0;
    return this.#isAllGiven;
  }

  /** True if all are traced again. */
  #takeAgain(): boolean {
    const { pid, memory, changes: all, writeWhole, standAll } = this.#traced;
    this.#isAllGiven = false;
    if (performance.now() < this.#notBefore) return false;
    this.#notBefore = performance.now() + PAUSE_MS;
    return withReader((readThreads(pid) ?? []).length, (reader) => {
      let hold: Standstill | undefined;
      try {
        const changes = all.only(this.#given);
        const prepared = PreparedChanges.of(memory, changes, writeWhole);
        const maps = readMaps(pid) ?? [];
        hold = standAll();
        const { savedInstructionPointers } = reader.look(hold.threads, maps, memory);
        const sites = leaveSites(hold, this.#interior, savedInstructionPointers);
        const busy = new Set([...sites].map(({ address }) => address));
        const left = new Set([...changes.addresses.keys()].filter((i) => busy.has(changes.addresses[i])));
        prepared.without(left).apply();
        for (const i of this.#given) if (!busy.has(all.addresses[i])) this.#given.delete(i);
        return this.#given.size === 0;
      } catch (error) {
        if (!isSafepokeError(error)) throw error;
        return false;
      } finally {
        hold?.release();
      }
    });
  }
}
