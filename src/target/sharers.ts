// Processes that share the target's memory without being its threads are not held when its threads are: they could be in the middle
// of what is changed. Where they have no thread block of their own, they and their parent would also be taken for one thread.
import { CannotError, ending } from '../errors/index.js';
import { processesSharing } from '../linux/index.js';
import { pause } from './stops.js';

/** A child of vfork shares memory until it executes a program, as a rule at once. */
const PATIENCE_MS = 2000;
const POLL_MS = 5;

/**
 * Waits until those that share the target's memory now do so no more. Others may have come meanwhile: a thread that waits for its
 * vfork child is not held before the child is done. @throws CannotError SHARED_MEMORY
 */
export function awaitUnshared(pid: number): void {
  const since = performance.now();
  let first = processesSharing(pid);
  while (first.length > 0 && performance.now() - since < PATIENCE_MS) {
    ending.look();
    pause(POLL_MS);
    const still = new Set(processesSharing(pid));
    first = first.filter((other) => still.has(other));
  }
  if (first.length > 0) throw sharedMemory(pid, first[0]);
}

/** Its threads are held, so that no other process can come to share their memory. @throws CannotError SHARED_MEMORY */
export function refuseShared(pid: number): void {
  const other = processesSharing(pid).at(0);
  if (other !== undefined) throw sharedMemory(pid, other);
}

function sharedMemory(pid: number, other: number): CannotError {
  return new CannotError('SHARED_MEMORY', {
    tried: `trace process ${pid}`,
    why: `process ${other} shares its memory without being a thread of it (clone with CLONE_VM), and would execute what is being changed`,
    next: `try again when process ${other} has ended, or has executed a program`,
  });
}
