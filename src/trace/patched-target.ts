// A target with its sites changed: the way back.
import { isAgentLost, type Agent } from '../agent/index.js';
import { CannotError, isSafepokeError } from '../errors/index.js';
import { CALL_REFUSED } from '../inside/index.js';
import { processesSharing, readMaps, readThreads, type Mapping } from '../linux/index.js';
import {
  Hold,
  isCrowded,
  type HeldThread,
  type SessionTimes,
  type Standstill,
  type TargetMemory,
} from '../target/index.js';
import { DebuggerWatch, type DebuggerNews } from './debuggers.js';
import { KernelBreakpoints } from './kernel-breakpoints.js';
import {
  PreparedChanges,
  appliedOnes,
  areApplied,
  isUnderBreakpoint,
  restoreUnderBreakpoint,
  type SiteChanges,
  type WriteWhole,
} from './patch.js';
import { KIND_BITS, KIND_LEAF } from '../recording/index.js';
import type { Reach } from './reach.js';
import type { PlannedFunction, PlannedSite, RefusedFunction } from './site-plan.js';
import { isOnlyOurs, type TextRuns } from './text-runs.js';
import { SITE_LENGTH } from '../x86/index.js';
import { savedInstructionPointersOf, withReader } from './thread-facts.js';
import type { WayName } from './ways.js';

/** What detaching achieved. */
export interface DetachResult {
  /** Every site has its original bytes. */
  readonly restored: boolean;
  /** Sites in which somebody else's bytes stood, which were left alone. */
  readonly foreign: number;
  /** Those of them on which a breakpoint stands: they are themselves again when it goes. */
  readonly breakpoints: number;
}

/** Why our code has to stay in a target: see `STAYS_SINCE`. */
type Stay = 'inside' | 'shared' | 'still';

/** The same for people. */
export const STAYS_SINCE: Readonly<Record<Stay, string>> = {
  inside: 'a thread is in safepoke’s code, or will return into it from a signal handler',
  shared: 'another process shares the memory, cannot be held, and may be in safepoke’s code',
  still: 'safepoke’s thread in the process does not answer: a debugger or job control has stopped it',
};

/** What was put into a target. */
interface Patched {
  /** Functions in the order of their indices. */
  readonly functions: readonly PlannedFunction[];
  /** Sites in the order of their indices. */
  readonly sites: readonly PlannedSite[];
  readonly agent: Agent;
  /** Thread ids as we know them, by lane. */
  readonly lanes: ReadonlyMap<number, number>;
  /** Functions that were given up at the last moment. */
  readonly refused: readonly RefusedFunction[];
  /** Functions that are traced by their entries only. */
  readonly withoutExits: ReadonlySet<PlannedFunction>;
  /** Number of sites by the way in which they were changed. */
  readonly ways: Readonly<Partial<Record<WayName, number>>>;
  /** The changes that were made. */
  readonly changes: SiteChanges;
  readonly text: TextRuns;
  /** As far as a filter of the program's does not keep its thread from it. */
  readonly writeWhole: WriteWhole | undefined;
}

export class PatchedTarget {
  /** Functions in the order of their indices. */
  readonly functions: readonly PlannedFunction[];
  /** Sites in the order of their indices. */
  readonly sites: readonly PlannedSite[];
  readonly agent: Agent;
  /** Thread ids as we know them, by lane. */
  readonly lanes: ReadonlyMap<number, number>;
  /** Functions that were given up at the last moment. */
  readonly refused: readonly RefusedFunction[];
  /** Functions that are traced by their entries only. */
  readonly withoutExits: ReadonlySet<PlannedFunction>;
  /** Number of sites by the way in which they were changed. */
  readonly ways: Readonly<Partial<Record<WayName, number>>>;
  readonly #pid: number;
  readonly #memory: TargetMemory;
  readonly #times: SessionTimes;
  readonly #reach: Reach;
  readonly #changes: SiteChanges;
  readonly #text: TextRuns;
  readonly #writeWhole: WriteWhole | undefined;
  #breakpoints: KernelBreakpoints | undefined;
  #debuggers: DebuggerWatch | undefined;
  /** No thread is in our code, and none will return into it. */
  #isUnused = false;
  /** Threads that were seen outside of our code, after the sites had been restored. */
  readonly #outside = new Set<number>();
  /** Processes that share the target's memory, as far as they were there when the sites had been restored. */
  #sharing: number[] | undefined;
  #isRemoved = false;
  #stay: Stay = 'inside';
  /** An address in code of ours. */
  readonly #isOurs = (rip: bigint): boolean => this.agent.ownsCode(rip);
  readonly #isOurAddress = (address: number): boolean => this.#isOurs(BigInt(address));
  /** All threads but the agent's. */
  readonly #standAll = (): Standstill => this.#reach.standAll(this.#times.held, this.agent.thread?.tid);

  constructor(pid: number, memory: TargetMemory, times: SessionTimes, reach: Reach, patched: Patched) {
    this.#pid = pid;
    this.#memory = memory;
    this.#times = times;
    this.#reach = reach;
    this.functions = patched.functions;
    this.sites = patched.sites;
    this.withoutExits = patched.withoutExits;
    this.agent = patched.agent;
    this.lanes = patched.lanes;
    this.refused = patched.refused;
    this.ways = patched.ways;
    this.#changes = patched.changes;
    this.#text = patched.text;
    this.#writeWhole = patched.writeWhole;
  }

  /**
   * Turns every site back: where the text pages are the file's, by taking our copies of them away, with no thread held;
   * elsewhere by writing, with all threads held. Our code stays mapped until `tryRemove`.
   */
  restore(): DetachResult {
    this.#stopRecording();
    const back = this.#changes.reversed();
    this.#takeTextAway();
    const result = this.#writeBack(back);
    // Probes of the kernel that have waited come with it: none may as long as a jump stands.
    if (result.restored || result.foreign > 0) this.agent.shutText();
    return result;
  }

  /** What could not be taken away with its page is written, with all threads held. */
  #writeBack(back: SiteChanges): DetachResult {
    const undone = back.without(appliedOnes(this.#memory, back));
    if (undone.length === 0) return { restored: true, foreign: 0, breakpoints: 0 };
    const prepared = PreparedChanges.of(this.#memory, undone);
    const hold = this.#standAll();
    try {
      const foreign = [...prepared.apply()];
      const breakpoints = foreign.filter((i) =>
        this.#standsBreakpoint(undone.addresses[i], undone.wantedOf(i)),
      );
      return {
        restored: areApplied(this.#memory, back),
        foreign: foreign.length,
        breakpoints: breakpoints.length,
      };
    } finally {
      hold.release();
    }
  }

  /** A breakpoint stands on a function, which has its own code below it from now on, if it has not already. */
  #standsBreakpoint(address: number, original: Uint8Array): boolean {
    return (
      restoreUnderBreakpoint(this.#memory, address, original, this.#isOurAddress) ||
      isUnderBreakpoint(this.#memory.readSome(address, SITE_LENGTH), original)
    );
  }

  /** To be called again and again while sites are changed. Returns how many functions a breakpoint of the kernel has been given by it. */
  giveWayToBreakpoints(): number {
    if (this.#reach.mustStandAll) return 0;
    this.#breakpoints ??= new KernelBreakpoints(
      this.#memory,
      this.#changes,
      this.#standAll,
      this.#isOurAddress,
    );
    return this.#breakpoints.giveWay();
  }

  /** To be called again and again while sites are changed: while a debugger is there functions have their own code. */
  lookForDebuggers(): DebuggerNews | undefined {
    if (this.#reach.mustStandAll) return undefined;
    this.#debuggers ??= this.#watchDebuggers();
    return this.#debuggers.look();
  }

  #watchDebuggers(): DebuggerWatch {
    return new DebuggerWatch({
      pid: this.#pid,
      memory: this.#memory,
      sites: this.sites,
      changes: this.#changes,
      writeWhole: this.#writeWhole,
      standAll: this.#standAll,
    });
  }

  #stopRecording(): void {
    try {
      this.agent.enable(false);
    } catch (error) {
      // Its thread may write nothing any more; stubs are in memory that we map as well.
      if (!isRefusedCall(error)) throw error;
      this.agent.switchEntries(this.sites.keys(), false);
    }
  }

  #takeTextAway(): void {
    const { agent } = this;
    if (agent.thread === undefined || this.#text.length === 0) return;
    try {
      const ours = this.#text.filter((run) => isOnlyOurs(this.#memory, run));
      // Should we be killed while it is written, nothing is turned back.
      if (ours.length < this.#text.length) {
        agent.writeTextRuns(ours);
        agent.leaveTextOpen();
      }
    } catch (error) {
      // Nobody can look any more, nor write: the runs that its thread knows go as if we had died.
      if (!isRefusedCall(error)) throw error;
    }
    try {
      agent.thread.restoreText();
    } catch (error) {
      // It stands still, perhaps with all the others; then they are held and the sites are written.
      if (!isAgentLost(error)) throw error;
    }
  }

  /** Has sites record beginnings of calls, or not, from now on; they are given by index. No thread is held, and each sees either state whole. */
  switch(indices: Iterable<number>, on: boolean): void {
    this.agent.switchEntries(indices, on);
  }

  /** What each cell records, as `CodeRegion.cells` has it: of functions without exits, whatever was planned, beginnings only. */
  get cells(): Uint32Array {
    const { cells } = this.agent;
    this.sites.forEach(({ owner, isEntry }, i) => {
      const cell = isEntry && this.withoutExits.has(owner) ? this.agent.entryCell(i) : undefined;
      if (cell !== undefined) cells[cell] = ((owner.index << KIND_BITS) | KIND_LEAF) >>> 0;
    });
    return cells;
  }

  /** Number of functions that are traced by their entry only. */
  get entryOnly(): number {
    const refused = new Set(this.refused.map((r) => r.function));
    return [...this.withoutExits].filter((f) => !refused.has(f.function)).length;
  }

  /** True once the agent's memory is gone from the target. */
  get isRemoved(): boolean {
    return this.#isRemoved;
  }

  /** Why the last `tryRemove` did not. */
  get stay(): Stay {
    return this.#stay;
  }

  /**
   * Unmaps the agent, unless a thread is in our code or will return into it: call again later then. The sites have been
   * restored and the rings have been emptied.
   */
  tryRemove(): boolean {
    if (this.#isRemoved) return true;
    this.#stay = 'inside';
    if (!this.#isUnused && !this.#tryLeaveCode()) return false;
    this.#stay = 'still';
    // Nobody can get into our code any more. One thread unmaps it, quickly, as there is little left to free.
    if (!this.agent.dismissThread()) return false;
    this.agent.releaseShared();
    const isGone = this.#reach.withCalls(
      this.#times,
      this.agent.thread?.tid,
      (calls) => !this.agent.isPresent() || this.agent.remove(calls),
    );
    if (!isGone) {
      throw new CannotError(CALL_REFUSED, {
        tried: `take safepoke’s code out of process ${this.#pid}`,
        why: 'it may not unmap memory',
        next: 'let its seccomp filter allow munmap: the code stays, unused',
      });
    }
    this.#isRemoved = true;
    return true;
  }

  /** Sees whether every thread is out of our code, and will not return into it. With the sites restored no way into it is left. */
  #tryLeaveCode(): boolean {
    // Such processes are not held. Those that come from now on do not get into our code.
    this.#sharing ??= processesSharing(this.#pid);
    if (this.#sharing.length > 0) {
      const still = new Set(processesSharing(this.#pid));
      this.#sharing = this.#sharing.filter((other) => still.has(other));
      this.#stay = 'shared';
      if (this.#sharing.length > 0) return false;
      this.#stay = 'inside';
    }
    this.#isUnused = this.#areAllOutside();
    return this.#isUnused;
  }

  /**
   * True if all threads are out of our code and will not return into it from a handler. None is moved out: each leaves by itself. They are
   * looked at one after the other, each held for a moment; together where they are many.
   */
  #areAllOutside(): boolean {
    const agentTid = this.agent.thread?.tid;
    if (this.#reach.mustStandAll) {
      const hold = this.#standAll();
      try {
        if (anyoneInside(this.#pid, hold.threads, this.#memory, this.#isOurs)) return false;
        return this.#reach.stillStand();
      } finally {
        hold.release();
      }
    }
    for (;;) {
      const threads = readThreads(this.#pid) ?? [];
      const left = threads.filter((tid) => tid !== agentTid && !this.#outside.has(tid));
      if (left.length === 0) return true;
      const inside = isCrowded(this.#pid) ? this.#insideOfAll(new Set(left)) : this.#insideOfEach(left);
      for (const tid of left) if (!inside.has(tid)) this.#outside.add(tid);
      if (inside.size > 0) return false;
    }
  }

  /** Those that are in our code, or will return into it. */
  #insideOfEach(tids: readonly number[]): Set<number> {
    const maps = readMaps(this.#pid) ?? [];
    const inside = new Set<number>();
    Hold.each(this.#pid, tids, this.#times.lent, (thread) => {
      if (isInside(thread, maps, this.#memory, this.#isOurs)) inside.add(thread.tid);
    });
    return inside;
  }

  /**
   * The same of many threads that want a processor, with all held at once: each that is asked alone would have to wait for its turn
   * among all the others.
   */
  #insideOfAll(tids: ReadonlySet<number>): Set<number> {
    return withReader(tids.size, (reader) => {
      const maps = readMaps(this.#pid) ?? [];
      const hold = this.#standAll();
      try {
        const threads = hold.threads.filter(({ tid }) => tids.has(tid));
        const { savedInstructionPointers } = reader.look(threads, maps, this.#memory);
        const anyHandler = savedInstructionPointers.some((rip) => this.#isOurs(BigInt(rip)));
        const isWithin = (thread: HeldThread): boolean =>
          anyHandler
            ? isInside(thread, maps, this.#memory, this.#isOurs)
            : this.#isOurs(thread.registers.get('rip'));
        return new Set(threads.filter(isWithin).map(({ tid }) => tid));
      } finally {
        hold.release();
      }
    });
  }
}

/** True if a filter of the program's keeps its own thread from doing what we want. */
function isRefusedCall(error: unknown): boolean {
  return isSafepokeError(error) && error.code === CALL_REFUSED;
}

function isInside(
  thread: HeldThread,
  maps: readonly Mapping[],
  memory: TargetMemory,
  isOurs: (rip: bigint) => boolean,
): boolean {
  return (
    isOurs(thread.registers.get('rip')) ||
    savedInstructionPointersOf(thread, maps, memory).some((rip) => isOurs(BigInt(rip)))
  );
}

/** True if a held thread executes code of ours, or will return into it from a signal handler. */
export function anyoneInside(
  pid: number,
  threads: readonly HeldThread[],
  memory: TargetMemory,
  isOurs: (rip: bigint) => boolean,
): boolean {
  const maps = readMaps(pid) ?? [];
  return threads.some((thread) => isInside(thread, maps, memory, isOurs));
}
