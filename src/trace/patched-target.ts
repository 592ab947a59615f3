// A target with its sites changed: the way back.
import { isAgentLost, type Agent } from '../agent/index.js';
import { CannotError, isSafepokeError } from '../errors/index.js';
import { CALL_REFUSED } from '../inside/index.js';
import { processesSharing, readMaps, readThreads, type Mapping } from '../linux/index.js';
import {
  Hold,
  isCrowded,
  pause,
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
import type { Reach } from './reach.js';
import type { PlannedSite, RefusedFunction } from './site-plan.js';
import { isOnlyOurs, type TextRuns } from './text-runs.js';
import { SITE_LENGTH } from '../x86/index.js';
import { savedInstructionPointersOf, withReader } from './thread-facts.js';
import type { WayName } from './ways.js';

/** How long the end waits for threads to be out of our code, before it leaves hooks of unwinders where they are for longer than all else. */
const RETURNS_PATIENCE_MS = 200;
const RETURNS_PAUSE_MS = 2;
/** Far more than it takes until what a thread has stored is seen by all. */
const STORES_SEEN_MS = 1;

/** What detaching achieved. */
export interface DetachResult {
  /** Every site has its original bytes, hooks of unwinders apart: see `areHooksRestored`. */
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
  /** Sites in the order of their indices. */
  readonly sites: readonly PlannedSite[];
  readonly agent: Agent;
  /** Thread ids as we know them, by lane. */
  readonly lanes: ReadonlyMap<number, number>;
  /** Sites that were given up at the last moment. */
  readonly refused: readonly RefusedFunction[];
  /** Number of sites by the way in which they were changed. */
  readonly ways: Readonly<Partial<Record<WayName, number>>>;
  /** The changes that were made. */
  readonly changes: SiteChanges;
  readonly text: TextRuns;
  /** As far as a filter of the program's does not keep its thread from it. */
  readonly writeWhole: WriteWhole | undefined;
}

export class PatchedTarget {
  /** Sites in the order of their indices. */
  readonly sites: readonly PlannedSite[];
  readonly agent: Agent;
  /** Thread ids as we know them, by lane. */
  readonly lanes: ReadonlyMap<number, number>;
  /** Sites that were given up at the last moment. */
  readonly refused: readonly RefusedFunction[];
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
  /** Unwinders have their hooks: a return address is swapped, or may come to be. */
  #hasHooks = false;
  #areHooksRestored = true;
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
    this.sites = patched.sites;
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
   * elsewhere by writing, with all threads held. Our code stays mapped until `tryRemove`. While a thread stays in our code for long, hooks
   * of unwinders stay as well: they go when `tryRemove` has seen it leave, or when we are no more.
   */
  restore(): DetachResult {
    this.#stopRecording();
    this.#hasHooks = !this.#putReturnsBackFirst();
    return this.#restoreSites(!this.#hasHooks);
  }

  /** False if hooks of unwinders stay where everything else is restored, or somebody else's bytes are in their place. */
  get areHooksRestored(): boolean {
    return !this.#hasHooks && this.#areHooksRestored;
  }

  #restoreSites(withHooks: boolean): DetachResult {
    const { addresses } = this.#changes;
    const hooks = this.#hookAddresses();
    const staying = [...addresses.keys()].filter((i) => !withHooks && hooks.has(addresses[i]));
    const back = this.#changes.reversed().without(new Set(staying));
    this.#takeTextAway(withHooks);
    const result = this.#writeBack(back);
    // Probes of the kernel that have waited come with it: none may as long as a jump stands.
    if (withHooks && (result.restored || result.foreign > 0)) this.agent.shutText();
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
    const hooks = this.#hookAddresses();
    const { addresses } = this.#changes;
    return new DebuggerWatch({
      pid: this.#pid,
      memory: this.#memory,
      sites: this.sites,
      changes: this.#changes.without(new Set([...addresses.keys()].filter((i) => hooks.has(addresses[i])))),
      writeWhole: this.#writeWhole,
      standAll: this.#standAll,
    });
  }

  #hookAddresses(): Set<number> {
    return new Set(this.sites.filter(({ kind }) => kind === 'hook').map(({ address }) => address));
  }

  #stopRecording(): void {
    try {
      this.agent.enable(false);
    } catch (error) {
      // Its thread may write nothing any more; heads are in memory that we map as well.
      if (!isRefusedCall(error)) throw error;
      this.agent.switchHeads(this.sites.keys(), false);
    }
  }

  #takeTextAway(withHooks: boolean): void {
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
      agent.thread.restoreText(withHooks);
    } catch (error) {
      // It stands still, perhaps with all the others; then they are held and the sites are written.
      if (!isAgentLost(error)) throw error;
    }
  }

  /** Has sites record, or not, from now on; they are given by index. No thread is held, and each sees either state whole. */
  switch(indices: Iterable<number>, on: boolean): void {
    this.agent.switchHeads(indices, on);
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
    if (this.#hasHooks) {
      // No return address is swapped any more. The hooks themselves led into our code until now.
      const { restored, foreign } = this.#restoreSites(true);
      if (!restored && foreign === 0) return false;
      this.#areHooksRestored = restored;
      this.#hasHooks = false;
      this.#isUnused = false;
      this.#outside.clear();
      return this.tryRemove();
    }
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

  /**
   * Sees whether every thread is out of our code, and will not return into it. With the sites restored no way into it is left but
   * swapped return addresses, and these are put back.
   */
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
    this.#isUnused = this.#putReturnsBack(this.#outside);
    return this.#isUnused;
  }

  /**
   * Whoever walks a stack, for an exception above all, must find true return addresses, and the hooks see to it. So these are put back while
   * hooks are still there: recording is off, and none is swapped any more by who was not in our code already. False: a thread stays there
   * for longer, a debugger holds the threads, or one does not stop. The rest of the text can go back with nobody held, and is not to
   * wait for that.
   */
  #putReturnsBackFirst(): boolean {
    if (!this.sites.some((site) => site.kind === 'hook')) return true;
    pause(STORES_SEEN_MS);
    const done = new Set<number>();
    const until = performance.now() + RETURNS_PATIENCE_MS;
    try {
      if (!this.agent.maySwapReturns()) return true;
      for (;;) {
        if (this.agent.putReturnsBack() || this.#putReturnsBack(done)) return true;
        if (performance.now() > until) return false;
        pause(RETURNS_PAUSE_MS);
      }
    } catch (error) {
      if (!isSafepokeError(error)) throw error;
      return false;
    }
  }

  /**
   * Puts swapped return addresses back, of threads that are out of our code and will not return into it from a handler; `done` has
   * those for which that was so already. True: it is so for all. None is moved out: each leaves by itself. Threads are looked at one
   * after the other, each held for a moment (side by side where they are many), unless a return address is on a stack that its thread
   * does not own: a coroutine's perhaps, on which any thread may go on.
   */
  #putReturnsBack(done: Set<number>): boolean {
    const agentTid = this.agent.thread?.tid;
    if (this.#reach.mustStandAll || !this.agent.areReturnsOwn()) {
      const hold = this.#standAll();
      try {
        if (anyoneInside(this.#pid, hold.threads, this.#memory, this.#isOurs)) return false;
        this.agent.restoreReturnAddresses();
        return this.#reach.stillStand();
      } finally {
        hold.release();
      }
    }
    for (;;) {
      const threads = readThreads(this.#pid) ?? [];
      const left = threads.filter((tid) => tid !== agentTid && !done.has(tid));
      if (left.length === 0) return true;
      const inside = isCrowded(this.#pid)
        ? this.#putReturnsBackTogether(new Set(left))
        : this.#putReturnsBackOneByOne(left);
      for (const tid of left) if (!inside.has(tid)) done.add(tid);
      if (inside.size > 0) return false;
    }
  }

  /** Returns those that are in our code, or will return into it. */
  #putReturnsBackOneByOne(tids: readonly number[]): Set<number> {
    const maps = readMaps(this.#pid) ?? [];
    const inside = new Set<number>();
    Hold.each(this.#pid, tids, this.#times.lent, (thread) => {
      if (isInside(thread, maps, this.#memory, this.#isOurs)) inside.add(thread.tid);
      else this.agent.restoreReturnAddresses(new Set([thread.registers.get('fs_base')]));
    });
    return inside;
  }

  /**
   * The same of many threads that want a processor, with all held at once: each that is asked alone would have to wait for its turn
   * among all the others.
   */
  #putReturnsBackTogether(tids: ReadonlySet<number>): Set<number> {
    return withReader(tids.size, (reader) => {
      const maps = readMaps(this.#pid) ?? [];
      const hold = this.#standAll();
      try {
        const threads = hold.threads.filter(({ tid }) => tids.has(tid));
        const { savedInstructionPointers } = reader.look(threads, maps, this.#memory);
        const anyHandler = savedInstructionPointers.some((rip) => this.#isOurs(BigInt(rip)));
        const [inside, outside] = [new Set<number>(), new Set<bigint>()];
        for (const thread of threads) {
          const isWithin = anyHandler
            ? isInside(thread, maps, this.#memory, this.#isOurs)
            : this.#isOurs(thread.registers.get('rip'));
          if (isWithin) inside.add(thread.tid);
          else outside.add(thread.registers.get('fs_base'));
        }
        this.agent.restoreReturnAddresses(outside);
        return inside;
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
