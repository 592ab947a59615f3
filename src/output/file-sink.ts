// Files that safepoke writes, often as root and in folders of others. They are the owner's only. What a path names is replaced at once,
// and only when there is something to replace it with; nothing is followed, emptied or written over.
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  renameSync,
  rmSync,
  writeSync,
  writevSync,
  type Stats,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { CannotError } from '../errors/index.js';
import { MAGIC, type RecordingSink } from '../recording/index.js';
import { describeFileError } from './file-error.js';

const OWNER_ONLY = 0o600;
const RANDOM_BYTES = 9;
/** A reader of a FIFO that takes nothing for so long has hung. */
const READER_PATIENCE_MS = 10_000;
const READER_LOOK_MS = 1;
/** Names of our own descriptors, which are links of the kernel's: whoever gives one means what it has opened. */
const OWN_DESCRIPTOR = /^(?:\/dev\/fd|\/proc\/self\/fd)\/(\d+)$/;
const OWN_DESCRIPTORS = '/proc/self/fd';
const STANDARD: ReadonlyMap<string, number> = new Map([
  ['/dev/stdout', 1],
  ['/dev/stderr', 2],
]);

/** Most that what says that it takes anything takes at once: PIPE_BUF, include/uapi/linux/limits.h. */
const PIPE_BUF = 4096;
/** How long a reader is waited for that takes nothing, once the session is to end. */
const LAST_PATIENCE_MS = 500;
const LOOK_MS = 50;

/** How to wait for readers that do not read. */
export interface SinkWaiting {
  /** True once the descriptor takes something, false if it does not within so many milliseconds. */
  readonly awaitWritable: (fd: number, ms: number) => boolean;
  /** True if there is not much time left. */
  readonly isEnding: () => boolean;
}

/** What may be replaced: a recording only by a recording, and no other file by one. */
export type OutputKind = 'recording' | 'text';

/** A file that recordings and outputs are written to. It takes its place with `commit`; `discard` leaves there what was. */
export class FileSink implements RecordingSink {
  readonly #fd: number;
  readonly #path: string;
  /** Where the file is until it takes its place; undefined where it is there, or is a device, a FIFO, or a descriptor that was given. */
  #temporary: string | undefined;
  /** A file that was not there before, and is not complete. */
  #isNew = false;
  readonly #isGiven: boolean = false;
  /** A descriptor was given, whether or not it is written to itself. */
  readonly #isStream: boolean = false;
  readonly #waiting: SinkWaiting | undefined;
  /** A write may block: it is what somebody else has opened, and takes only so much. */
  readonly #mayBlock: boolean = false;

  /** Throws OUTPUT_UNWRITABLE, or OUTPUT_KEPT where the path names something that is not to be replaced. */
  constructor(path: string, kind: OutputKind, waiting?: SinkWaiting) {
    this.#path = path;
    this.#waiting = waiting;
    const given = ownDescriptor(path);
    try {
      if (given !== undefined) {
        const stats = fstatSync(given);
        checkGiven(given, stats);
        const own = waiting !== undefined && stats.isFIFO() ? reopen(given) : undefined;
        this.#fd = own ?? given;
        this.#isGiven = own === undefined;
        this.#isStream = true;
        this.#mayBlock = own === undefined && waiting !== undefined && !stats.isFile();
        return;
      }
      const there = lstatSync(path, { throwIfNoEntry: false });
      if (there !== undefined && (there.isFIFO() || there.isCharacterDevice())) {
        this.#fd = openStream(path, there);
        return;
      }
      if (there !== undefined) checkReplaceable(path, there, kind);
      this.#isNew = there === undefined;
      if (there === undefined && kind === 'text') {
        this.#fd = create(path);
        return;
      }
      const name = `.${basename(path)}.${randomBytes(RANDOM_BYTES).toString('base64url')}`;
      this.#temporary = join(dirname(path), name);
      this.#fd = create(this.#temporary);
    } catch (error) {
      if (error instanceof CannotError) throw error;
      const { code } = error as NodeJS.ErrnoException;
      throw new CannotError('OUTPUT_UNWRITABLE', {
        tried: `write ${path}`,
        why: describeOpenError(error),
        next: code === 'ENOENT' ? 'make the folder or choose another file' : 'choose another file',
        cause: error,
      });
    }
  }

  /** The file takes its place. Throws OUTPUT_UNWRITABLE; nothing is left of it then. */
  commit(): void {
    this.#isNew = false;
    if (this.#temporary === undefined) return;
    try {
      renameSync(this.#temporary, this.#path);
    } catch (error) {
      throw this.#unwritable(error);
    }
    this.#temporary = undefined;
  }

  /** Nothing is left of the file, unless it has taken its place. What was there stays. Closes it. */
  discard(): void {
    if (this.#temporary === undefined && this.#isNew) rmSync(this.#path, { force: true });
    this.close();
  }

  /** What has not taken its place goes. */
  close(): void {
    if (this.#temporary !== undefined) rmSync(this.#temporary, { force: true });
    if (!this.#isGiven) closeSync(this.#fd);
  }

  write(chunks: readonly Uint8Array[]): void {
    let rest = chunks.filter((chunk) => chunk.length > 0);
    let reader = this.#newReader();
    while (rest.length > 0) {
      let written: number;
      try {
        if (this.#mayBlock) reader.await();
        written = this.#mayBlock
          ? writeSync(this.#fd, rest[0], 0, Math.min(rest[0].length, PIPE_BUF))
          : writevSync(this.#fd, rest);
        reader = this.#newReader();
      } catch (error) {
        if (error instanceof CannotError) throw error;
        if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw this.#unwritable(error);
        reader.await();
        continue;
      }
      // The kernel may take less than all of it: the rest is written again from there.
      rest = rest.flatMap((chunk) => {
        const skipped = Math.min(written, chunk.length);
        written -= skipped;
        return skipped === chunk.length ? [] : [chunk.subarray(skipped)];
      });
    }
  }

  /** Waits, a while at a time, for a reader from which nothing has been heard since. */
  #newReader(): { await: () => void } {
    const since = performance.now();
    let endingSince: number | undefined;
    // Whoever gives a descriptor may let it wait: somebody reads page by page.
    const patience = this.#isStream ? Number.POSITIVE_INFINITY : READER_PATIENCE_MS;
    const isLate = (): boolean => {
      if (this.#waiting?.isEnding() === true) endingSince ??= performance.now();
      const now = performance.now();
      return now - since > patience || now - (endingSince ?? now) > LAST_PATIENCE_MS;
    };
    return {
      await: () => {
        for (;;) {
          if (this.#waiting === undefined)
            Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, READER_LOOK_MS);
          else if (this.#waiting.awaitWritable(this.#fd, LOOK_MS)) return;
          if (isLate()) throw this.#unwritable(Object.assign(new Error('EAGAIN'), { code: 'EAGAIN' }));
          if (this.#waiting === undefined) return;
        }
      },
    };
  }

  #unwritable(error: unknown): CannotError {
    return new CannotError('OUTPUT_UNWRITABLE', {
      tried: `write ${this.#path}`,
      why: describeOpenError(error),
      next: 'make room or choose another file',
      cause: error,
    });
  }
}

/** Writes a whole file; if that fails, what was there stays. Throws as `FileSink` does. */
export function writeWhole(path: string, content: string, waiting?: SinkWaiting): void {
  const file = new FileSink(path, 'text', waiting);
  try {
    file.write([Buffer.from(content)]);
    file.commit();
  } catch (error) {
    file.discard();
    throw error;
  }
  file.close();
}

function ownDescriptor(path: string): number | undefined {
  const match = OWN_DESCRIPTOR.exec(path);
  return match === null ? STANDARD.get(path) : Number(match[1]);
}

/**
 * Whoever names a descriptor means one that we were given, to write to. What Node has opened for itself has such numbers too: what is written
 * there wakes its threads, or waits for ever.
 */
function checkGiven(fd: number, stats: Stats): void {
  const isKnown = stats.isFile() || stats.isFIFO() || stats.isSocket() || stats.isCharacterDevice();
  if (isKnown && accessOf(fd) !== constants.O_RDONLY && !(stats.isFIFO() && isReadByUs(stats))) return;
  throw Object.assign(new Error('EBADF'), { code: 'EBADF' });
}

/** Node's pipes have both their ends here. */
function isReadByUs(pipe: Stats): boolean {
  return readdirSync(OWN_DESCRIPTORS)
    .map(Number)
    .some((fd) => {
      try {
        const { ino, dev } = fstatSync(fd);
        return ino === pipe.ino && dev === pipe.dev && accessOf(fd) !== constants.O_WRONLY;
      } catch {
        // It was the folder's own.
        return false;
      }
    });
}

function accessOf(fd: number): number {
  const flags = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0';
  return Number.parseInt(flags, 8) & (constants.O_WRONLY | constants.O_RDWR);
}

/** The same pipe by a description of our own: that of others is not to be changed. Undefined where we may not open it. */
function reopen(fd: number): number | undefined {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK);
  } catch {
    return undefined;
  }
}

function create(path: string): number {
  const { O_CREAT, O_EXCL, O_NOFOLLOW, O_WRONLY } = constants;
  return openSync(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, OWNER_ONLY);
}

/** A FIFO without a reader is refused (ENXIO), rather than waited for. */
function openStream(path: string, seen: Stats): number {
  const { O_NOCTTY, O_NOFOLLOW, O_NONBLOCK, O_WRONLY } = constants;
  const fd = openSync(path, O_WRONLY | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK);
  const opened = fstatSync(fd);
  if (opened.dev === seen.dev && opened.ino === seen.ino) return fd;
  closeSync(fd);
  throw kept(path, 'it has become another file meanwhile');
}

function checkReplaceable(path: string, there: Stats, kind: OutputKind): void {
  if (there.isSymbolicLink()) throw kept(path, 'it is a link, which is not followed');
  if (there.isDirectory()) throw kept(path, 'it is a directory');
  if (!there.isFile()) throw kept(path, 'it is not a file');
  if (process.geteuid !== undefined && there.uid !== process.geteuid())
    throw kept(path, 'it belongs to another user');
  if (kind === 'recording' && !isRecording(path, there))
    throw kept(path, 'there is a file that is not a recording, which would be lost');
  if (kind === 'text' && there.size > 0 && isRecording(path, there))
    throw kept(path, 'there is a recording, which would be lost');
}

/** An empty file is as good as one. */
function isRecording(path: string, { size }: Stats): boolean {
  if (size === 0) return true;
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const head = Buffer.alloc(MAGIC.length);
    readSync(fd, head, 0, head.length, 0);
    return head.toString('latin1') === MAGIC;
  } finally {
    closeSync(fd);
  }
}

function kept(path: string, why: string): CannotError {
  return new CannotError('OUTPUT_KEPT', {
    tried: `write ${path}`,
    why,
    next: 'choose another file, or remove it first',
  });
}

function describeOpenError(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT') return 'there is no such folder';
  if (code === 'ENXIO') return 'nobody reads from it';
  if (code === 'EBADF') return 'no such descriptor is open for writing';
  if (code === 'EAGAIN') return 'its reader takes nothing';
  return describeFileError(error);
}
