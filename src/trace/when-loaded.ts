import { hasEnded } from '../linux/index.js';
import { Loader, OutsideMemory, readModules, type TargetMemory } from '../target/index.js';

const POLL_MS = 1;

/**
 * Resolves when the dynamic loader of a process has done its work, as it must before the process is attached to right after
 * execve: what is loaded later is not prepared for exceptions. False: the process has ended.
 */
export async function whenLoaded(pid: number): Promise<boolean> {
  let before: string | undefined;
  for (;;) {
    if (hasEnded(pid)) return false;
    const now = loadedIn(pid);
    // Twice the same: the loader calls itself consistent for a moment before it begins.
    if (now !== undefined && now === before) return true;
    before = now;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

/** What is loaded, as a text to compare; undefined while that is not settled. */
function loadedIn(pid: number): string | undefined {
  let memory: TargetMemory;
  try {
    memory = new OutsideMemory(pid);
  } catch {
    return undefined;
  }
  try {
    const executable = readModules(pid).modules.at(0);
    if (executable?.isExecutable !== true) return undefined;
    const loader = Loader.of(memory, executable);
    if (loader === undefined) return `${executable.path} alone`;
    return loader.loaded()?.join();
  } finally {
    memory.close();
  }
}
