// Debuggers that come while functions are traced. They set breakpoints within functions, also among the first five bytes, where our jump
// stands: an int3 in the middle of it, and it leads nowhere. So while a debugger is there functions have their own code. It stops
// all threads when it comes, and nobody executes anything then that is written; when it has gone all are held, and changed once more.
import { isSafepokeError } from '../errors/index.js';
import { hasEnded, readMaps, readStatus, readThreads } from '../linux/index.js';
import { Hold, type SessionTimes, type TargetMemory } from '../target/index.js';
import { Interior, leaveSites } from './changing.js';
import { PreparedChanges, appliedOnes, type SiteChanges, type WriteWhole } from './patch.js';
import type { PlannedSite } from './site-plan.js';
import { savedInstructionPointersOf } from './thread-facts.js';

/** Tracers that set no breakpoints, by their names. */
const HARMLESS: readonly (string | undefined)[] = ['strace'];
/** After a try that came to nothing: another debugger may have come. */
const PAUSE_MS = 500;

/** What there is to be given back and taken again. */
interface Traced {
  readonly pid: number;
  readonly memory: TargetMemory;
  readonly times: SessionTimes;
  /** The agent's thread, which need not be held. */
  readonly agentTid: number | undefined;
  readonly sites: readonly PlannedSite[];
  /** Those of functions; hooks stay, as return addresses may be swapped. */
  readonly changes: SiteChanges;
  readonly writeWhole: WriteWhole | undefined;
}

/** What has come of a look: a debugger's name, or that it is gone. */
export type DebuggerNews = { readonly came: string } | 'went';

export class DebuggerWatch {
  readonly #traced: Traced;
  readonly #interior: Interior;
  /** Those that a debugger has been given way in. */
  #given: SiteChanges | undefined;
  #notBefore = 0;

  constructor(traced: Traced) {
    this.#traced = traced;
    this.#interior = new Interior(traced.sites);
  }

  /** Gives way to a debugger that has come, or goes on when it has gone. */
  look(): DebuggerNews | undefined {
    const { pid } = this.#traced;
    const tracer = Number(readStatus(pid)?.get('TracerPid') ?? 0);
    if (tracer === 0) return this.#given !== undefined && this.#takeAgain() ? 'went' : undefined;
    if (this.#given !== undefined) return undefined;
    const name = readStatus(tracer)?.get('Name');
    if (HARMLESS.includes(name) || !this.#isStopped()) return undefined;
    return this.#giveWay() ? { came: name ?? `process ${tracer}` } : undefined;
  }

  /** A tracer has stopped all threads. */
  #isStopped(): boolean {
    const { pid } = this.#traced;
    return (readThreads(pid) ?? []).every(
      (tid) => hasEnded(pid, tid) || readStatus(pid, tid)?.get('State')?.startsWith('t') === true,
    );
  }

  #giveWay(): boolean {
    const { memory, changes } = this.#traced;
    const ours = appliedOnes(memory, changes);
    const others = new Set([...changes.addresses.keys()].filter((i) => !ours.has(i)));
    const given = changes.without(others);
    const prepared = PreparedChanges.of(memory, given.reversed());
    // That took a while.
    if (!this.#isStopped()) return false;
    prepared.apply();
    this.#given = given;
    return true;
  }

  #takeAgain(): boolean {
    const { pid, memory, times, agentTid, writeWhole } = this.#traced;
    const changes = this.#given;
    if (changes === undefined || performance.now() < this.#notBefore) return false;
    this.#notBefore = performance.now() + PAUSE_MS;
    let hold: Hold | undefined;
    try {
      const prepared = PreparedChanges.of(memory, changes, writeWhole);
      const maps = readMaps(pid) ?? [];
      hold = Hold.all(pid, times.held, agentTid);
      const rips = hold.threads.flatMap((thread) => savedInstructionPointersOf(thread, maps, memory));
      const busy = leaveSites(hold, this.#interior, rips);
      const addresses = new Set([...busy].map(({ address }) => address));
      const left = new Set([...changes.addresses.keys()].filter((i) => addresses.has(changes.addresses[i])));
      prepared.without(left).apply();
      const done = new Set([...changes.addresses.keys()].filter((i) => !left.has(i)));
      this.#given = left.size === 0 ? undefined : changes.without(done);
      return left.size === 0;
    } catch (error) {
      if (!isSafepokeError(error)) throw error;
      return false;
    } finally {
      hold?.release();
    }
  }
}
