// Keeps two tracers of ours out of one process.
//
// The lock is a flock(2) on the target's own /proc/PID/mem. Nothing of it has a name that could be taken first, stands in a folder, or is
// left behind: only who may trace a process can open that file (ptrace(2), PTRACE_MODE_ATTACH), so nobody else can lock it; users, mount
// and network namespaces that see the same /proc meet there; the kernel unlocks it when its holder dies, of whatever, and it is gone with
// the process, so that an id that is used again is another file.
//
// Who may trace the target can hold the lock and never give it back: its own user, and the target itself. So the rule:
//
//   1. Whoever gets the lock goes on.
//   2. Whoever does not looks at who has it (/proc/locks, and whether that process has the file locked, /proc/PID/fdinfo: an id there may
//      be that of one which has ended, and be another's by now).
//   3. It is refused if one that has it is no less than itself: an unprivileged user by anybody, root by root. The refusal names it.
//   4. Nobody is kept out for ever by a holder that has ended (a child of its has the file still), nor root by a holder with the rights of
//      an unprivileged target: after a moment, in which an honest session begins or leaves, they go on without the lock.
//
// So the lock alone is no proof, nor is it with a /proc of another mount, as containers have. Who goes on therefore looks for the agent of
// a session that lives once more when its own is there, before it changes anything (src/trace/recovery.ts): of two at least the later sees
// the other, and leaves.
import { closeSync, openSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { deviceText, readStatus } from './proc.js';
import { ERRNO, SYS, systemCall } from './system-call.js';

/** include/uapi/asm-generic/fcntl.h */
const LOCK_EX = 2;
const LOCK_NB = 4;
/** What a user's id is called who has all rights. */
const ROOT = 0;

/** A process that holds a lock. */
export interface LockHolder {
  readonly pid: number;
  /** Its effective user. */
  readonly uid: number;
}

const fileOf = (pid: number): string => `/proc/${pid}/mem`;

export class ProcessLock {
  #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * Locks a process. Undefined: somebody else has. Where it cannot be opened it cannot be traced either, and where there are no locks
   * nobody is kept out.
   */
  static take(pid: number): ProcessLock | undefined {
    let fd: number;
    try {
      // Node opens with O_CLOEXEC: nothing that this process starts has the lock.
      fd = openSync(fileOf(pid), 'r');
    } catch {
      return ProcessLock.none();
    }
    if (systemCall(SYS.flock, fd, LOCK_EX | LOCK_NB) !== -ERRNO.EWOULDBLOCK) return new ProcessLock(fd);
    closeSync(fd);
    return undefined;
  }

  /** No lock: of whoever goes on without it. */
  static none(): ProcessLock {
    return new ProcessLock(-1);
  }

  release(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }
}

/** Processes that hold a process's lock. None: whoever has taken it has ended, or gives it back just now. */
export function lockHolders(pid: number): LockHolder[] {
  let locks: string;
  let file: string;
  try {
    locks = readFileSync('/proc/locks', 'latin1');
    const { dev, ino } = statSync(fileOf(pid));
    file = `${deviceText(dev)}:${ino}`;
  } catch {
    return [];
  }
  const holders: LockHolder[] = [];
  for (const [, holder, locked] of locks.matchAll(/^\d+: FLOCK +\S+ +\S+ +(\d+) (\S+) /gm)) {
    if (locked !== file || !mayHold(Number(holder), file)) continue;
    const uid = effectiveUser(Number(holder));
    if (uid !== undefined) holders.push({ pid: Number(holder), uid });
  }
  return holders;
}

/** A holder that keeps this process out of a target; undefined: none does for longer than a moment. */
export function rightfulHolder(target: number, holders: readonly LockHolder[]): LockHolder | undefined {
  const targetUser = effectiveUser(target);
  return holders.find(({ uid }) => process.geteuid?.() !== ROOT || targetUser === ROOT || uid !== targetUser);
}

/** Not the owner of /proc/PID: that is root's where a process must not be dumped, which every process can say of itself. */
export function effectiveUser(pid: number): number | undefined {
  const uid = readStatus(pid)?.get('Uid')?.split(/\s+/).at(1);
  return uid === undefined ? undefined : Number(uid);
}

/** False if a process certainly has not locked a file: its descriptors can be seen, and none of them has. */
function mayHold(pid: number, file: string): boolean {
  const folder = `/proc/${pid}/fdinfo`;
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOENT';
  }
  return names.some((name) => {
    try {
      return readFileSync(`${folder}/${name}`, 'latin1').includes(` ${file} `);
    } catch (error) {
      return (error as NodeJS.ErrnoException).code !== 'ENOENT';
    }
  });
}
