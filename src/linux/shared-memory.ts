import { readdirSync } from 'node:fs';
import { withRoom } from './descriptors.js';
import { hasEnded, readThreads } from './proc.js';
import { SYS, systemCall } from './system-call.js';

/** include/uapi/linux/kcmp.h */
const KCMP_VM = 1;

/**
 * Processes that have their memory in common with this one without being its threads (clone with CLONE_VM, without CLONE_THREAD):
 * a child of vfork, until it executes a program, or one made by hand. None where the kernel does not tell (kcmp), and none once it has
 * ended: whoever has no memory any more has it in common with all that have none.
 */
export function processesSharing(pid: number): number[] {
  const living = (readThreads(pid) ?? []).find((tid) => !hasEnded(pid, tid));
  if (living === undefined) return [];
  let all: string[];
  try {
    all = withRoom(() => readdirSync('/proc'));
  } catch {
    return [];
  }
  return all
    .map(Number)
    .filter((other) => other > 0 && other !== pid && systemCall(SYS.kcmp, living, other, KCMP_VM) === 0);
}
