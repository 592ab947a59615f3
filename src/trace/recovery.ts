// Putting right what a session left behind that was killed.
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
import { CannotError } from '../errors/index.js';
import { SYS, readLink, readMaps, readStartTime, type Mapping } from '../linux/index.js';
import { isBlock } from '../inside/index.js';
import {
  Hold,
  RemoteCalls,
  borrowCode,
  mayCall,
  pause,
  type HeldThread,
  type HoldTimes,
  type TargetMemory,
} from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { SiteChanges, applyChanges, jumpTarget, restoreUnderBreakpoint } from './patch.js';
import { anyoneInside } from './patched-target.js';

/** How often to look whether all threads have left the code of the former session, and how long to wait in between. */
const LEAVE_TRIES = 100;
const LEAVE_PAUSE_MS = 10;

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
  if (shared === undefined && files.length === 0) return undefined;
  const tried = `trace process ${pid}`;
  // A session that was killed before its memory was mapped left a file descriptor at most.
  const page =
    shared === undefined
      ? { tracerPid: 0, tracerStart: -1n, mapped: [], hasJournal: false }
      : readAgentPage(memory, shared.start);
  const ends = maps.filter((m) => m.path === SHARED_PATH || m.path === RINGS_PATH).map((m) => m.end);
  const journal = shared === undefined ? undefined : readJournal(memory, shared.start, ends);
  if (page === undefined || (page.hasJournal && journal === undefined)) {
    throw new CannotError('FOREIGN_AGENT', {
      tried,
      why: 'another version of safepoke has left code in it',
      next: 'attach once with that version, which puts everything back, or start the process again',
    });
  }
  refuseTracedBy(pid, page);
  if (isInside && journal === undefined && page.mapped.length === 0) return undefined;
  // The session was about to map or to unmap what it lists: each may be there or not. What is not in the journal has no name.
  const isThere = ({ address, length }: { address: number; length: number }): boolean =>
    address === shared?.start ||
    maps.some(
      (m) => m.start === address && (m.path === RINGS_PATH || (m.end === address + length && isReserved(m))),
    );
  const ranges = [...(journal?.ranges ?? [])];
  for (const range of page.mapped.filter(isThere)) {
    if (!ranges.some(({ address }) => address === range.address))
      ranges.push({ ...range, isCode: journal === undefined });
  }
  // The session may have been killed before it had noted what it had just mapped.
  for (const { start, end, path } of allShared.filter((m) => !isKept(m))) {
    if (!ranges.some((r) => r.address === start))
      ranges.push({ address: start, length: end - start, isCode: path === CODE_PATH });
  }
  const isCode = (address: bigint): boolean =>
    ranges.some((r) => r.isCode && address >= BigInt(r.address) && address < BigInt(r.address + r.length));
  // By its stack: its code may be that of an object that stays.
  const isAgent = ({ registers }: HeldThread): boolean => {
    const at = Number(registers.get('rsp')) - (shared?.start ?? 0);
    return at > 0 && at <= AGENT.size;
  };
  const borrowed = borrowCode(pid, memory);
  for (let tries = 0; tries < LEAVE_TRIES; tries++) {
    if (tries > 0) pause(LEAVE_PAUSE_MS);
    const hold = Hold.all(pid, times);
    try {
      // It may have executed another program since the journal was read: nothing of it is left then.
      if (shared !== undefined && readAgentPage(memory, shared.start)?.tracerStart !== page.tracerStart)
        return undefined;
      // Once is enough: nobody turns them again.
      if (journal !== undefined && tries === 0) {
        memory.writeWord(journal.control, 0n);
        restoreSites(memory, journal.sites, isCode);
      }
      const others = hold.threads.filter((thread) => !isAgent(thread));
      if (anyoneInside(pid, others, memory, isCode)) continue;
      // The agent's own thread ends by itself, now that its tracer has.
      if (shared !== undefined && others.length < hold.threads.length) {
        memory.writeWord(shared.start + AGENT.control, 0n);
        continue;
      }
      const calls = new RemoteCalls(pid, hold.callableThread(), memory, borrowed);
      if (shared !== undefined) memory.writeWord(shared.start + AGENT.journal, 0n);
      if (isInside) memory.writeWord(shared.start + AGENT.mappedCount, 0n);
      const texts = mayCall(pid, calls.tid, OPEN_TEXT_CALLS) ? (journal?.texts ?? []) : [];
      calls.run((call) => {
        for (const [number, ...args] of shuttingCalls(pid, texts)) call(number, ...args);
        for (const { address, length } of sharedLast(ranges, shared?.start ?? 0))
          call(SYS.munmap, address, length);
        for (const file of files) call(SYS.close, file);
      });
      const leavesTextOpen = openParts(pid, journal?.texts ?? []).length > 0;
      return { tracerPid: page.tracerPid, sites: journal?.sites.length ?? 0, leavesTextOpen };
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

function refuseTracedBy(
  pid: number,
  { tracerPid, tracerStart }: { readonly tracerPid: number; readonly tracerStart: bigint },
): void {
  if (readStartTime(tracerPid) !== tracerStart) return;
  throw new CannotError('ALREADY_TRACED', {
    tried: `trace process ${pid}`,
    why: `another safepoke, process ${tracerPid}, traces it`,
    next: 'end that one first',
  });
}

/** Refuses a process in which the agent of a session is that goes on. @throws CannotError ALREADY_TRACED */
export function refuseTraced(pid: number, memory: TargetMemory): void {
  for (const { start } of (readMaps(pid) ?? []).filter((m) => m.path === SHARED_PATH)) {
    const page = readAgentPage(memory, start);
    if (page !== undefined) refuseTracedBy(pid, page);
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
      .filter((fd) => [SHARED_PATH, CODE_PATH].includes(readLink(`/proc/${pid}/fd/${fd}`) ?? ''));
  } catch {
    return [];
  }
}

/** Turns back each site that still leads into that session's code; what somebody else has put there since is left alone. */
function restoreSites(
  memory: TargetMemory,
  sites: Journal['sites'],
  isCode: (address: bigint) => boolean,
): void {
  const changes = [];
  for (const { address, original } of [...sites].sort((a, b) => a.address - b.address)) {
    const current = memory.readSome(address, SITE_LENGTH);
    if (restoreUnderBreakpoint(memory, address, original, (at) => isCode(BigInt(at)))) continue;
    const target = jumpTarget(address, current);
    if (target === undefined || !isCode(BigInt(target))) continue;
    changes.push({ address, expected: current, wanted: original });
  }
  applyChanges(memory, SiteChanges.of(changes));
}
