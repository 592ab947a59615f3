// Who traces a process is said by the agent's page, which lies in that process: a target can write there what it likes. It is believed
// only of a process that has the same memory mapped, as whoever made the agent has. So a target can name nobody but its own accomplices;
// such a process can keep a tracer out by ptrace too, the kernel permits one only. The refusal names it, and ending it is enough.
import { readdirSync } from 'node:fs';
import { lockHolders, readMaps, readStartTime, type Mapping } from '../linux/index.js';

/** What an agent's page says: an id, as the tracer knows itself, and a time of start. */
export interface TracerClaim {
  readonly tracerPid: number;
  readonly tracerStart: bigint;
}

/** The process that a claim is true of; undefined: it lives no more, or never was. `shared` is the agent's memory in the target. */
export function tracerOf(claim: TracerClaim, target: number, shared: Mapping): number | undefined {
  const { tracerPid, tracerStart } = claim;
  if (tracerPid !== target && readStartTime(tracerPid) === tracerStart && mayShare(tracerPid, target, shared))
    return tracerPid;
  // In a container it has another id, by which it knows itself.
  return allProcesses().find(
    (pid) => pid !== target && readStartTime(pid) === tracerStart && shares(pid, shared) === true,
  );
}

/**
 * Whose mappings may not be read has more rights than we, and is believed by an unprivileged user; by root, which few have more rights than,
 * if it has the lock besides: a target could else name the one process that root may not look at.
 */
function mayShare(pid: number, target: number, shared: Mapping): boolean {
  const isSharing = shares(pid, shared);
  if (isSharing !== undefined) return isSharing;
  return process.geteuid?.() !== 0 || lockHolders(target).some((holder) => holder.pid === pid);
}

function shares(pid: number, { device, inode }: Mapping): boolean | undefined {
  return readMaps(pid)?.some((m) => m.inode === inode && m.device === device);
}

function allProcesses(): number[] {
  try {
    return readdirSync('/proc')
      .map(Number)
      .filter((pid) => pid > 0);
  } catch {
    return [];
  }
}
