// Processes that share the target's memory without being its threads are not held when its threads are: they could be in the middle
// of what is changed. Where they have no thread block of their own, they and their parent would also be taken for one thread.
import { CannotError } from '../errors/index.js';
import { processesSharing } from '../linux/index.js';
import { pause } from './hold.js';

/** A child of vfork shares memory until it executes a program, as a rule at once. */
const PATIENCE_MS = 2000;
const POLL_MS = 5;

/** Waits until no process shares the target's memory. @throws CannotError SHARED_MEMORY */
export function awaitUnshared(pid: number): void {
  const since = performance.now();
  while (performance.now() - since < PATIENCE_MS) {
    if (processesSharing(pid).length === 0) return;
    pause(POLL_MS);
  }
  refuseShared(pid);
}

/** Its threads are held, so that no other process can come to share their memory. @throws CannotError SHARED_MEMORY */
export function refuseShared(pid: number): void {
  const other = processesSharing(pid).at(0);
  if (other === undefined) return;
  throw new CannotError('SHARED_MEMORY', {
    tried: `trace process ${pid}`,
    why: `process ${other} shares its memory without being a thread of it (clone with CLONE_VM), and would execute what is being changed`,
    next: `try again when process ${other} has ended, or has executed a program`,
  });
}
