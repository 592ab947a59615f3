// Putting right what a session left behind that was killed.
import { SHARED_PATH, readJournal, restoreReturnAddresses, type Journal } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import { SYS, readMaps, readStartTime } from '../linux/index.js';
import {
  Hold,
  RemoteCalls,
  findSyscallInstruction,
  type HoldTimes,
  type TargetMemory,
} from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { applyChanges, jumpTarget, restoreUnderBreakpoint } from './patch.js';
import { MAX_STEPS_OUT } from './patched-target.js';
import { findSavedInstructionPointers } from './thread-facts.js';

/** What was found and undone. */
export interface Recovery {
  /** 0: a session that ended and had to leave its code behind. */
  readonly tracerPid: number;
  readonly sites: number;
}

/**
 * Undoes what a session that is no more left in a process: sites, swapped return addresses, mappings. Undefined if there is
 * nothing of the kind.
 *
 * @throws CannotError ALREADY_TRACED if that session lives; FOREIGN_AGENT if it was of another version; STILL_INSIDE if a signal
 *   handler will return into its code, so that it must stay a little longer
 */
export function recover(pid: number, memory: TargetMemory, times: HoldTimes): Recovery | undefined {
  const shared = (readMaps(pid) ?? []).find((m) => m.path === SHARED_PATH);
  if (shared === undefined) return undefined;
  const tried = `trace process ${pid}`;
  const journal = readJournal(memory, shared.start);
  if (journal === undefined) {
    throw new CannotError('FOREIGN_AGENT', {
      tried,
      why: 'another version of safepoke has left code in it',
      next: 'attach once with that version, which puts everything back, or start the process again',
    });
  }
  if (readStartTime(journal.tracerPid) === journal.tracerStart) {
    throw new CannotError('ALREADY_TRACED', {
      tried,
      why: `another safepoke, process ${journal.tracerPid}, traces it`,
      next: 'end that one first',
    });
  }
  const isCode = (address: bigint): boolean =>
    journal.ranges.some(
      (r) => r.isCode && address >= BigInt(r.address) && address < BigInt(r.address + r.length),
    );
  const syscallInstruction = findSyscallInstruction(pid, memory);
  const hold = Hold.all(pid, times);
  try {
    // It may have executed another program since the journal was read: nothing of it is left then.
    if (readJournal(memory, shared.start) === undefined) return undefined;
    memory.writeWord(journal.control, 0n);
    restoreSites(memory, journal, isCode);
    for (const thread of hold.threads) hold.stepUntil(thread, (rip) => !isCode(rip), MAX_STEPS_OUT);
    restoreReturnAddresses(memory, journal);
    const maps = readMaps(pid) ?? [];
    const isInside = hold.threads.some(
      (thread) =>
        isCode(thread.registers.get('rip')) ||
        findSavedInstructionPointers(thread, maps, memory).some(({ rip }) => isCode(BigInt(rip))),
    );
    if (isInside) {
      throw new CannotError('STILL_INSIDE', {
        tried,
        why: 'a signal handler of it will return into code of a session that was killed',
        next: 'try again in a moment; its functions have their own code back already',
      });
    }
    new RemoteCalls(hold.callableThread(), memory, syscallInstruction).run((call) => {
      for (const { address, length } of journal.ranges) call(SYS.munmap, address, length);
    });
  } finally {
    hold.release();
  }
  return { tracerPid: journal.tracerPid, sites: journal.sites.length };
}

/** Turns back each site that still leads into that session's code; what somebody else has put there since is left alone. */
function restoreSites(memory: TargetMemory, journal: Journal, isCode: (address: bigint) => boolean): void {
  const changes = [];
  for (const { address, original } of [...journal.sites].sort((a, b) => a.address - b.address)) {
    const current = memory.readSome(address, SITE_LENGTH);
    if (restoreUnderBreakpoint(memory, address, original, (at) => isCode(BigInt(at)))) continue;
    const target = jumpTarget(address, current);
    if (target === undefined || !isCode(BigInt(target))) continue;
    changes.push({ address, expected: current, wanted: original });
  }
  applyChanges(memory, changes);
}
