// A target with its sites changed: the part of a session that touches the process.
import { AGENT_CALLS, Agent, HEAD_SIZE, type AgentOptions, type Cluster } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import { readMaps, readStartTime, readStatus, readThreads, type Mapping } from '../linux/index.js';
import {
  Hold,
  RemoteCalls,
  TargetMemory,
  checkSeccomp,
  findSyscallInstruction,
  type HeldThread,
  type HoldTimes,
} from '../target/index.js';
import { applyChanges, areApplied, jumpTo, restoreUnderBreakpoint, type SiteChange } from './patch.js';
import type { PlannedSite, RefusedFunction } from './site-plan.js';
import { findSavedInstructionPointers, findTidOffset, knownThreads } from './thread-facts.js';
import type { Module } from '../target/index.js';

/** Clusters of modules are kept small enough that every stub reaches every site. */
const MAX_CLUSTER = 1 << 30;
/** A recorder with its slow paths is a few hundred instructions; relocated code is a few more. */
export const MAX_STEPS_OUT = 20_000;

/** What to put into a target. */
export interface PatchRequest {
  readonly pid: number;
  readonly modules: readonly Module[];
  /** Functions to trace, then hooks; the index of a function in records is its position after `arrange`. */
  readonly sites: readonly PlannedSite[];
  readonly agent: Omit<AgentOptions, 'tidOffset'>;
  readonly memory: TargetMemory;
  readonly times: HoldTimes;
  /** Its seccomp filters must be asked before it makes system calls for us. */
  readonly seccompFilter: boolean;
  /** A thread that we hold already, of a program that has not run; it is let go when all is done. */
  readonly adopted: Hold | undefined;
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
  readonly #pid: number;
  readonly #memory: TargetMemory;
  readonly #times: HoldTimes;
  readonly #changes: readonly SiteChange[];
  /** No thread is in our code, and none will return into it. */
  #isUnused = false;
  #isRemoved = false;

  private constructor(
    request: PatchRequest,
    sites: readonly PlannedSite[],
    agent: Agent,
    lanes: ReadonlyMap<number, number>,
    refused: readonly RefusedFunction[],
    changes: readonly SiteChange[],
  ) {
    this.#pid = request.pid;
    this.#memory = request.memory;
    this.#times = request.times;
    this.sites = sites;
    this.agent = agent;
    this.lanes = lanes;
    this.refused = refused;
    this.#changes = changes;
  }

  /**
   * Maps the agent with one thread held, emits all code with none held, and changes the sites with all held.
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
    const map = (hold: Hold): Agent => {
      const tidOffset = findTidOffset(pid, hold.threads, memory, request.modules);
      return Agent.map(pid, hold, memory, clusters, { ...request.agent, tidOffset });
    };
    if (adopted !== undefined) {
      const agent = map(adopted);
      agent.emit(clusters, 1);
      return install(request, adopted, agent, clusters, sites, prepare(agent, sites), readMaps(pid) ?? []);
    }
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
      agent.remove(new RemoteCalls(hold.callableThread(), memory, findSyscallInstruction(pid, memory)));
    };
    let prepared: Prepared;
    let maps: readonly Mapping[];
    let all: Hold;
    try {
      agent.writeJournal([], readStartTime(process.pid) ?? 0n);
      agent.emit(clusters, (readThreads(pid) ?? []).length);
      prepared = prepare(agent, sites);
      // A mapping that is made between this and the hold is missed: its thread's stack is not known at once, no more.
      maps = readMaps(pid) ?? [];
      all = Hold.all(pid, times);
    } catch (error) {
      withdraw(pid, agent, times, removeFrom);
      throw error;
    }
    try {
      return install(request, all, agent, clusters, sites, prepared, maps);
    } catch (error) {
      removeFrom(all);
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
    changes: readonly SiteChange[],
  ): PatchedTarget {
    return new PatchedTarget(request, sites, agent, lanes, refused, changes);
  }

  /**
   * Turns every site back and puts swapped return addresses back, all threads held. Our code stays mapped until
   * `tryRemove`.
   */
  restore(): DetachResult {
    const back = this.#changes.map(({ address, expected, wanted }) => ({
      address,
      expected: wanted,
      wanted: expected,
    }));
    const hold = Hold.all(this.#pid, this.#times);
    const isOurs = (address: number): boolean => this.agent.ownsCode(BigInt(address));
    let foreign: SiteChange[];
    let breakpoints: number;
    try {
      this.agent.enable(false);
      foreign = applyChanges(this.#memory, back);
      breakpoints = foreign.filter(({ address, wanted }) =>
        restoreUnderBreakpoint(this.#memory, address, wanted, isOurs),
      ).length;
      this.#leaveCode(hold);
    } finally {
      hold.release();
    }
    return {
      restored: areApplied(this.#memory, back),
      foreign: foreign.length,
      breakpoints,
    };
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
    this.agent.releaseShared();
    const syscallInstruction = findSyscallInstruction(this.#pid, this.#memory);
    const one = Hold.one(this.#pid, anyThread(this.#pid), this.#times);
    try {
      if (this.agent.isPresent())
        this.agent.remove(new RemoteCalls(one.callableThread(), this.#memory, syscallInstruction));
    } finally {
      one.release();
    }
    this.#isRemoved = true;
    return true;
  }

  #tryLeaveCode(): boolean {
    const hold = Hold.all(this.#pid, this.#times);
    try {
      this.#leaveCode(hold);
    } finally {
      hold.release();
    }
    return this.#isUnused;
  }

  /** Gets the held threads out of our code, as far as that is possible, and sees whether any way back into it is left. */
  #leaveCode(hold: Hold): void {
    for (const thread of hold.threads) {
      hold.stepUntil(thread, (rip) => !this.agent.ownsCode(rip), MAX_STEPS_OUT);
    }
    this.agent.restoreReturnAddresses();
    const maps = readMaps(this.#pid) ?? [];
    const isInside = (thread: HeldThread): boolean =>
      this.agent.ownsCode(thread.registers.get('rip')) ||
      findSavedInstructionPointers(thread, maps, this.#memory).some(({ rip }) =>
        this.agent.ownsCode(BigInt(rip)),
      );
    this.#isUnused = !hold.threads.some(isInside);
  }
}

/** Takes an agent away of which nothing is in use; where no thread can be held now, a session to come will. */
function withdraw(pid: number, agent: Agent, times: HoldTimes, removeFrom: (hold: Hold) => void): void {
  try {
    const one = Hold.one(pid, anyThread(pid), times);
    try {
      removeFrom(one);
    } finally {
      one.release();
    }
  } catch {
    try {
      agent.abandon();
    } catch {
      // The process has ended, or executes another program: nothing is left of the agent.
    }
  }
}

/** The leader, or another thread if the leader has ended before the rest. */
function anyThread(pid: number): number {
  const isAlive = !/^[ZX]/.test(readStatus(pid)?.get('State') ?? 'X');
  return isAlive ? pid : ((readThreads(pid) ?? []).find((tid) => tid !== pid) ?? pid);
}

/** What need not be computed while threads are held. */
interface Prepared {
  readonly interior: Interior;
  /** For each site, in their order. */
  readonly changes: readonly SiteChange[];
}

function prepare(agent: Agent, sites: readonly PlannedSite[]): Prepared {
  const heads: number[] = [];
  for (const region of agent.regions) {
    region.bodies.forEach((_, i) => heads.push(Number(region.heads) + i * HEAD_SIZE));
  }
  const changes = sites.map(({ address, original }, i) => ({
    address,
    expected: original,
    wanted: jumpTo(address, heads[i]),
  }));
  return { interior: new Interior(sites), changes };
}

/** All threads are held: gives them lanes, moves them out of the sites, changes the sites. */
function install(
  request: PatchRequest,
  hold: Hold,
  agent: Agent,
  clusters: readonly Cluster[],
  sites: readonly PlannedSite[],
  prepared: Prepared,
  maps: readonly Mapping[],
): PatchedTarget {
  const { pid, memory } = request;
  if (!hold.threads.every((thread) => pointsToItself(thread, memory))) agent.distrustThreadPointers(clusters);
  const threads = knownThreads(pid, hold.threads, maps, agent.tidOffset, memory);
  const assigned = agent.assignLanes(threads.map((t) => t.known));
  const lanes = new Map(assigned.map((lane, i) => [lane, threads[i].tid]));

  const { interior, changes: all } = prepared;
  const impossible = new Set<PlannedSite>();
  for (const thread of hold.threads) {
    const rip = Number(thread.registers.get('rip'));
    const site = interior.siteAround(rip);
    if (site !== undefined) {
      const moved = movedInto(site, rip);
      if (moved === undefined) {
        impossible.add(site);
      } else {
        thread.registers.set('rip', moved);
        hold.writeRegisters(thread);
      }
    }
    // A handler that runs on this thread will return to where the signal came.
    for (const saved of findSavedInstructionPointers(thread, maps, memory)) {
      const inside = interior.siteAround(saved.rip);
      if (inside !== undefined) impossible.add(inside);
    }
  }
  const changes = impossible.size === 0 ? all : all.filter((_, i) => !impossible.has(sites[i]));
  const hooksFailed = sites.some((site) => site.kind === 'hook' && impossible.has(site));
  if (hooksFailed) throw busyUnwinder(pid);
  agent.writeJournal(
    changes.map(({ address, expected }) => ({ address, original: expected })),
    readStartTime(process.pid) ?? 0n,
  );
  agent.enable(true);
  const foreign = new Set(change(memory, changes));
  const refused: RefusedFunction[] = [];
  sites.forEach((site) => {
    if (impossible.has(site))
      refused.push({ function: site.function, module: site.module, reason: 'thread-inside' });
  });
  for (const change of foreign) {
    const site = sites.find((s) => s.address === change.address);
    if (site !== undefined) refused.push({ function: site.function, module: site.module, reason: 'changed' });
  }
  return PatchedTarget.of(
    request,
    sites,
    agent,
    lanes,
    refused,
    changes.filter((change) => !foreign.has(change)),
  );
}

/** Makes all changes but those where other bytes stand, which are returned; or, where one cannot be made, none. */
function change(memory: TargetMemory, changes: readonly SiteChange[]): SiteChange[] {
  try {
    return applyChanges(memory, changes);
  } catch (error) {
    applyChanges(
      memory,
      changes.map(({ address, expected, wanted }) => ({ address, expected: wanted, wanted: expected })),
    );
    throw error;
  }
}

function busyUnwinder(pid: number): CannotError {
  return new CannotError('UNWINDER_BUSY', {
    tried: `prepare process ${pid} for exceptions`,
    why: 'a signal handler will return into the first instructions of its unwinder',
    next: 'try again, or trace with --entry-only, which needs no such preparation',
  });
}

/** Where the copy of the displaced instruction at `rip` is. */
function movedInto(site: PlannedSite, rip: number): bigint | undefined {
  const { placed } = site;
  const boundary = placed?.code.boundaries.find((b) => b.originalOffset === rip - site.address);
  return placed === undefined || boundary === undefined
    ? undefined
    : placed.address + BigInt(boundary.newOffset);
}

/** True if the word at the thread pointer is the thread pointer, as the ABI has it and the recorder's fast paths want it. */
function pointsToItself(thread: HeldThread, memory: TargetMemory): boolean {
  const pointer = thread.registers.get('fs_base');
  return pointer !== 0n && memory.readWord(Number(pointer)) === pointer;
}

/** Finds sites by addresses within their displaced instructions, their first byte excepted: from there all is well. */
class Interior {
  readonly #sites: readonly PlannedSite[];

  constructor(sites: readonly PlannedSite[]) {
    this.#sites = [...sites].sort((a, b) => a.address - b.address);
  }

  siteAround(address: number): PlannedSite | undefined {
    let low = 0;
    let high = this.#sites.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#sites[middle].address < address) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return undefined;
    const site = this.#sites[low - 1];
    return address < site.address + site.displacedLength ? site : undefined;
  }
}
