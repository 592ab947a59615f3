// Putting right what a session left behind that was killed. All that tells of it is memory of the target, which may have written it itself: a
// journal is a list of hints. What is unmapped must be what the kernel shows as ours; a site gets the bytes of its file, which the journal
// must agree with, and only if a jump into code of ours stands there.
import {
  AGENT,
  CODE_PATH,
  OPEN_TEXT_CALLS,
  openParts,
  RINGS_PATH,
  SHARED_PATH,
  readAgentPage,
  readJournal,
  sharedLast,
  shuttingCalls,
  type Journal,
} from '../agent/index.js';
import { readdirSync } from 'node:fs';
import { CannotError, ending } from '../errors/index.js';
import { SYS, mappingAt, readLink, readMaps, type Mapping, type RegularFile } from '../linux/index.js';
import { isBlock } from '../inside/index.js';
import {
  Hold,
  RemoteCalls,
  borrowCode,
  mappedFile,
  mayCall,
  pause,
  type HeldThread,
  type HoldTimes,
  type TargetMemory,
} from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { INT3, JMP_REL32, SiteChanges, applyChanges, jumpTarget, restoreUnderBreakpoint } from './patch.js';
import { anyoneInside } from './patched-target.js';
import { tracerOf, type TracerClaim } from './tracer-claim.js';

/** How often to look whether all threads have left the code of the former session, and how long to wait in between. */
const LEAVE_TRIES = 100;
const LEAVE_PAUSE_MS = 10;
/** Sites that are looked at together. */
const SITES_AT_ONCE = 1 << 14;
/** A session that was killed left one or two descriptors. */
const MOST_FILES = 8;
/** Mappings that we take away; honest sessions have a few, and one for each cluster of modules. */
const MOST_RANGES = 4096;

/** How the kernel shows memory of ours that has a name. */
const OUR_PATHS: readonly string[] = [SHARED_PATH, RINGS_PATH, CODE_PATH];

/** Of text that cannot be made read-only again. */
export const STAYS_OPEN =
  'its text stays writable, as it was while functions were traced: a filter, or a rule of the kernel’s, keeps that from being taken back';

/** What was found and undone. */
export interface Recovery {
  /** 0: a session that ended and had to leave its code behind. */
  readonly tracerPid: number;
  readonly sites: number;
  /** Text stays writable, as a filter of the program's minds. */
  readonly leavesTextOpen: boolean;
}

/**
 * Undoes what a session that is no more left in a process: sites, mappings. Undefined if there is
 * nothing of the kind.
 *
 * @throws CannotError ALREADY_TRACED if that session lives; FOREIGN_AGENT if it was of another version; STILL_INSIDE if a signal
 *   handler will return into its code, so that it must stay a little longer
 */
export function recover(pid: number, memory: TargetMemory, times: HoldTimes): Recovery | undefined {
  const maps = readMaps(pid) ?? [];
  // A program that was started from inside keeps its block, which the code that is loaded with it goes on using.
  const isKept = ({ start }: Mapping): boolean => isBlock(memory, start);
  const allShared = maps.filter((m) => m.path === SHARED_PATH || m.path === CODE_PATH);
  const pages = allShared.filter((m) => m.path === SHARED_PATH);
  const shared = pages.find((m) => !isKept(m)) ?? pages.at(0);
  const isInside = shared !== undefined && isKept(shared);
  const files = isInside ? [] : sharedFiles(pid);
  // A forked child has the rest of such memory, without the agent's page; from inside, only the rings.
  const rest = maps.filter((m) => m.path === RINGS_PATH);
  if (shared === undefined && rest.length === 0 && files.length === 0) return undefined;
  const agentAt = shared !== undefined && (isInside || shared.offset === 0) ? shared.start : undefined;
  const tried = `trace process ${pid}`;
  // A session that was killed before its memory was mapped left a file descriptor at most.
  const page =
    agentAt === undefined
      ? { tracerPid: 0, tracerStart: -1n, mapped: [], hasJournal: false }
      : readAgentPage(memory, agentAt);
  const ends = maps.filter((m) => m.path === SHARED_PATH || m.path === RINGS_PATH).map((m) => m.end);
  const textBytes = maps.filter(isFileText).reduce((sum, { start, end }) => sum + end - start, 0);
  const journal = readJournal(memory, agentAt, ends, { textBytes });
  const foreign = new CannotError('FOREIGN_AGENT', {
    tried,
    why: 'another version of safepoke has left code in it, or it says so itself',
    next: 'attach once with that version, which puts everything back, or start the process again',
  });
  if (page === undefined || (page.hasJournal && journal === undefined)) throw foreign;
  refuseTracedBy(pid, page, shared);
  if (isInside && journal === undefined && page.mapped.length === 0) return undefined;
  // The session was about to map or to unmap what it lists: each may be there or not. What is not in the journal has no name.
  const isThere = ({ address, length }: { address: number; length: number }): boolean =>
    address === agentAt ||
    maps.some(
      (m) => m.start === address && (m.path === RINGS_PATH || (m.end === address + length && isReserved(m))),
    );
  const ranges = (journal?.ranges ?? []).filter((range) => isOurs(range, maps, agentAt === undefined));
  for (const range of journal?.ranges ?? [])
    if (!ranges.includes(range) && ranges.some((outer) => isWithin(range, outer))) ranges.push(range);
  const known = new Set(ranges.map(({ address }) => address));
  for (const range of page.mapped.filter(isThere)) {
    if (known.has(range.address) || !isOurs(range, maps, agentAt === undefined)) continue;
    known.add(range.address);
    ranges.push({ ...range, isCode: journal === undefined });
  }
  // The session may have been killed before it had noted what it had just mapped.
  const orphaned = agentAt === undefined ? rest : [];
  for (const { start, end, path } of [...allShared.filter((m) => !isKept(m)), ...orphaned]) {
    const range = { address: start, length: end - start };
    if (ranges.length > MOST_RANGES) break;
    if (!ranges.some((known) => isWithin(range, known)))
      ranges.push({ ...range, isCode: path === CODE_PATH });
  }
  if (ranges.length > MOST_RANGES) throw foreign;
  if (journal !== undefined && !placesOf(journal).every((place) => ranges.some((r) => isWithin(place, r))))
    throw foreign;
  const isCode = (address: bigint): boolean =>
    ranges.some((r) => r.isCode && address >= BigInt(r.address) && address < BigInt(r.address + r.length));
  // By its stack: its code may be that of an object that stays.
  const isAgent = ({ registers }: HeldThread): boolean => {
    const at = Number(registers.get('rsp')) - (agentAt ?? 0);
    return agentAt !== undefined && at > 0 && at <= AGENT.size;
  };
  const borrowed = borrowCode(pid, memory);
  for (let tries = 0; tries < LEAVE_TRIES; tries++) {
    ending.look();
    if (tries > 0) pause(LEAVE_PAUSE_MS);
    const hold = Hold.all(pid, times);
    try {
      // It may have executed another program since the journal was read: nothing of it is left then.
      if (agentAt !== undefined && readAgentPage(memory, agentAt)?.tracerStart !== page.tracerStart)
        return undefined;
      // Once is enough: nobody turns them again.
      if (journal !== undefined && tries === 0) {
        memory.writeWord(journal.control, 0n);
        restoreSites(pid, memory, journal.sites, isCode);
      }
      const others = hold.threads.filter((thread) => !isAgent(thread));
      if (anyoneInside(pid, others, memory, isCode)) continue;
      // The agent's own thread ends by itself, now that its tracer has.
      if (agentAt !== undefined && others.length < hold.threads.length) {
        memory.writeWord(agentAt + AGENT.control, 0n);
        continue;
      }
      const calls = new RemoteCalls(pid, hold.callableThread(), memory, borrowed);
      if (agentAt !== undefined) memory.writeWord(agentAt + AGENT.journal, 0n);
      if (isInside && agentAt !== undefined) memory.writeWord(agentAt + AGENT.mappedCount, 0n);
      const texts = mayCall(pid, calls.tid, OPEN_TEXT_CALLS) ? (journal?.texts ?? []) : [];
      calls.run((call) => {
        for (const [number, ...args] of shuttingCalls(pid, texts)) call(number, ...args);
        for (const { address, length } of sharedLast(ranges, shared?.start ?? 0))
          call(SYS.munmap, address, length);
        for (const file of files) call(SYS.close, file);
      });
      const leavesTextOpen = openParts(pid, journal?.texts ?? []).length > 0;
      return { tracerPid: page.tracerPid, sites: journal?.sites.addresses.length ?? 0, leavesTextOpen };
    } finally {
      hold.release();
    }
  }
  throw new CannotError('STILL_INSIDE', {
    tried,
    why: 'a signal handler of it will return into code of a session that was killed',
    next: 'try again in a moment; its functions have their own code back already',
  });
}

/** True if nobody but a target itself can have put such a mapping where its file's text is. */
function isFileText({ permissions, path }: Mapping): boolean {
  return permissions.includes('x') && path.startsWith('/');
}

interface Range {
  readonly address: number;
  readonly length: number;
}

function isWithin(inner: Range, outer: Range): boolean {
  return inner.address >= outer.address && inner.address + inner.length <= outer.address + outer.length;
}

/** Where a journal makes us write, besides sites. */
function placesOf({ control }: Journal): Range[] {
  return [{ address: control, length: 8 }];
}

/**
 * True if the kernel shows memory of ours over a whole range: a mapping of it begins there, and nothing is behind but more of it and what has no
 * name, which is ours as well. What was reserved has no name at all. A child of a fork lacks the agent's page, with which the shared range begins.
 */
function isOurs({ address, length }: Range, maps: readonly Mapping[], isChild: boolean): boolean {
  const whole = mappingAt(maps, address);
  const first = whole < 0 && isChild ? mappingAt(maps, address + AGENT.size) : whole;
  if (first < 0 || maps[first].start !== (whole < 0 ? address + AGENT.size : address)) return false;
  if (maps[first].end === address + length && isReserved(maps[first])) return true;
  if (!OUR_PATHS.includes(maps[first].path)) return false;
  for (let i = first; i < maps.length && maps[i].start < address + length; i++) {
    const { path, inode } = maps[i];
    if (!OUR_PATHS.includes(path) && (inode !== 0 || (path !== '' && !path.startsWith('[anon'))))
      return false;
  }
  return true;
}

function refuseTracedBy(pid: number, page: TracerClaim, shared: Mapping | undefined): void {
  const tracer = shared === undefined ? undefined : tracerOf(page, pid, shared);
  if (tracer === undefined) return;
  throw new CannotError('ALREADY_TRACED', {
    tried: `trace process ${pid}`,
    why: `another safepoke, process ${tracer}, traces it`,
    next: 'end that one first',
  });
}

/** Refuses a process in which the agent of another's session is that goes on. @throws CannotError ALREADY_TRACED */
export function refuseTraced(pid: number, memory: TargetMemory): void {
  for (const shared of (readMaps(pid) ?? []).filter((m) => m.path === SHARED_PATH)) {
    const page = readAgentPage(memory, shared.start);
    if (page !== undefined && page.tracerPid !== process.pid) refuseTracedBy(pid, page, shared);
  }
}

/** True if a mapping may be address space that was reserved for copies of text, or such a copy. */
function isReserved({ permissions, path }: Mapping): boolean {
  return (permissions === '---p' && path === '') || permissions === 'r-xp' || permissions === 'rwxp';
}

/** Descriptors of memory of ours that a session had no time to close. */
function sharedFiles(pid: number): number[] {
  try {
    return readdirSync(`/proc/${pid}/fd`)
      .map(Number)
      .filter((fd) => [SHARED_PATH, CODE_PATH].includes(readLink(`/proc/${pid}/fd/${fd}`) ?? ''))
      .slice(0, MOST_FILES);
  } catch {
    return [];
  }
}

/** Bytes of text that the file has where sites are; undefined: it cannot be read. */
class FileBytes {
  readonly #pid: number;
  readonly #maps: readonly Mapping[];
  #index = -1;
  #file: RegularFile | undefined;

  constructor(pid: number) {
    this.#pid = pid;
    this.#maps = readMaps(pid) ?? [];
  }

  /** Whole sites only: none lies across two mappings of different files. */
  at(address: number): Uint8Array | undefined {
    const index = mappingAt(this.#maps, address);
    if (index < 0 || !isFileText(this.#maps[index])) return undefined;
    if (index !== this.#index) {
      this.#index = index;
      this.#file = mappedFile(this.#pid, this.#maps[index]);
    }
    const { start, offset } = this.#maps[index];
    const bytes = new Uint8Array(SITE_LENGTH);
    return this.#file?.read(bytes, offset + address - start) === SITE_LENGTH ? bytes : undefined;
  }
}

/**
 * Turns back each site that still leads into that session's code; what somebody else has put there since is left
 * alone. What is put there is what the file has: a journal that says something else is not believed.
 *
 * @throws CannotError UNPROVEN_SITE
 */
function restoreSites(
  pid: number,
  memory: TargetMemory,
  { addresses, originals }: Journal['sites'],
  isCode: (address: bigint) => boolean,
): void {
  const files = new FileBytes(pid);
  const isOurTarget = (at: number): boolean => isCode(BigInt(at));
  for (let from = 0; from < addresses.length; from += SITES_AT_ONCE) {
    const changes: { address: number; expected: Uint8Array; wanted: Uint8Array }[] = [];
    const some = [...addresses.subarray(from, from + SITES_AT_ONCE)];
    const current = memory.readMany(some.map((address) => ({ address, length: SITE_LENGTH })));
    some.forEach((address, i) => {
      const site = from + i;
      // A breakpoint may stand in the place of the first byte.
      const target = jumpTarget(address, withJump(current[i]));
      if (target === undefined || !isOurTarget(target)) return;
      const wanted = originals.slice(site * SITE_LENGTH, (site + 1) * SITE_LENGTH);
      if (Buffer.compare(files.at(address) ?? new Uint8Array(), wanted) !== 0) throw unproven(pid, address);
      if (restoreUnderBreakpoint(memory, address, wanted, isOurTarget)) return;
      if (jumpTarget(address, current[i]) === target) changes.push({ address, expected: current[i], wanted });
    });
    applyChanges(memory, SiteChanges.of(changes));
  }
}

/** The bytes as they are if a jump stands there, or stood there before a breakpoint came. */
function withJump(bytes: Uint8Array): Uint8Array {
  return bytes[0] === INT3 ? Uint8Array.of(JMP_REL32, ...bytes.subarray(1)) : bytes;
}

function unproven(pid: number, address: number): CannotError {
  return new CannotError('UNPROVEN_SITE', {
    tried: `put back what a session has changed in process ${pid} that was killed`,
    why: `what it has noted of the code at 0x${address.toString(16)} is not what the file has, or the file cannot be read`,
    next: 'start the process again; if its file was replaced, attach as root, who can read the one that is mapped',
  });
}
