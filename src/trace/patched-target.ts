// A target with its sites changed: the part of a session that touches the process.
import { AGENT_CALLS, Agent, HEAD_SIZE, type AgentOptions, type Cluster } from '../agent/index.js';
import { CannotError, isSafepokeError } from '../errors/index.js';
import {
  hasEnded,
  processesSharing,
  readMaps,
  readStatus,
  readThreads,
  type Mapping,
} from '../linux/index.js';
import {
  Hold,
  RemoteCalls,
  TargetMemory,
  checkSeccomp,
  borrowCode,
  refuseShared,
  type HeldThread,
  type HoldTimes,
} from '../target/index.js';
import {
  PreparedChanges,
  SiteChanges,
  appliedOnes,
  applyChanges,
  areApplied,
  putJump,
  restoreUnderBreakpoint,
} from './patch.js';
import type { PlannedSite, RefusedFunction } from './site-plan.js';
import { NO_TEXT_RUNS, isOnlyOurs, planTextRuns, type TextRuns } from './text-runs.js';
import { findSavedInstructionPointers, findTidOffset, knownThreads } from './thread-facts.js';
import type { Module } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';

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
  readonly #changes: SiteChanges;
  readonly #text: TextRuns;
  /** No thread is in our code, and none will return into it. */
  #isUnused = false;
  #isRemoved = false;

  private constructor(
    request: PatchRequest,
    sites: readonly PlannedSite[],
    agent: Agent,
    lanes: ReadonlyMap<number, number>,
    refused: readonly RefusedFunction[],
    changes: SiteChanges,
    text: TextRuns,
  ) {
    this.#text = text;
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
    const withThread = !(readStatus(pid)?.get('State') ?? '').startsWith('T');
    // The vdso's, as a rule: looked for before anybody is held.
    const borrowed = borrowCode(pid, memory);
    const map = (hold: Hold): Agent => {
      const tidOffset = findTidOffset(pid, hold.threads, memory, request.modules);
      return Agent.map(pid, hold, memory, borrowed, clusters, { ...request.agent, tidOffset, withThread });
    };
    if (adopted !== undefined) {
      const agent = map(adopted);
      agent.emit(clusters, 1);
      const prepared = prepare(agent, sites, memory);
      const text = prepareText(pid, agent, memory, prepared.changes.changes);
      return install(request, adopted, agent, sites, prepared, text, readMaps(pid) ?? []);
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
    let prepared: Prepared;
    let text: TextRuns;
    let maps: readonly Mapping[];
    let all: Hold;
    try {
      agent.emit(clusters, (readThreads(pid) ?? []).length);
      prepared = prepare(agent, sites, memory);
      text = prepareText(pid, agent, memory, prepared.changes.changes);
      // A mapping that is made between this and the hold is missed: its thread's stack is not known at once, no more.
      maps = readMaps(pid) ?? [];
      all = Hold.all(pid, times, agent.thread?.tid);
    } catch (error) {
      withdraw(pid, agent, times, removeFrom);
      throw error;
    }
    try {
      refuseShared(pid);
      return install(request, all, agent, sites, prepared, text, maps);
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
    changes: SiteChanges,
    text: TextRuns,
  ): PatchedTarget {
    return new PatchedTarget(request, sites, agent, lanes, refused, changes, text);
  }

  /**
   * Turns every site back: where the text pages are the file's, by taking our copies of them away, with no thread held;
   * elsewhere by writing, with all threads held. Our code stays mapped until `tryRemove`.
   */
  restore(): DetachResult {
    this.agent.enable(false);
    const back = this.#changes.reversed();
    this.#takeTextAway();
    const undone = back.without(appliedOnes(this.#memory, back));
    if (undone.length === 0) return { restored: true, foreign: 0, breakpoints: 0 };
    const prepared = new PreparedChanges(this.#memory, undone);
    const isOurs = (address: number): boolean => this.agent.ownsCode(BigInt(address));
    const hold = Hold.all(this.#pid, this.#times, this.agent.thread?.tid);
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

  #takeTextAway(): void {
    const { agent } = this;
    if (agent.thread === undefined || this.#text.length === 0) return;
    agent.writeTextRuns(this.#text.filter((run) => isOnlyOurs(this.#memory, run)));
    try {
      agent.thread.restoreText();
    } catch (error) {
      // It stands still, perhaps with all the others; then they are held and the sites are written.
      if (!isSafepokeError(error) || error.code !== 'AGENT_LOST') throw error;
    }
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
    const borrowed = borrowCode(this.#pid, this.#memory);
    const one = Hold.one(this.#pid, anyThread(this.#pid, this.agent.thread?.tid), this.#times);
    try {
      if (this.agent.isPresent())
        this.agent.remove(new RemoteCalls(this.#pid, one.callableThread(), this.#memory, borrowed));
    } finally {
      one.release();
    }
    this.#isRemoved = true;
    return true;
  }

  #tryLeaveCode(): boolean {
    const hold = Hold.all(this.#pid, this.#times, this.agent.thread?.tid);
    try {
      this.#leaveCode(hold);
    } finally {
      hold.release();
    }
    return this.#isUnused;
  }

  /**
   * Sees whether a held thread is in our code, or a signal handler will return into it. If not, no way into it is left but
   * swapped return addresses, and these are put back. None is moved out: with the sites restored, each leaves by itself.
   */
  #leaveCode(hold: Hold): void {
    const isOurs = (rip: bigint): boolean => this.agent.ownsCode(rip);
    if (anyoneInside(this.#pid, hold, this.#memory, isOurs)) return;
    // Such a process is not held, and has come since the session began.
    if (processesSharing(this.#pid).length > 0) return;
    this.agent.restoreReturnAddresses();
    this.#isUnused = true;
  }
}

/** True if a held thread executes code of ours, or will return into it from a signal handler. */
export function anyoneInside(
  pid: number,
  hold: Hold,
  memory: TargetMemory,
  isOurs: (rip: bigint) => boolean,
): boolean {
  const maps = readMaps(pid) ?? [];
  return hold.threads.some(
    (thread) =>
      isOurs(thread.registers.get('rip')) ||
      findSavedInstructionPointers(thread, maps, memory).some(({ rip }) => isOurs(BigInt(rip))),
  );
}

/** Finds the runs of text that can be taken away, and tells the agent's thread, before anything is changed. */
function prepareText(pid: number, agent: Agent, memory: TargetMemory, changes: SiteChanges): TextRuns {
  if (agent.thread === undefined) return NO_TEXT_RUNS;
  const text = planTextRuns(pid, memory, changes);
  agent.writeTextRuns(text);
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

/** The leader, or another thread if the leader has ended before the rest. */
function anyThread(pid: number, except = 0): number {
  if (!hasEnded(pid)) return pid;
  return (readThreads(pid) ?? []).find((tid) => tid !== pid && tid !== except) ?? pid;
}

/** What need not be computed while threads are held. */
interface Prepared {
  readonly interior: Interior;
  /** For each site, in their order. */
  readonly changes: PreparedChanges;
}

/** Nobody is held. Writes the journal: whatever happens from now on can be undone. */
function prepare(agent: Agent, sites: readonly PlannedSite[], memory: TargetMemory): Prepared {
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
  return { interior: new Interior(sites), changes: new PreparedChanges(memory, changes) };
}

/** All threads are held: gives them lanes, moves them out of the sites, changes the sites. */
function install(
  request: PatchRequest,
  hold: Hold,
  agent: Agent,
  sites: readonly PlannedSite[],
  prepared: Prepared,
  text: TextRuns,
  maps: readonly Mapping[],
): PatchedTarget {
  const { pid, memory } = request;
  if (!hold.threads.every((thread) => pointsToItself(thread, memory))) agent.distrustThreadPointers();
  const threads = knownThreads(pid, hold.threads, maps, agent.tidOffset, memory);
  const assigned = agent.assignLanes(threads.map((t) => t.known));
  const lanes = new Map(assigned.map((lane, i) => [lane, threads[i].tid]));

  const { interior, changes: all } = prepared;
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
    // A handler that runs on this thread will return to where the signal came.
    for (const saved of findSavedInstructionPointers(thread, maps, memory)) {
      const inside = interior.siteAround(saved.rip);
      if (inside !== undefined) impossible.add(inside);
    }
  }
  if (sites.some((site) => site.kind === 'hook' && impossible.has(site))) throw busyUnwinder(pid);
  const refused: RefusedFunction[] = [];
  const refusedIndices = new Set<number>();
  if (impossible.size > 0) {
    sites.forEach((site, i) => {
      if (!impossible.has(site)) return;
      refusedIndices.add(i);
      refused.push({ function: site.function, module: site.module, reason: 'thread-inside' });
    });
  }
  const changes = all.changes.without(refusedIndices);
  agent.enable(true);
  const foreign = applyAllOrNone(
    memory,
    refusedIndices.size === 0 ? all : new PreparedChanges(memory, changes),
  );
  for (const index of foreign) {
    const site = interior.siteAt(changes.addresses[index]);
    if (site !== undefined) refused.push({ function: site.function, module: site.module, reason: 'changed' });
  }
  return PatchedTarget.of(request, sites, agent, lanes, refused, changes.without(foreign), text);
}

/** Makes all changes but those where other bytes stand, which are returned; or, where one cannot be made, none. */
function applyAllOrNone(memory: TargetMemory, prepared: PreparedChanges): Set<number> {
  try {
    return prepared.apply();
  } catch (error) {
    applyChanges(memory, prepared.changes.reversed());
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

/** True if the word at the thread pointer is the thread pointer, as the ABI has it and the recorder's fast paths want it. */
function pointsToItself(thread: HeldThread, memory: TargetMemory): boolean {
  const pointer = thread.registers.get('fs_base');
  return pointer !== 0n && memory.readWord(Number(pointer)) === pointer;
}

/** Finds sites by addresses. */
class Interior {
  /** `sites` ascend by address. */
  constructor(private readonly sites: readonly PlannedSite[]) {}

  siteAt(address: number): PlannedSite | undefined {
    const site = this.sites.at(this.#firstFrom(address));
    return site?.address === address ? site : undefined;
  }

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
