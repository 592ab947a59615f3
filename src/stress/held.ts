// Changes from outside: all threads of the process are held by ptrace, and none of them runs while the code changes.
import { setImmediate } from 'node:timers/promises';
import { Hold, HoldTimes, OutsideMemory, type TargetMemory } from '../target/index.js';
import type { SharedBlock } from './child.js';
import type { Change } from './executable.js';

const START_POLL_MS = 1;
const NS_PER_MS = 1e6;

/** What the changes took, each from the first request to stop to the last thread let go. */
export interface HeldTimes {
  readonly totalNs: number;
  readonly longestNs: number;
}

/** Makes changes until `isOver`, or until the process has ended. */
export async function changeHeld(
  pid: number,
  shared: SharedBlock,
  changes: readonly Change[],
  isOver: () => boolean,
): Promise<HeldTimes> {
  while (!shared.hasStarted && !isOver()) await pauseMs(START_POLL_MS);
  const times = new HoldTimes();
  let totalNs = 0;
  let longestNs = 0;
  let memory: TargetMemory | undefined;
  try {
    memory = new OutsideMemory(pid);
    for (let next = 0; !isOver(); next = (next + 1) % changes.length) {
      const { site, oldCode, newCode } = changes[next];
      const began = performance.now();
      const hold = Hold.all(pid, times);
      try {
        const found = memory.read(site, oldCode.length);
        if (!found.every((byte, i) => byte === oldCode[i])) shared.noteRefusal();
        memory.write(site, newCode);
      } finally {
        hold.release();
      }
      const ns = (performance.now() - began) * NS_PER_MS;
      totalNs += ns;
      longestNs = Math.max(longestNs, ns);
      shared.noteModification();
      await setImmediate();
    }
  } catch (error) {
    // A process that has ended, which is what its exit tells better; everything else is an error.
    if (!isOver() && !shared.hasFinished) await pauseMs(START_POLL_MS);
    if (!isOver() && !shared.hasFinished) throw error;
  } finally {
    memory?.close();
  }
  return { totalNs, longestNs };
}

function pauseMs(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
