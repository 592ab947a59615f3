import { readdirSync } from 'node:fs';
import { withRoom } from './descriptors.js';
import { SYS, systemCall } from './system-call.js';

/** include/uapi/linux/kcmp.h */
const KCMP_VM = 1;

/**
 * Processes that have their memory in common with this one without being its threads (clone with CLONE_VM, without CLONE_THREAD):
 * a child of vfork, until it executes a program, or one made by hand. None where the kernel does not tell (kcmp).
 */
export function processesSharing(pid: number): number[] {
  let all: string[];
  try {
    all = withRoom(() => readdirSync('/proc'));
  } catch {
    return [];
  }
  return all
    .map(Number)
    .filter((other) => other > 0 && other !== pid && systemCall(SYS.kcmp, pid, other, KCMP_VM) === 0);
}
