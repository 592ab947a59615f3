// Readers of /proc/PID. All of them return undefined where the process or thread has gone, which may happen at any moment.
import { openSync, readFileSync, readSync, readdirSync, readlinkSync, closeSync } from 'node:fs';
import { isWanting, withRoom } from './descriptors.js';
import { textOfBytes, textOfLatin1 } from './path-text.js';

function readProc(path: string): string | undefined {
  try {
    return withRoom(() => readFileSync(path, 'latin1'));
  } catch (error) {
    if (isWanting(error)) throw error;
    return undefined;
  }
}

/** One line of /proc/PID/maps. Addresses are numbers: user space ends below 2^47, far inside what a double holds exactly. */
export interface Mapping {
  readonly start: number;
  readonly end: number;
  /** "r-xp": read, write, execute, private or shared. */
  readonly permissions: string;
  readonly offset: number;
  readonly device: string;
  readonly inode: number;
  /**
   * File name (`bytesOfText` has its bytes), "[stack]", "[vdso]", ... or "". Of a deleted file it ends in " (deleted)", as may the name of one
   * that is there.
   */
  readonly path: string;
}

/** The bytes of a path in which /proc/PID/maps shows a line feed: it shows the same for one that has these four characters. */
const SHOWN_LINE_FEED = '\\012';

export function readMaps(pid: number): Mapping[] | undefined {
  const parser = new MapsParser((place) => readLinkBytes(`/proc/${pid}/map_files/${place}`));
  return forEachPiece(`/proc/${pid}/maps`, (text) => {
    parser.add(text);
    return false;
  })
    ? parser.mappings
    : undefined;
}

/** Bytes of a file in /proc that are read at once. */
const PIECE_BYTES = 256 * 1024;

/** Reads a file in /proc, whose length a program may choose, until `visit` has enough. False: it cannot be read (to its end). */
function forEachPiece(path: string, visit: (text: string) => boolean): boolean {
  let fd: number;
  try {
    fd = withRoom(() => openSync(path, 'r'));
  } catch (error) {
    // It is there for all we know.
    if (isWanting(error)) throw error;
    return false;
  }
  const bytes = Buffer.allocUnsafe(PIECE_BYTES);
  try {
    for (;;) {
      const count = readSync(fd, bytes, 0, PIECE_BYTES, null);
      if (count === 0 || visit(bytes.toString('latin1', 0, count))) return true;
    }
  } catch {
    return false;
  } finally {
    closeSync(fd);
  }
}

/** The first bytes of a file in /proc, as latin1; undefined where it cannot be opened. */
function readStart(path: string, most: number): string | undefined {
  let text = '';
  const isThere = forEachPiece(path, (piece) => {
    text += piece;
    return text.length >= most;
  });
  return isThere ? text.slice(0, most) : undefined;
}

/**
 * Parses the text of /proc/PID/maps (proc(5)), given as latin1. `linkOf` tells the bytes of the path of the mapping at a place such as
 * "7f0000000000-7f0000001000", as map_files does: only that tells a line feed in it from its escape.
 */
export function parseMaps(
  text: string,
  linkOf: (place: string) => Uint8Array | undefined = () => undefined,
): Mapping[] {
  const parser = new MapsParser(linkOf);
  parser.add(text);
  parser.add('\n');
  return parser.mappings;
}

/**
 * Nothing ends a line but a line feed: a path may have all other characters, those too that expressions take for the end of a line ("." and
 * "$"), and would be taken for lines of its own.
 */
const MAPS_LINE = /^([0-9a-f]+)-([0-9a-f]+) ([^ ]{4}) ([0-9a-f]+) ([^ ]+) ([0-9]+) *([^]*)$/;

/** Takes the text as it comes. Of many mappings of one file there is one path. */
class MapsParser {
  readonly mappings: Mapping[] = [];
  readonly #linkOf: (place: string) => Uint8Array | undefined;
  readonly #paths = new Map<string, string>();
  /** The beginning of a line whose end has not come yet. */
  #rest = '';

  constructor(linkOf: (place: string) => Uint8Array | undefined) {
    this.#linkOf = linkOf;
  }

  add(text: string): void {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines) this.#addLine(line);
  }

  #addLine(line: string): void {
    const match = MAPS_LINE.exec(line);
    if (match === null) return;
    this.mappings.push({
      start: parseInt(match[1], 16),
      end: parseInt(match[2], 16),
      permissions: match[3],
      offset: parseInt(match[4], 16),
      device: match[5],
      inode: Number(match[6]),
      path: this.#pathOf(match[7], `${match[1]}-${match[2]}`),
    });
  }

  #pathOf(shown: string, place: string): string {
    if (shown.includes(SHOWN_LINE_FEED)) {
      const link = this.#linkOf(place);
      return link === undefined ? textOfLatin1(shown.replaceAll(SHOWN_LINE_FEED, '\n')) : textOfBytes(link);
    }
    let path = this.#paths.get(shown);
    if (path === undefined) {
      path = textOfLatin1(shown);
      this.#paths.set(shown, path);
    }
    return path;
  }
}

/** Index of the mapping that contains an address, in a list ascending as the kernel gives it; -1 if none does. */
export function mappingAt(maps: readonly Mapping[], address: number): number {
  let low = 0;
  let high = maps.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (maps[middle].end <= address) low = middle + 1;
    else high = middle;
  }
  return low < maps.length && maps[low].start <= address ? low : -1;
}

/** Threads of the whole system that run now or want to (proc(5), loadavg); undefined where that is not told. */
export function runnableThreads(): number | undefined {
  const runnable = / (\d+)\/\d+ /.exec(readProc('/proc/loadavg') ?? '')?.[1];
  return runnable === undefined ? undefined : Number(runnable);
}

/** Processes and threads that the system has made since it was started (proc(5), stat); undefined where that is not told. */
export function readCloneCount(): number | undefined {
  const count = /^processes (\d+)$/m.exec(readProc('/proc/stat') ?? '')?.[1];
  return count === undefined ? undefined : Number(count);
}

/** True if a mapping has a guard right below: memory that nobody may touch, as C libraries put it below a thread's stack. */
export function hasGuard(maps: readonly Mapping[], index: number): boolean {
  if (index <= 0) return false;
  const guard = maps[index - 1];
  return guard.end === maps[index].start && guard.permissions.startsWith('---');
}

/** Most mappings that the kernel lets a process have (vm.max_map_count). */
export function readMaxMapCount(): number | undefined {
  const text = readProc('/proc/sys/vm/max_map_count');
  return text === undefined ? undefined : Number(text);
}

/** How the kernel counts memory that may come to be used (vm.overcommit_memory). */
export function readOvercommit(): number | undefined {
  const text = readProc('/proc/sys/vm/overcommit_memory');
  return text === undefined ? undefined : Number(text);
}

/** Thread identifiers of a process, in ascending order. */
export function readThreads(pid: number): number[] | undefined {
  try {
    return withRoom(() => readdirSync(`/proc/${pid}/task`)).map(Number);
  } catch (error) {
    if (isWanting(error)) throw error;
    return undefined;
  }
}

/** The fields of /proc/PID/status by name, or of one thread where `tid` is given. */
export function readStatus(pid: number, tid?: number): ReadonlyMap<string, string> | undefined {
  const text = readProc(tid === undefined ? `/proc/${pid}/status` : `/proc/${pid}/task/${tid}/status`);
  if (text === undefined) return undefined;
  const fields = new Map<string, string>();
  for (const line of text.split('\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return fields;
}

/**
 * A device number of fstat(2) as /proc/PID/maps and /proc/locks have it. glibc's makedev: 12 bits of the major number above 8 of the minor,
 * the rest of both above that.
 */
export function deviceText(device: number): string {
  const number = BigInt(device);
  const major = ((number >> 8n) & 0xfffn) | ((number >> 32n) & 0xfffff000n);
  const minor = (number & 0xffn) | ((number >> 12n) & 0xffffff00n);
  return `${major.toString(16).padStart(2, '0')}:${minor.toString(16).padStart(2, '0')}`;
}

/** A set of signals or capabilities as /proc/PID/status shows it; empty where it does not. */
export function bitSet(status: ReadonlyMap<string, string> | undefined, name: string): bigint {
  return BigInt(`0x${status?.get(name) ?? '0'}`);
}

/** True if a process, or one thread of it, has ended: it is gone, or waits to be reaped. */
export function hasEnded(pid: number, tid?: number): boolean {
  return showsEnd(readStatus(pid, tid));
}

/** The same by what `readStatus` has said. */
export function showsEnd(status: ReadonlyMap<string, string> | undefined): boolean {
  return /^[ZX]/.test(status?.get('State') ?? 'X');
}

/** A thread's name: at most 15 bytes, any but NUL. */
export function readThreadName(pid: number, tid: number): string | undefined {
  const text = readProc(`/proc/${pid}/task/${tid}/comm`);
  // The kernel ends it with a line feed; the name may itself have blanks and line feeds there.
  return text === undefined ? undefined : textOfLatin1(text.replace(/\n$/, ''));
}

/** When a process started, in clock ticks since boot (proc(5), field 22 of stat); with its id it names one process for ever. */
export function readStartTime(pid: number): bigint | undefined {
  return statField(`/proc/${pid}/stat`, 22);
}

/** The exit status of a process's first thread, which has ended; 0 where it may not be read. */
export function readExitStatus(pid: number): number | undefined {
  const code = statField(`/proc/${pid}/task/${pid}/stat`, 52);
  return code === undefined ? undefined : (Number(code) >> 8) & 0xff;
}

/** A numeric field of a stat file, by its number in proc(5), from 3 on. */
function statField(path: string, number: number): bigint | undefined {
  const text = readProc(path);
  // The name may hold blanks and parentheses: fields are counted from behind its last one. The first there is field 3.
  const field = text
    ?.slice(text.lastIndexOf(')') + 2)
    .trimEnd()
    .split(' ')
    .at(number - 3);
  return field === undefined || !/^\d+$/.test(field) ? undefined : BigInt(field);
}

/** A limit of a process as /proc/PID/limits calls it, the one that counts (soft). Undefined: there is none, or it cannot be read. */
export function readLimit(pid: number, name: string): number | undefined {
  const soft = new RegExp(`^${name} +(\\d+)`, 'm').exec(readProc(`/proc/${pid}/limits`) ?? '')?.[1];
  return soft === undefined ? undefined : Number(soft);
}

/** What a program may be given at its start, arguments and environment together: 3/4 of _STK_LIM, fs/exec.c. */
const MOST_ARGUMENT_BYTES = 6 * 1024 * 1024;
/** So much is kept of a command line for people to read. */
const MOST_COMMAND_BYTES = 128 * 1024;

/** The arguments of a process; cut off where there are very many. It may say anything (PR_SET_MM_ARG_START), of any length. */
export function readCommandLine(pid: number): string[] | undefined {
  const text = readStart(`/proc/${pid}/cmdline`, MOST_COMMAND_BYTES);
  return text
    ?.replace(/\0$/, '')
    .split('\0')
    .map((argument) => textOfLatin1(argument));
}

/** True if the text, which is ASCII, stands in the environment that a process was given; undefined where it cannot be read. */
export function isInEnvironment(pid: number, text: string): boolean | undefined {
  return readStart(`/proc/${pid}/environ`, MOST_ARGUMENT_BYTES)?.includes(text);
}

/** What a symbolic link of /proc leads to; undefined where there is none, or it may not be read. */
export function readLink(path: string): string | undefined {
  const bytes = readLinkBytes(path);
  return bytes === undefined ? undefined : textOfBytes(bytes);
}

function readLinkBytes(path: string): Uint8Array | undefined {
  try {
    return readlinkSync(path, { encoding: 'buffer' });
  } catch {
    return undefined;
  }
}

/** Path of the running executable, as `Mapping.path` has it. */
export function readExecutablePath(pid: number): string | undefined {
  return readLink(`/proc/${pid}/exe`);
}

/** Entries of the auxiliary vector (getauxval(3)) by type. */
export function readAuxiliaryVector(pid: number | 'self'): ReadonlyMap<number, bigint> | undefined {
  try {
    const bytes = readFileSync(`/proc/${pid}/auxv`);
    const entries = new Map<number, bigint>();
    for (let offset = 0; offset + 16 <= bytes.length; offset += 16) {
      entries.set(Number(bytes.readBigUInt64LE(offset)), bytes.readBigUInt64LE(offset + 8));
    }
    return entries;
  } catch {
    return undefined;
  }
}

/** First bytes of the file that a process executes, even if it was deleted since. */
export function readExecutableHead(pid: number, length: number): Uint8Array | undefined {
  let fd: number;
  try {
    fd = openSync(`/proc/${pid}/exe`, 'r');
  } catch {
    return undefined;
  }
  try {
    const bytes = new Uint8Array(length);
    return bytes.subarray(0, readSync(fd, bytes, 0, length, 0));
  } finally {
    closeSync(fd);
  }
}
