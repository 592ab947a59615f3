// Files that somebody else chooses: he may put a FIFO, a device or a lease there, on which opening waits or does something, and may
// change or shorten them while they are read.
import { closeSync, constants, fstatSync, openSync, readSync, type Stats } from 'node:fs';
import { withRoom } from './descriptors.js';
import { MAP, O_CLOEXEC, O_PATH, PAGE, PROT } from './abi.js';
import { deviceText, mappingAt, readMaps, type Mapping } from './proc.js';
import { mapOwn } from './system-call.js';

const { O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants;

/** As many as are looked at in turn, far below any limit on descriptors. */
const MOST_OPEN = 16;

/** Why a file is not read that is there. */
export class NotRegularError extends Error {
  constructor(facts: Stats) {
    super(`it is ${kindOf(facts)}`);
  }
}

function kindOf(facts: Stats): string {
  if (facts.isDirectory()) return 'a directory';
  if (facts.isFIFO()) return 'a FIFO';
  if (facts.isSocket()) return 'a socket';
  if (facts.isSymbolicLink()) return 'a symbolic link';
  return 'a device';
}

/**
 * Opens a file for reading if it is a regular one. It is looked at before it is opened, through a descriptor that opens nothing, and it is that
 * very file which is opened then.
 *
 * @throws NotRegularError; Error with an errno's name as `code`
 */
function openRegular(path: string | Buffer, follow: boolean): { readonly fd: number; readonly facts: Stats } {
  const place = withRoom(() => openSync(path, O_PATH | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW)));
  try {
    const facts = fstatSync(place);
    if (!facts.isFile()) throw new NotRegularError(facts);
    // Without O_NONBLOCK a lease of somebody else's would keep us waiting.
    const flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    return { fd: withRoom(() => openSync(`/proc/self/fd/${place}`, flags)), facts };
  } finally {
    closeSync(place);
  }
}

/**
 * A regular file of which parts are read when they are wanted. Between that it need not be open: it is opened again then, and is the same
 * file or none. All are closed when the event loop goes on.
 */
export class RegularFile {
  /** Bytes, when it was first opened: what it may have been made longer by is not read. */
  readonly size: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly #path: string | Buffer;
  readonly #follow: boolean;
  readonly #facts: Stats;
  #fd: number | undefined;

  private constructor(path: string | Buffer, follow: boolean) {
    this.#path = path;
    this.#follow = follow;
    const { fd, facts } = openRegular(path, follow);
    this.#facts = facts;
    ({ size: this.size, mode: this.mode, uid: this.uid, gid: this.gid } = facts);
    this.#keep(fd);
  }

  /** @throws NotRegularError; Error with an errno's name as `code` */
  static open(path: string | Buffer, { follow = true } = {}): RegularFile {
    return new RegularFile(path, follow);
  }

  /** Fills `into` from `offset`; fewer bytes where the file ends, has become shorter, or cannot be read any more. */
  read(into: Uint8Array, offset: number): number {
    const wanted = Math.min(into.length, this.size - offset);
    let done = 0;
    try {
      const fd = this.#open();
      while (done < wanted) {
        const count = readSync(fd, into, done, wanted - done, offset + done);
        if (count === 0) break;
        done += count;
      }
    } catch {
      // What has been read tells how far it went.
    }
    return done;
  }

  /** True if it is what is mapped there. */
  isMappedAs(mapping: Mapping): boolean {
    const { ino, dev } = this.#facts;
    if (ino !== mapping.inode) return false;
    if (deviceText(dev) === mapping.device) return true;
    // Some file systems (btrfs, overlayfs) tell of a file another device than of its mappings. So we map it ourselves, and compare that.
    return isSameFile(ownMapping(this.#open()), mapping);
  }

  #open(): number {
    if (this.#fd !== undefined) return this.#fd;
    const { fd, facts } = openRegular(this.#path, this.#follow);
    this.#keep(fd);
    if (facts.ino !== this.#facts.ino || facts.dev !== this.#facts.dev) {
      this.#close();
      throw new Error('another file is in its place');
    }
    return fd;
  }

  #keep(fd: number): void {
    if (kept.size === 0) {
      setImmediate(() => {
        for (const file of kept) file.#close();
      });
    }
    for (const oldest of kept) {
      if (kept.size < MOST_OPEN) break;
      oldest.#close();
    }
    kept.add(this);
    this.#fd = fd;
  }

  #close(): void {
    kept.delete(this);
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** Those that are open, oldest first. */
const kept = new Set<RegularFile>();

/** True if two mappings are of one file. */
function isSameFile(a: Mapping | undefined, b: Mapping): boolean {
  return a !== undefined && a.inode === b.inode && a.device === b.device;
}

/** How the kernel shows a mapping of the file; nothing of it is touched. Undefined where it cannot be mapped. */
function ownMapping(fd: number): Mapping | undefined {
  try {
    const own = mapOwn(PAGE, PROT.read, MAP.private, fd);
    try {
      const maps = readMaps(process.pid) ?? [];
      const index = mappingAt(maps, Number(own.address));
      return index < 0 ? undefined : maps[index];
    } finally {
      own.unmap();
    }
  } catch {
    return undefined;
  }
}
