// Putting the agent into a target and changing its sites: the part of a session that touches the process on the way in.
import {
  AGENT_CALLS,
  Agent,
  CONFINEMENT_CALLS,
  NOTHING_GIVEN_UP,
  OPEN_TEXT_CALLS,
  rightsToGiveUp,
  type AgentOptions,
  type Cluster,
  type OpeningText,
} from '../agent/index.js';
import { CannotError, ending } from '../errors/index.js';
import type { InsideProcess } from '../inside/index.js';
import { hasEnded, readMaps, readStatus, readThreads, type Mapping, type Registers } from '../linux/index.js';
import {
  Hold,
  Latches,
  RemoteCalls,
  checkSeccomp,
  hasOurFilters,
  mayCall,
  seccompRefusal,
  borrowCode,
  awaitUnshared,
  holdCaller,
  refuseShared,
  type HeldThread,
  type PlannedCall,
  type SessionTimes,
  type Standstill,
  type TargetMemory,
} from '../target/index.js';
import { Changing, Interior, leaveSites, type Choice, type Ready } from './changing.js';
import { cleanPages, pageAround } from './clean-pages.js';
import { collectGarbage } from './garbage.js';
import type { PatchedTarget } from './patched-target.js';
import { PreparedChanges, SiteChanges } from './patch.js';
import { anyThread } from './reach.js';
import { refuseTraced } from './recovery.js';
import type { PlannedFunction, PlannedSite } from './site-plan.js';
import { planOpening } from './opening.js';
import { NO_TEXT_RUNS, pagesOfSites, planTextRuns, type TextRuns } from './text-runs.js';
import {
  findTidOffset,
  knownThreads,
  pointsToItself,
  withReader,
  type ThreadLook,
  type ThreadReader,
} from './thread-facts.js';
import type { ThreadPointerSetter } from './thread-pointer-changes.js';
import type { Module } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { PageFlip, type WayName } from './ways.js';

/** Clusters of modules are kept small enough that every stub reaches every site. */
const MAX_CLUSTER = 1 << 30;

/** What a C library does for some threads it does for all; each is asked while it stands still. */
const COMPARED_THREADS = 8;

/** So many leave garbage whose collection would take longer than all else that is done while threads are held. */
const MANY_SITES = 10_000;

/** Latched threads of which something is read before it is seen who has woken up. */
const LOOKED_AT_ONCE = 128;

/** More threads go on before they are given lanes. */
const FEW_THREADS = 64;

/** What to put into a target. */
export interface PatchRequest {
  readonly pid: number;
  readonly modules: readonly Module[];
  /** Functions to trace; the index of one in records is its position after `arrange`. */
  readonly functions: readonly PlannedFunction[];
  readonly sites: readonly PlannedSite[];
  readonly agent: Omit<
    AgentOptions,
    'tidOffset' | 'threadPointer' | 'withThread' | 'givenUp' | 'mayConfine' | 'whyTextStays'
  >;
  readonly memory: TargetMemory;
  readonly times: SessionTimes;
  /** Its seccomp filters must be asked before it makes system calls for us. */
  readonly seccompFilter: boolean;
  readonly threadPointersBy: ThreadPointerSetter;
  /** Text stays as it is, though a probe of the kernel may come. */
  readonly readOnlyText: boolean;
  /** The only way in which sites may be changed; undefined: whichever is best. */
  readonly way: WayName | undefined;
  /** A thread that we hold already, of a program that has not run; it is let go when all is done. */
  readonly adopted: Hold | undefined;
  /** The program has our object loaded with it, and there is no ptrace. It waits to begin unless `hasBegun`. */
  readonly inside: { readonly process: InsideProcess; readonly hasBegun: boolean } | undefined;
  /** Called before the first record is possible; again where a first way to change the sites would not do. */
  readonly onEnable: () => void;
  readonly onNote: (line: string) => void;
}

/** Functions and sites in the order of their addresses, all and by clusters. */
interface Arranged {
  readonly functions: readonly PlannedFunction[];
  readonly sites: readonly PlannedSite[];
  readonly clusters: readonly Cluster[];
}

function arrange(request: PatchRequest): Arranged {
  const addressOf = ({ function: f, module }: PlannedFunction): number =>
    f.addressNumber + Number(module.bias);
  const functions = [...request.functions].sort((a, b) => addressOf(a) - addressOf(b));
  functions.forEach((f, i) => {
    f.index = i;
  });
  const sites = [...request.sites].sort((a, b) => a.address - b.address);
  const clusters: Cluster[] = [];
  for (let first = 0; first < sites.length;) {
    const low = sites[first].address;
    let end = first + 1;
    while (end < sites.length && sites[end].address - low <= MAX_CLUSTER) end++;
    const members = sites.slice(first, end);
    const high = sites[end - 1].address;
    clusters.push({ low, high, firstIndex: first, sites: members.map((site) => site.stub) });
    first = end;
  }
  return { functions, sites, clusters };
}

/** How a held thread is made to make calls for us. */
type CallsOf = (hold: Hold) => RemoteCalls;

/**
 * Maps the agent with one thread held, emits all code with none held, and changes the sites: with all held, or with none where
 * every site can be changed so.
 *
 * @throws CannotError; the target is as before then
 */
export function patchTarget(request: PatchRequest): PatchedTarget {
  const { pid, memory, adopted, inside } = request;
  const arranged = arrange(request);
  if (inside !== undefined) return patchInside(request, inside, arranged);
  // The vdso's, as a rule: looked for before anybody is held.
  const borrowed = borrowCode(pid, memory);
  const callsOf: CallsOf = (hold) => new RemoteCalls(pid, hold.callableThread(), memory, borrowed);
  if (adopted !== undefined) return patchWaiting(request, adopted, arranged, callsOf);
  return patchRunning(request, arranged, callsOf);
}

/** A program that has not begun, and whose one thread we hold. */
function patchWaiting(
  request: PatchRequest,
  adopted: Hold,
  arranged: Arranged,
  callsOf: CallsOf,
): PatchedTarget {
  const { pid } = request;
  const agent = mapAgent(request, adopted, arranged, callsOf, {
    withThread: true,
    whyTextStays: undefined,
  });
  return keptIfPatched(agent, () => {
    agent.furnish(arranged.clusters);
    // A breakpoint at its entry has stopped it.
    cleanPages(request, agent, [pageAround(Number(adopted.threads[0].registers.get('rip')))]);
    agent.emit(arranged.clusters);
    const ready = getReady(request, agent, arranged);
    const maps = readMaps(pid) ?? [];
    const choice = chooseWays(request, ready);
    const changing = withReader(1, (reader) =>
      change(request, adopted, ready, new Changing(request, ready, choice), maps, reader),
    );
    if (request.way === 'page-flip' && !changing.hasFunction) throw cannotFlip(pid);
    return settle(request, changing, agent, adopted.threads);
  });
}

/** What safepoke itself holds of an agent (memory, a descriptor) goes if nothing comes of it. */
function keptIfPatched(agent: Agent, patch: () => PatchedTarget): PatchedTarget {
  try {
    return patch();
  } catch (error) {
    agent.close();
    throw error;
  }
}

function patchRunning(request: PatchRequest, arranged: Arranged, callsOf: CallsOf): PatchedTarget {
  const agent = mapByOne(request, arranged, callsOf);
  return keptIfPatched(agent, () => patchMapped(request, agent, arranged, callsOf));
}

function patchMapped(
  request: PatchRequest,
  agent: Agent,
  arranged: Arranged,
  callsOf: CallsOf,
): PatchedTarget {
  const { pid } = request;
  // It may have executed another program meanwhile, in which other things lie where the agent was.
  const removeFrom = (hold: Hold): boolean => !agent.isPresent() || agent.remove(callsOf(hold));
  let ready: Ready;
  let choice: Choice;
  try {
    // Whoever has come meanwhile without our lock (src/linux/process-lock.ts) sees our agent, or is seen by us.
    refuseTraced(pid, request.memory);
    ending.look();
    agent.furnish(arranged.clusters);
    ending.look();
    agent.emit(arranged.clusters);
    ending.look();
    ready = getReady(request, agent, arranged);
    choice = chooseWays(request, ready);
    ending.look();
  } catch (error) {
    withdraw(request, agent, removeFrom);
    throw error;
  }
  const canFlip = choice.held.size === 0;
  const giveUp = (): void => {
    withdraw(request, agent, removeFrom);
  };
  const flipped = canFlip ? flipPages(request, ready, choice, giveUp) : undefined;
  if (flipped !== undefined) return flipped;
  if (canFlip) choice = { flipped: new Set(), held: new Set(arranged.sites.keys()) };
  return withReader((readThreads(pid) ?? []).length, (reader) =>
    holdAndChange(request, ready, choice, canFlip, reader, removeFrom),
  );
}

/** The way for every site. `wasFlipped`: a part of the sites may be changed already. */
function holdAndChange(
  request: PatchRequest,
  ready: Ready,
  choice: Choice,
  wasFlipped: boolean,
  reader: ThreadReader,
  removeFrom: (hold: Hold) => boolean,
): PatchedTarget {
  const { pid, times, memory } = request;
  const { agent, interior } = ready;
  let all: Hold | undefined;
  let changing: Changing | undefined;
  // Threads are in our code, or may be: it is not to be taken away under them.
  const isInUse = (): boolean =>
    wasFlipped ||
    changing?.hasBegun === true ||
    all?.threads.some(({ registers }) => agent.ownsCode(registers.get('rip'))) === true;
  try {
    changing = new Changing(request, ready, choice);
    if (ready.sites.length >= MANY_SITES) collectGarbage();
    // A mapping that is made between this and the hold is missed: its thread's stack is not known at once, no more.
    const maps = readMaps(pid) ?? [];
    awaitUnshared(pid);
    ending.look();
    // Whoever stands within what is overwritten has to be moved, or is looked at once more.
    const mayWait = (registers: Registers): boolean => interior.siteOfCall(registers) === undefined;
    const latches = Latches.in(pid, times.held, agent.thread?.tid ?? 0, mayWait);
    const early = latches.keep(() => lookAt(latches, maps, reader, memory));
    all = Hold.all(pid, times.held, agent.thread?.tid, latches);
    refuseShared(pid);
    change(request, all, ready, changing, maps, reader, early);
    const { threads } = all;
    // Of few threads it takes no time. Of many, what comes before is not recorded, and nobody can have asked for it yet.
    if (threads.length > FEW_THREADS) all.release();
    return settle(request, changing, agent, threads);
  } catch (error) {
    if (isInUse()) agent.abandon();
    else if (all === undefined) withdraw(request, agent, removeFrom);
    else if (!removeFrom(all)) agent.abandon();
    throw error;
  } finally {
    all?.release();
  }
}

/** Maps the agent with one thread held, if the process is one that we can work in at all. */
function mapByOne(request: PatchRequest, arranged: Arranged, callsOf: CallsOf): Agent {
  const { pid, times, seccompFilter } = request;
  Agent.rehearse();
  const tid = anyThread(pid);
  // Looked at before we hold it: a thread that is held is `t`, whatever it was.
  const isStopped = (readStatus(pid, tid)?.get('State') ?? '').startsWith('T');
  const one = holdCaller(pid, tid, times);
  let agent: Agent | undefined;
  try {
    if (seccompFilter) checkSeccomp(pid, one.callableThread().tid, AGENT_CALLS);
    const may = (calls: readonly PlannedCall[]): boolean =>
      !seccompFilter || seccompRefusal(one.callableThread().tid, calls) === undefined;
    // Where job control has stopped the process, the agent's thread could not run.
    agent = mapAgent(request, one, arranged, callsOf, {
      withThread: !isStopped,
      whyTextStays: may(OPEN_TEXT_CALLS) ? undefined : FILTERED,
    });
  } finally {
    releaseOrClose(one, agent);
  }
  return agent;
}

/** A thread that cannot be let go has ended, or worse: nothing comes of the agent then. */
function releaseOrClose(one: Hold, agent: Agent | undefined): void {
  try {
    one.release();
  } catch (error) {
    agent?.close();
    throw error;
  }
}

function mapAgent(
  request: PatchRequest,
  hold: Hold,
  { clusters }: Arranged,
  callsOf: CallsOf,
  thread: Pick<AgentOptions, 'withThread' | 'whyTextStays'>,
): Agent {
  const { pid, memory, modules } = request;
  const { tid } = hold.callableThread();
  const may = (calls: readonly PlannedCall[]): boolean => mayCall(pid, tid, calls);
  const givenUp = rightsToGiveUp(pid, tid, may);
  const mayConfine = may(CONFINEMENT_CALLS);
  const tidOffset = findTidOffset(pid, hold.threads.slice(0, COMPARED_THREADS), memory, modules);
  const calls = callsOf(hold);
  return Agent.map(pid, calls, memory, clusters, {
    ...request.agent,
    tidOffset,
    threadPointer: threadPointerOf(request, hold.threads),
    givenUp,
    mayConfine,
    ...thread,
    withThread: thread.withThread && calls.mayMakeThreads,
  });
}

/** How recorders learn it, by the files and by the threads that are held. */
function threadPointerOf(
  { threadPointersBy, memory }: PatchRequest,
  threads: readonly HeldThread[],
): AgentOptions['threadPointer'] {
  if (threadPointersBy === 'changes') return 'kernel';
  // Threads to come may have none: they would fault where it is read from memory.
  const isSure = threadPointersBy === 'library' && threads.every((thread) => pointsToItself(thread, memory));
  return isSure ? 'memory' : 'register';
}

/** The same by the program's own agent: a program that has not begun waits, the threads of another are called together. */
function patchInside(
  request: PatchRequest,
  { process, hasBegun }: { readonly process: InsideProcess; readonly hasBegun: boolean },
  arranged: Arranged,
): PatchedTarget {
  const { pid, memory } = request;
  const tidOffset = findTidOffset(pid, [process.leader], memory, request.modules);
  // Under the same filters safepoke has made a process: this one.
  const isFree = !request.seccompFilter || hasOurFilters(pid);
  const isLocked = process.memory.mustUnlock ? 'it is locked again after each change' : undefined;
  const whyTextStays = isFree ? isLocked : FILTERED;
  const options = {
    ...request.agent,
    tidOffset,
    threadPointer: threadPointerOf(request, [process.leader]),
    withThread: true,
    // That has been done when the program was loaded.
    givenUp: NOTHING_GIVEN_UP,
    mayConfine: !request.seccompFilter,
    whyTextStays,
  };
  const agent = Agent.map(pid, process.calls, memory, arranged.clusters, options, process.resident);
  return keptIfPatched(agent, () => patchMet(request, process, hasBegun, agent, arranged));
}

/** The same, once there is memory for it. */
function patchMet(
  request: PatchRequest,
  process: InsideProcess,
  hasBegun: boolean,
  agent: Agent,
  arranged: Arranged,
): PatchedTarget {
  const { sites, clusters } = arranged;
  const { pid, times } = request;
  let all: Standstill | undefined;
  try {
    ending.look();
    agent.furnish(clusters);
    agent.emit(clusters);
    ending.look();
    const ready = getReady(request, agent, arranged);
    const choice = chooseWays(request, ready);
    const waiting = new Changing(request, ready, choice);
    return withReader((readThreads(pid) ?? []).length, (reader) => {
      if (hasBegun && sites.length >= MANY_SITES) collectGarbage();
      const maps = readMaps(pid) ?? [];
      if (hasBegun) {
        awaitUnshared(pid);
        all = process.meet(times.held);
        refuseShared(pid);
      }
      const standing = all ?? process.begin();
      const changing = change(request, standing, ready, waiting, maps, reader);
      return settle(request, changing, agent, standing.threads);
    });
  } catch (error) {
    if (agent.isPresent()) agent.remove(process.calls);
    throw error;
  } finally {
    all?.release();
  }
}

/**
 * Tells the agent's thread of the runs of text that can be taken away, before anything is changed, and makes the text writable that is to be.
 */
function prepareText(
  { readOnlyText, onNote }: PatchRequest,
  agent: Agent,
  text: TextRuns,
  opening: readonly OpeningText[],
): TextRuns {
  const why = agent.whyTextStays ?? agent.openText(opening);
  if (why !== undefined && !readOnlyText) {
    onNote(
      `a probe of the kernel (perf probe, bpftrace) that is put on a traced function before safepoke has ended may end the program: ${why}`,
    );
  }
  if (agent.thread === undefined) return NO_TEXT_RUNS;
  agent.writeTextRuns(text);
  // Where memory is locked, the pages would come back unlocked: they are taken away if we die only.
  if (agent.isLocked) return NO_TEXT_RUNS;
  // Nothing has been changed, so that this changes nothing either: it tells whether the kernel does it at all.
  if (agent.thread.restoreText() === 0) return text;
  agent.writeTextRuns([]);
  agent.leaveTextOpen();
  return NO_TEXT_RUNS;
}

/** Takes an agent away of which nothing is in use; where no thread can be held now, a session to come will. */
function withdraw(
  { pid, times, onNote }: PatchRequest,
  agent: Agent,
  removeFrom: (hold: Hold) => boolean,
): void {
  let isGone = false;
  try {
    const one = holdCaller(pid, anyThread(pid, agent.thread?.tid), times, agent.thread?.tid);
    try {
      isGone = removeFrom(one);
    } finally {
      one.release();
    }
  } catch {
    // It is left to its thread then.
  }
  if (isGone) return;
  agent.abandon();
  if (!hasEnded(pid)) onNote(STAYS_MAPPED);
}

/** Of an agent that could not be taken away. */
const STAYS_MAPPED =
  'safepoke’s memory stays in the process, unused: there was no time to take it away, or the process does not let us; it goes when you attach once more';

/** Nobody is held. Writes the journal: whatever happens from now on can be undone. */
function getReady(request: PatchRequest, agent: Agent, { functions, sites }: Arranged): Ready {
  const { pid, memory, seccompFilter, inside } = request;
  const changes = new SiteChanges(
    new Float64Array(sites.length),
    new Uint8Array(sites.length * SITE_LENGTH),
    new Uint8Array(sites.length * SITE_LENGTH),
  );
  let i = 0;
  for (const { stubs } of agent.regions) {
    for (const stub of stubs) {
      changes.addresses[i] = sites[i].address;
      sites[i].putOriginal(changes.expected, i * SITE_LENGTH);
      sites[i].putWanted(changes.wanted, i * SITE_LENGTH, stub);
      i++;
    }
  }
  const pages = pagesOfSites(pid, changes);
  cleanPages(request, agent, pages.whole);
  const runs = agent.thread === undefined ? NO_TEXT_RUNS : planTextRuns(pid, memory, changes, pages);
  const staysShut = request.readOnlyText || agent.whyTextStays !== undefined;
  const opening = staysShut ? [] : planOpening(pid, pages, runs);
  agent.writeJournal(changes.addresses, changes.expected, opening);
  // From inside nothing is half written anyway, and a filter might take offence.
  const { thread } = agent;
  const mayWrite = thread !== undefined && inside === undefined && !seccompFilter;
  const writeWhole = mayWrite ? thread.writeWhole.bind(thread) : undefined;
  // First: it has text that is in use come from the file again, and spans are read after it, so that it is there when threads are held.
  const text = prepareText(request, agent, runs, opening);
  const prepared = PreparedChanges.of(memory, changes, writeWhole);
  return { agent, functions, sites, interior: new Interior(sites), changes, prepared, text, writeWhole };
}

/**
 * Holding all threads once is the price of the first site that needs it; the others are cheapest written in that hold too. A program
 * that has not begun stands still anyway.
 */
function chooseWays(request: PatchRequest, ready: Ready): Choice {
  const { pid, memory, way, inside, threadPointersBy } = request;
  const { agent, sites, changes, text } = ready;
  const none: ReadonlySet<number> = new Set();
  const all = new Set(sites.keys());
  // Of threads that the program may have made each is looked at.
  const mustLook = way === undefined && threadPointersBy === 'program';
  if (way === 'held' || inside !== undefined || mustLook) return { flipped: none, held: all };
  const reached = new PageFlip(pid, agent, memory, text).reaches(changes);
  const flipped = new Set([...reached].filter((i) => sites[i].isOneInstruction));
  if (flipped.size === sites.length) return { flipped, held: none };
  if (way === undefined) return { flipped: none, held: all };
  // A function of which only some sites can be changed so is traced as far as they go: by its entry, or not at all.
  if ([...flipped].some((i) => sites[i].isEntry)) return { flipped, held: none };
  throw new CannotError('NEEDS_HOLD', {
    tried: `change the code of process ${pid} by page flips only`,
    why: 'no function that was asked for has a site of one instruction on a page that can be flipped',
    next: 'leave --way out, or compile with -pg -mfentry -mnop-mcount',
  });
}

/**
 * Changes the sites with nobody held. Undefined: not all could be changed so, and another way may be taken. `giveUp` takes the agent away
 * as long as nothing leads into it.
 */
function flipPages(
  request: PatchRequest,
  ready: Ready,
  choice: Choice,
  giveUp: () => void,
): PatchedTarget | undefined {
  const { agent } = ready;
  // Nobody has looked at the threads. They get lanes when they first record, as threads do that start later.
  const changing = new Changing(request, ready, choice);
  let isUnchanged = false;
  try {
    changing.flip().enable();
    isUnchanged = changing.made === 0;
    if (request.way !== undefined && !changing.hasFunction) throw cannotFlip(request.pid);
    return changing.finish(new Map());
  } catch (error) {
    if (isUnchanged) giveUp();
    // Threads may be in our code by now: its thread turns it back, and the next session takes it away.
    else agent.abandon();
    throw error;
  }
}

function cannotFlip(pid: number): CannotError {
  return new CannotError('NEEDS_HOLD', {
    tried: `change the code of process ${pid} by page flips only`,
    why: 'the kernel would not copy its pages: it has no room for further mappings or pages, or they may not be moved',
    next: 'leave --way out, or give it room: see vm.max_map_count and its limits on memory',
  });
}

/** Why text is not made writable. */
const FILTERED = 'a seccomp filter may keep its text from being made writable, or read-only again';

/** What has been read of threads already. */
interface EarlyLook {
  readonly threads: ReadonlySet<HeldThread>;
  readonly looks: readonly ThreadLook[];
}

const NOT_LOOKED_AT: EarlyLook = { threads: new Set(), looks: [] };

/** Reads of latched threads, while nobody stands still for it, what stays so as long as they wait. */
function lookAt(
  latches: Latches,
  maps: readonly Mapping[],
  reader: ThreadReader,
  memory: TargetMemory,
): EarlyLook {
  const { threads } = latches;
  const looks: ThreadLook[] = [];
  for (let at = 0; at < threads.length; at += LOOKED_AT_ONCE) {
    looks.push(reader.look(threads.slice(at, at + LOOKED_AT_ONCE), maps, memory));
    latches.letWokenGo();
  }
  return { threads: new Set(threads), looks };
}

/** All threads are held: moves them out of the sites, and changes the sites. Nothing is recorded before `settle`. */
function change(
  request: PatchRequest,
  hold: Standstill,
  ready: Ready,
  changing: Changing,
  maps: readonly Mapping[],
  reader: ThreadReader,
  early = NOT_LOOKED_AT,
): Changing {
  const { memory } = request;
  const { agent, interior } = ready;
  const others = hold.threads.filter((thread) => !early.threads.has(thread));
  const looks = [...early.looks, reader.look(others, maps, memory)];
  const pointers = looks.flatMap(({ threadPointers }) => threadPointers);
  // Threads that a program makes without the C library may have none, or share one.
  const areApart = pointers.length === 1 || new Set([0n, ...pointers]).size === pointers.length + 1;
  if (!areApart && !request.seccompFilter) agent.askKernel();
  else if (!looks.every(({ pointToThemselves }) => pointToThemselves)) agent.distrustThreadPointers();
  const rips = looks.flatMap(({ savedInstructionPointers }) => savedInstructionPointers);
  const impossible = leaveSites(hold, interior, rips);
  return changing.flip().write(impossible);
}

/**
 * Gives the threads that are held, or were, lanes, and begins to record. They may run meanwhile: as long as nothing is recorded no thread
 * takes a lane by itself, and one that has ended is found by its id as any other.
 */
function settle(
  { pid, memory }: PatchRequest,
  changing: Changing,
  agent: Agent,
  threads: readonly HeldThread[],
): PatchedTarget {
  const known = knownThreads(pid, threads, agent.tidOffset, memory);
  const assigned = agent.assignLanes(known.map((t) => t.known));
  changing.enable();
  const target = changing.finish(new Map(assigned.map((lane, i) => [lane, known[i].tid])));
  if (target === undefined) throw new Error('what is written while all are held is written or refused');
  return target;
}
