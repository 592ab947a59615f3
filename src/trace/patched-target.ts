// A target with its sites changed: the part of a session that touches the process.
import { AGENT_CALLS, Agent, HEAD_SIZE, type AgentOptions, type Cluster } from '../agent/index.js';
import { CannotError, isSafepokeError } from '../errors/index.js';
import { CALL_REFUSED, type InsideProcess } from '../inside/index.js';
import {
  SYS,
  processesSharing,
  readMaps,
  readStatus,
  readThreads,
  type Mapping,
  type Registers,
} from '../linux/index.js';
import {
  Hold,
  RemoteCalls,
  checkSeccomp,
  borrowCode,
  awaitUnshared,
  refuseShared,
  type HeldThread,
  type HoldTimes,
  type Standstill,
  type TargetMemory,
} from '../target/index.js';
import {
  PAGE,
  PreparedChanges,
  SiteChanges,
  appliedOnes,
  areApplied,
  pageOf,
  putJump,
  restoreUnderBreakpoint,
} from './patch.js';
import { anyThread, fromInside, fromOutside, type Reach } from './reach.js';
import type { PlannedSite, RefusedFunction, SessionRefusalReason } from './site-plan.js';
import { NO_TEXT_RUNS, isOnlyOurs, planTextRuns, type TextRuns } from './text-runs.js';
import { findSavedInstructionPointers, findTidOffset, knownThreads } from './thread-facts.js';
import type { Module } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { HeldWay, PageFlip, type Way, type WayName } from './ways.js';

/** Clusters of modules are kept small enough that every stub reaches every site. */
const MAX_CLUSTER = 1 << 30;

/** What to put into a target. */
export interface PatchRequest {
  readonly pid: number;
  readonly modules: readonly Module[];
  /** Functions to trace, then hooks; the index of a function in records is its position after `arrange`. */
  readonly sites: readonly PlannedSite[];
  readonly agent: Omit<AgentOptions, 'tidOffset' | 'withThread'>;
  readonly memory: TargetMemory;
  readonly times: HoldTimes;
  /** Its seccomp filters must be asked before it makes system calls for us. */
  readonly seccompFilter: boolean;
  /** The only way in which sites may be changed; undefined: whichever is best. */
  readonly way: WayName | undefined;
  /** A thread that we hold already, of a program that has not run; it is let go when all is done. */
  readonly adopted: Hold | undefined;
  /** The program has our object loaded with it, and there is no ptrace. It waits to begin unless `hasBegun`. */
  readonly inside: { readonly process: InsideProcess; readonly hasBegun: boolean } | undefined;
}

/** Sites in the order of their addresses, in clusters. */
function arrange(sites: readonly PlannedSite[]): PlannedSite[][] {
  const sorted = [...sites].sort((a, b) => a.address - b.address);
  const clusters: PlannedSite[][] = [];
  for (const site of sorted) {
    const current = clusters.at(-1);
    if (current === undefined || site.address - current[0].address > MAX_CLUSTER) clusters.push([site]);
    else current.push(site);
  }
  return clusters;
}

/** What detaching achieved. */
export interface DetachResult {
  /** Every site has its original bytes. */
  readonly restored: boolean;
  /** Sites in which somebody else's bytes stood, which were left alone. */
  readonly foreign: number;
  /** Those of them on which a breakpoint stands: they are themselves again when it goes. */
  readonly breakpoints: number;
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
  readonly #times: HoldTimes;
  readonly #reach: Reach;
  readonly #changes: SiteChanges;
  readonly #text: TextRuns;
  /** No thread is in our code, and none will return into it. */
  #isUnused = false;
  /** Threads that were seen outside of our code, after the sites had been restored. */
  readonly #outside = new Set<number>();
  /** Processes that share the target's memory, as far as they were there when the sites had been restored. */
  #sharing: number[] | undefined;
  #isRemoved = false;

  private constructor(
    request: PatchRequest,
    sites: readonly PlannedSite[],
    agent: Agent,
    lanes: ReadonlyMap<number, number>,
    refused: readonly RefusedFunction[],
    changes: SiteChanges,
    text: TextRuns,
    ways: Readonly<Partial<Record<WayName, number>>>,
  ) {
    this.ways = ways;
    this.#text = text;
    this.#pid = request.pid;
    this.#memory = request.memory;
    this.#times = request.times;
    this.#reach =
      request.inside === undefined
        ? fromOutside(request.pid, request.memory)
        : fromInside(request.inside.process);
    this.sites = sites;
    this.agent = agent;
    this.lanes = lanes;
    this.refused = refused;
    this.#changes = changes;
  }

  /**
   * Maps the agent with one thread held, emits all code with none held, and changes the sites: with all held, or with none where
   * every site can be changed so.
   *
   * @throws CannotError; the target is as before then
   */
  static patch(request: PatchRequest): PatchedTarget {
    const { pid, memory, times, adopted } = request;
    const clustered = arrange(request.sites);
    const sites = clustered.flat();
    let first = 0;
    const clusters: Cluster[] = clustered.map((members) => {
      const cluster = {
        low: members[0].address,
        high: members[members.length - 1].address,
        firstIndex: first,
        sites: members.map((site) => site.stub),
      };
      first += members.length;
      return cluster;
    });
    if (request.inside !== undefined) return patchInside(request, request.inside, sites, clusters);
    const withThread = !(readStatus(pid)?.get('State') ?? '').startsWith('T');
    // The vdso's, as a rule: looked for before anybody is held.
    const borrowed = borrowCode(pid, memory);
    const map = (hold: Hold): Agent => {
      const tidOffset = findTidOffset(pid, hold.threads, memory, request.modules);
      const calls = new RemoteCalls(pid, hold.callableThread(), memory, borrowed);
      return Agent.map(pid, calls, memory, clusters, { ...request.agent, tidOffset, withThread });
    };
    if (adopted !== undefined) {
      const agent = map(adopted);
      agent.furnish(clusters);
      undirtyPage(memory, agent, adopted.threads[0].registers);
      agent.emit(clusters, 1);
      const ready = getReady(request, agent, sites);
      return install(request, adopted, ready, chooseWays(request, ready), readMaps(pid) ?? []);
    }
    if (withThread) Agent.rehearse();
    const one = Hold.one(pid, anyThread(pid), times);
    let agent: Agent;
    try {
      if (request.seccompFilter) checkSeccomp(pid, one.callableThread().tid, AGENT_CALLS);
      agent = map(one);
    } finally {
      one.release();
    }
    const removeFrom = (hold: Hold): void => {
      // It may have executed another program meanwhile, in which other things lie where the agent was.
      if (!agent.isPresent()) return;
      agent.remove(new RemoteCalls(pid, hold.callableThread(), memory, borrowed));
    };
    let ready: Ready;
    let choice: Choice;
    let maps: readonly Mapping[];
    let all: Hold;
    try {
      agent.furnish(clusters);
      agent.emit(clusters, (readThreads(pid) ?? []).length);
      ready = getReady(request, agent, sites);
      choice = chooseWays(request, ready);
    } catch (error) {
      withdraw(pid, agent, times, removeFrom);
      throw error;
    }
    const wasFlipped = choice.held.size === 0;
    if (wasFlipped) {
      const flipped = flipPages(request, ready, choice);
      if (flipped !== undefined) return flipped;
      choice = { flipped: new Set(), held: new Set(sites.keys()) };
    }
    try {
      // A mapping that is made between this and the hold is missed: its thread's stack is not known at once, no more.
      maps = readMaps(pid) ?? [];
      awaitUnshared(pid);
      all = Hold.all(pid, times, agent.thread?.tid);
    } catch (error) {
      if (wasFlipped) agent.abandon();
      else withdraw(pid, agent, times, removeFrom);
      throw error;
    }
    try {
      refuseShared(pid);
      return install(request, all, ready, choice, maps);
    } catch (error) {
      // Where a part was flipped, threads may be in our code.
      if (wasFlipped) agent.abandon();
      else removeFrom(all);
      throw error;
    } finally {
      all.release();
    }
  }

  /** Built by `install` only. */
  static of(
    request: PatchRequest,
    sites: readonly PlannedSite[],
    agent: Agent,
    lanes: ReadonlyMap<number, number>,
    refused: readonly RefusedFunction[],
    changes: SiteChanges,
    text: TextRuns,
    ways: Readonly<Partial<Record<WayName, number>>>,
  ): PatchedTarget {
    return new PatchedTarget(request, sites, agent, lanes, refused, changes, text, ways);
  }

  /**
   * Turns every site back: where the text pages are the file's, by taking our copies of them away, with no thread held;
   * elsewhere by writing, with all threads held. Our code stays mapped until `tryRemove`.
   */
  restore(): DetachResult {
    this.#stopRecording();
    const back = this.#changes.reversed();
    this.#takeTextAway();
    const undone = back.without(appliedOnes(this.#memory, back));
    if (undone.length === 0) return { restored: true, foreign: 0, breakpoints: 0 };
    const prepared = new PreparedChanges(this.#memory, undone);
    const isOurs = (address: number): boolean => this.agent.ownsCode(BigInt(address));
    const hold = this.#reach.standAll(this.#times, this.agent.thread?.tid);
    try {
      const foreign = [...prepared.apply()];
      const breakpoints = foreign.filter((i) =>
        restoreUnderBreakpoint(this.#memory, undone.addresses[i], undone.wantedOf(i), isOurs),
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

  #stopRecording(): void {
    try {
      this.agent.enable(false);
    } catch (error) {
      // Its thread may write nothing any more; heads are in memory that we map as well.
      if (!isRefusedCall(error)) throw error;
      this.agent.switchHeads(this.sites.keys(), false);
    }
  }

  #takeTextAway(): void {
    const { agent } = this;
    if (agent.thread === undefined || this.#text.length === 0) return;
    try {
      agent.writeTextRuns(this.#text.filter((run) => isOnlyOurs(this.#memory, run)));
    } catch (error) {
      // Nobody can look any more, nor write: the runs that its thread knows go as if we had died.
      if (!isRefusedCall(error)) throw error;
    }
    try {
      agent.thread.restoreText();
    } catch (error) {
      // It stands still, perhaps with all the others; then they are held and the sites are written.
      if (!isSafepokeError(error) || error.code !== 'AGENT_LOST') throw error;
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

  /**
   * Unmaps the agent, unless a thread is in our code or will return into it: call again later then. The sites have been
   * restored and the rings have been emptied.
   */
  tryRemove(): boolean {
    if (this.#isRemoved) return true;
    if (!this.#isUnused && !this.#tryLeaveCode()) return false;
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
   * swapped return addresses, and these are put back. None is moved out: each leaves by itself. Threads are looked at one after the
   * other, each held for a moment, unless a return address is on a stack that its thread does not own: a coroutine's perhaps, on which
   * any thread may go on.
   */
  #tryLeaveCode(): boolean {
    const isOurs = (rip: bigint): boolean => this.agent.ownsCode(rip);
    const agentTid = this.agent.thread?.tid;
    // Such processes are not held. Those that come from now on do not get into our code.
    this.#sharing ??= processesSharing(this.#pid);
    if (this.#sharing.length > 0) {
      const still = new Set(processesSharing(this.#pid));
      this.#sharing = this.#sharing.filter((other) => still.has(other));
      if (this.#sharing.length > 0) return false;
    }
    if (this.#reach.mustStandAll || !this.agent.areReturnsOwn()) {
      const hold = this.#reach.standAll(this.#times, agentTid);
      try {
        if (anyoneInside(this.#pid, hold, this.#memory, isOurs)) return false;
        this.agent.restoreReturnAddresses();
        if (!this.#reach.stillStand()) return false;
        this.#isUnused = true;
      } finally {
        hold.release();
      }
      return true;
    }
    for (;;) {
      const threads = readThreads(this.#pid) ?? [];
      const left = threads.filter((tid) => tid !== agentTid && !this.#outside.has(tid));
      if (left.length === 0) break;
      const maps = readMaps(this.#pid) ?? [];
      for (const tid of left) if (!this.#isOutside(tid, maps, isOurs)) return false;
    }
    this.#isUnused = true;
    return true;
  }

  #isOutside(tid: number, maps: readonly Mapping[], isOurs: (rip: bigint) => boolean): boolean {
    const hold = Hold.one(this.#pid, tid, this.#times);
    try {
      for (const thread of hold.threads) {
        if (isInside(thread, maps, this.#memory, isOurs)) return false;
        this.agent.restoreReturnAddresses(thread.registers.get('fs_base'));
      }
      this.#outside.add(tid);
      return true;
    } finally {
      hold.release();
    }
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
    findSavedInstructionPointers([thread], maps, memory)[0].some(({ rip }) => isOurs(BigInt(rip)))
  );
}

/** True if a held thread executes code of ours, or will return into it from a signal handler. */
export function anyoneInside(
  pid: number,
  hold: Standstill,
  memory: TargetMemory,
  isOurs: (rip: bigint) => boolean,
): boolean {
  const maps = readMaps(pid) ?? [];
  return hold.threads.some((thread) => isInside(thread, maps, memory, isOurs));
}

/** include/uapi/asm-generic/mman-common.h */
const MADV_DONTNEED = 4;

/**
 * A program that has not begun was stopped by a breakpoint at its entry, which made the page there a copy of the process's own. It
 * gets the file's again, if that has the same bytes.
 */
function undirtyPage(memory: TargetMemory, agent: Agent, registers: Registers): void {
  const page = pageOf(Number(registers.get('rip')));
  const before = memory.read(page, PAGE);
  agent.thread?.call(SYS.madvise, page, PAGE, MADV_DONTNEED);
  if (Buffer.compare(memory.read(page, PAGE), before) !== 0) memory.write(page, before);
}

/** The same by the program's own agent: a program that has not begun waits, the threads of another are called together. */
function patchInside(
  request: PatchRequest,
  { process, hasBegun }: { readonly process: InsideProcess; readonly hasBegun: boolean },
  sites: readonly PlannedSite[],
  clusters: readonly Cluster[],
): PatchedTarget {
  const { pid, memory, times } = request;
  const tidOffset = findTidOffset(pid, [process.leader], memory, request.modules);
  const options = { ...request.agent, tidOffset, withThread: true };
  const agent = Agent.map(pid, process.calls, memory, clusters, options, process.resident);
  let all: Standstill | undefined;
  try {
    agent.furnish(clusters);
    agent.emit(clusters, (readThreads(pid) ?? []).length);
    const ready = getReady(request, agent, sites);
    const choice = chooseWays(request, ready);
    const maps = readMaps(pid) ?? [];
    all = hasBegun ? process.meet(times) : undefined;
    return install(request, all ?? process.begin(), ready, choice, maps);
  } catch (error) {
    if (agent.isPresent()) agent.remove(process.calls);
    throw error;
  } finally {
    all?.release();
  }
}

/** Finds the runs of text that can be taken away, and tells the agent's thread, before anything is changed. */
function prepareText(pid: number, agent: Agent, memory: TargetMemory, changes: SiteChanges): TextRuns {
  if (agent.thread === undefined) return NO_TEXT_RUNS;
  const text = planTextRuns(pid, memory, changes);
  agent.writeTextRuns(text);
  // Where memory is locked, the pages would come back unlocked: they are taken away if we die only.
  if (agent.isLocked) return NO_TEXT_RUNS;
  // Nothing has been changed, so that this changes nothing either: it tells whether the kernel does it at all.
  if (agent.thread.restoreText() === 0) return text;
  agent.writeTextRuns([]);
  return NO_TEXT_RUNS;
}

/** Takes an agent away of which nothing is in use; where no thread can be held now, a session to come will. */
function withdraw(pid: number, agent: Agent, times: HoldTimes, removeFrom: (hold: Hold) => void): void {
  try {
    const one = Hold.one(pid, anyThread(pid, agent.thread?.tid), times);
    try {
      removeFrom(one);
    } finally {
      one.release();
    }
  } catch {
    agent.abandon();
  }
}

/** All that is computed and emitted while no thread is held. */
interface Ready {
  readonly agent: Agent;
  readonly sites: readonly PlannedSite[];
  readonly interior: Interior;
  /** For each site, in their order. */
  readonly changes: SiteChanges;
  /** What is changed one after the other. */
  readonly parts: readonly Part[];
  readonly text: TextRuns;
}

/** Sites that are changed together. */
interface Part {
  readonly indices: ReadonlySet<number>;
  readonly prepared: PreparedChanges;
}

/** Nobody is held. Writes the journal: whatever happens from now on can be undone. */
function getReady({ pid, memory, inside }: PatchRequest, agent: Agent, sites: readonly PlannedSite[]): Ready {
  const changes = new SiteChanges(
    new Float64Array(sites.length),
    new Uint8Array(sites.length * SITE_LENGTH),
    new Uint8Array(sites.length * SITE_LENGTH),
  );
  let i = 0;
  for (const { heads, bodies } of agent.regions) {
    for (let inRegion = 0; inRegion < bodies.length; inRegion++, i++) {
      const { address } = sites[i];
      changes.addresses[i] = address;
      sites[i].putOriginal(changes.expected, i * SITE_LENGTH);
      putJump(changes.wanted, i * SITE_LENGTH, address, Number(heads) + inRegion * HEAD_SIZE);
    }
  }
  agent.writeJournal(changes.addresses, changes.expected);
  // From inside handlers may keep us from making some changes: no function is changed then before the hooks are.
  const isHook = (index: number): boolean => sites[index].kind === 'hook';
  const groups = inside === undefined ? [(): boolean => true] : [isHook, (index: number) => !isHook(index)];
  const parts = groups.map((belongs) => {
    const others = new Set([...sites.keys()].filter((index) => !belongs(index)));
    const indices = new Set([...sites.keys()].filter(belongs));
    return { indices, prepared: new PreparedChanges(memory, changes.without(others)) };
  });
  const text = prepareText(pid, agent, memory, changes);
  return { agent, sites, interior: new Interior(sites), changes, parts, text };
}

/** How each site is to be changed, by index; those that are in neither are refused, as the way that is wished for cannot change them. */
interface Choice {
  readonly flipped: ReadonlySet<number>;
  readonly held: ReadonlySet<number>;
}

/**
 * Holding all threads once is the price of the first site that needs it; the others are cheapest written in that hold too. A program
 * that has not begun stands still anyway.
 */
function chooseWays({ pid, memory, way, adopted, inside }: PatchRequest, ready: Ready): Choice {
  const { agent, sites, changes, text } = ready;
  const none: ReadonlySet<number> = new Set();
  const all = new Set(sites.keys());
  if (way === 'held' || inside !== undefined) return { flipped: none, held: all };
  const reached = new PageFlip(pid, agent, memory, text).reaches(changes);
  const flipped = new Set([...reached].filter((i) => sites[i].isOneInstruction));
  if (flipped.size === sites.length) return { flipped, held: none };
  if (way === undefined) return { flipped: none, held: all };
  const hooks = new Set([...all].filter((i) => sites[i].kind === 'hook' && !flipped.has(i)));
  const hasFunction = [...flipped].some((i) => sites[i].kind !== 'hook');
  if (hasFunction && (hooks.size === 0 || adopted !== undefined)) return { flipped, held: hooks };
  const [hook] = hooks;
  throw new CannotError('NEEDS_HOLD', {
    tried: `change the code of process ${pid} by page flips only`,
    why: hasFunction
      ? `${sites[hook].function.name} must be changed as well, for exceptions, and its site is more than one instruction`
      : 'no function that was asked for has a site of one instruction on a page that can be flipped',
    next: hasFunction
      ? 'use --entry-only, which needs no such preparation, start the program with `safepoke run`, or leave --way out'
      : 'leave --way out, or compile with -pg -mfentry -mnop-mcount',
  });
}

/** Changes the sites with nobody held. Undefined: not all could be changed so, and another way may be taken. */
function flipPages(request: PatchRequest, ready: Ready, choice: Choice): PatchedTarget | undefined {
  const { agent } = ready;
  // Nobody has looked at the threads. They get lanes when they first record, as threads do that start later.
  agent.distrustThreadPointers();
  try {
    return new Changing(request, ready, choice).flip().finish(new Map());
  } catch (error) {
    // Threads may be in our code by now: its thread turns it back, and the next session takes it away.
    agent.abandon();
    throw error;
  }
}

/** All threads are held: gives them lanes, moves them out of the sites, changes the sites. */
function install(
  request: PatchRequest,
  hold: Standstill,
  ready: Ready,
  choice: Choice,
  maps: readonly Mapping[],
): PatchedTarget {
  const { pid, memory } = request;
  const { agent, sites, interior } = ready;
  if (!pointToThemselves(hold.threads, memory)) agent.distrustThreadPointers();
  const threads = knownThreads(pid, hold.threads, maps, agent.tidOffset, memory);
  const assigned = agent.assignLanes(threads.map((t) => t.known));
  const lanes = new Map(assigned.map((lane, i) => [lane, threads[i].tid]));

  const impossible = new Set<PlannedSite>();
  for (const thread of hold.threads) {
    const rip = Number(thread.registers.get('rip'));
    const site = interior.siteAround(rip);
    if (site !== undefined) {
      const moved = site.movedTo(rip);
      if (moved === undefined) {
        impossible.add(site);
      } else {
        thread.registers.set('rip', moved);
        hold.writeRegisters(thread);
      }
    }
  }
  // A handler that runs on a thread will return to where the signal came.
  for (const { rip } of findSavedInstructionPointers(hold.threads, maps, memory).flat()) {
    const inside = interior.siteAround(rip);
    if (inside !== undefined) impossible.add(inside);
  }
  if (sites.some((site) => site.kind === 'hook' && impossible.has(site))) throw busyUnwinder(pid);
  const changing = new Changing(request, ready, choice);
  if (choice.flipped.size > 0) changing.flip();
  const target = changing.write(impossible).finish(lanes);
  if (target === undefined) throw new Error('what is written while all are held is written or refused');
  return target;
}

/** Makes the changes of a choice, one way after the other. */
class Changing {
  readonly #request: PatchRequest;
  readonly #ready: Ready;
  readonly #choice: Choice;
  readonly #refused = new Map<number, SessionRefusalReason>();
  readonly #ways: Partial<Record<WayName, number>> = {};
  #isComplete = true;

  constructor(request: PatchRequest, ready: Ready, choice: Choice) {
    this.#request = request;
    this.#ready = ready;
    this.#choice = choice;
    ready.sites.forEach((_, i) => {
      if (!choice.flipped.has(i) && !choice.held.has(i)) this.#refused.set(i, 'needs-hold');
    });
    ready.agent.enable(true);
  }

  flip(): this {
    const { pid, memory } = this.#request;
    const { agent, text } = this.#ready;
    this.#apply(new PageFlip(pid, agent, memory, text), this.#choice.flipped);
    return this;
  }

  /** All threads are held, and none is within a site but those that are `impossible`. */
  write(impossible: ReadonlySet<PlannedSite>): this {
    const { sites, parts } = this.#ready;
    const { held } = this.#choice;
    const isWanted = (i: number): boolean => held.has(i) && !impossible.has(sites[i]);
    if (impossible.size > 0) {
      for (const i of held) if (!isWanted(i)) this.#refused.set(i, 'thread-inside');
    }
    const isComplete = impossible.size === 0 && held.size === sites.length;
    const { inside, memory } = this.#request;
    let isGivenUp = false;
    for (const { indices, prepared } of parts) {
      const some = isComplete ? indices : new Set([...indices].filter(isWanted));
      if (isGivenUp) {
        for (const i of some) this.#refused.set(i, 'handler-busy');
        continue;
      }
      const way = new HeldWay(inside === undefined ? 'held' : 'rendezvous', memory, prepared);
      this.#apply(way, some, some.size === indices.size ? prepared.changes : undefined);
      isGivenUp = [...this.#refused.keys()].some((i) => some.has(i) && sites[i].kind === 'hook');
    }
    return this;
  }

  /** Undefined: a way could not make some changes that another can; nothing is wrong with those that it made. */
  finish(lanes: ReadonlyMap<number, number>): PatchedTarget | undefined {
    const { agent, sites, changes, text } = this.#ready;
    if (!this.#isComplete && this.#request.way === undefined) return undefined;
    const functions = [...this.#refused].filter(
      ([i, why]) => why !== 'handler-busy' || sites[i].kind !== 'hook',
    );
    const refused = functions.map(([i, reason]) => ({
      function: sites[i].function,
      module: sites[i].module,
      reason,
    }));
    const made = changes.without(new Set(this.#refused.keys()));
    return PatchedTarget.of(this.#request, sites, agent, lanes, refused, made, text, this.#ways);
  }

  /** `changes` are those of these indices, where they are at hand. */
  #apply(way: Way, indices: ReadonlySet<number>, changes = this.#changesOf(indices)): void {
    if (indices.size === 0) return;
    const { foreign, failed, busy } = way.apply(changes);
    const numbered = foreign.size + failed.size + busy.size === 0 ? [] : [...indices].sort((a, b) => a - b);
    for (const i of foreign) this.#refused.set(numbered[i], 'changed');
    for (const i of failed) this.#refused.set(numbered[i], 'needs-hold');
    for (const i of busy) this.#refused.set(numbered[i], 'handler-busy');
    if (failed.size > 0) this.#isComplete = false;
    const made = indices.size - foreign.size - failed.size;
    this.#ways[way.name] = (this.#ways[way.name] ?? 0) + made;
  }

  #changesOf(indices: ReadonlySet<number>): SiteChanges {
    const { changes } = this.#ready;
    const others = new Set(indices.size === changes.length ? [] : changes.addresses.keys());
    for (const i of indices) others.delete(i);
    return changes.without(others);
  }
}

function busyUnwinder(pid: number): CannotError {
  return new CannotError('UNWINDER_BUSY', {
    tried: `prepare process ${pid} for exceptions`,
    why: 'a signal handler will return into the first instructions of its unwinder',
    next: 'try again, or trace with --entry-only, which needs no such preparation',
  });
}

/** True if the word at each thread pointer is that pointer, as the ABI has it and the recorder's fast paths want it. */
function pointToThemselves(threads: readonly HeldThread[], memory: TargetMemory): boolean {
  const pointers = threads.map((thread) => thread.registers.get('fs_base'));
  const words = memory.readMany(pointers.map((pointer) => ({ address: Number(pointer), length: 8 })));
  return words.every((word, i) => {
    const isThere = pointers[i] !== 0n && word.length === 8;
    return isThere && new DataView(word.buffer, word.byteOffset).getBigUint64(0, true) === pointers[i];
  });
}

/** Finds sites by addresses. */
class Interior {
  /** `sites` ascend by address. */
  constructor(private readonly sites: readonly PlannedSite[]) {}

  /** The site within whose displaced instructions an address lies, their first byte excepted: from there all is well. */
  siteAround(address: number): PlannedSite | undefined {
    const index = this.#firstFrom(address);
    if (index === 0) return undefined;
    const site = this.sites[index - 1];
    return address < site.address + site.displacedLength ? site : undefined;
  }

  #firstFrom(address: number): number {
    let low = 0;
    let high = this.sites.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.sites[middle].address < address) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
