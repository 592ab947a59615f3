// What the analysis of a file has found, kept for the next time. The key is a digest of all that the analysis reads, so that what is
// kept can never be an answer about something else. What is read back is input like any other: anything odd is as if it were not there.
import { createHash, randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  renameSync,
  unlinkSync,
  utimesSync,
  writeSync,
} from 'node:fs';
import { userInfo } from 'node:os';
import { dirname, isAbsolute, join } from 'node:path';
import type { ElfFile } from '../elf/index.js';
import { VERDICTS_VERSION, type FunctionRange, type KeptPart, type VerdictStore } from '../x86/index.js';

/** Set to anything, nothing is read from the cache or written to it. */
const NO_CACHE = 'SAFEPOKE_NO_CACHE';
const FOLDER = 'safepoke';

/** Verdicts on 77,000 functions are 600 KiB, their exits 1 MiB. */
const MOST_BYTES = 64 * 1024 * 1024;
const MOST_FILES = 256;
const LONGEST_FILE = 32 * 1024 * 1024;
/** A file that somebody began to write and never finished. */
const STALE_MS = 3_600_000;

/**
 *   0  magic, with the version of the format
 *   8  version of the analysis, number of functions: 32 bits each
 *  16  the key, 32 bytes
 *  48  SHA-256 of what comes before and behind it, 32 bytes
 *  80  verdicts, or exits
 */
const MAGIC = 'SPOKEV01';
const LAYOUT = { version: 8, count: 12, key: 16, sum: 48, body: 80 } as const;
const DIGEST = 32;
const ENTRY = /^[0-9a-f]{1,40}-[0-9a-f]{64}$/;
const UNFINISHED = /^\.[0-9a-f]{24}$/;

/** A folder of ours, open: named by its descriptor it cannot become another one. */
interface Folder {
  readonly fd: number;
  readonly path: string;
}

/** The cache of this user; undefined where there is none to be had, or none is wanted. */
export function verdictStore(environment: NodeJS.ProcessEnv = process.env): VerdictStore | undefined {
  return (environment[NO_CACHE] ?? '') === '' ? new FolderStore(environment) : undefined;
}

class FolderStore implements VerdictStore {
  constructor(private readonly environment: NodeJS.ProcessEnv) {}

  load(elf: ElfFile, functions: readonly FunctionRange[], part: KeptPart): Uint8Array | undefined {
    return this.#within((folder) => {
      const key = keyOf(elf, functions, part);
      const path = join(folder.path, nameOf(elf, key));
      const body = readEntry(path, key, functions.length);
      // The oldest go first: this one is wanted.
      if (body !== undefined) utimesSync(path, new Date(), new Date());
      return body;
    });
  }

  save(elf: ElfFile, functions: readonly FunctionRange[], part: KeptPart, body: Uint8Array): void {
    this.#within((folder) => {
      const key = keyOf(elf, functions, part);
      const bytes = entryBytes(key, functions.length, body);
      if (bytes.length > LONGEST_FILE) return;
      writeEntry(folder, nameOf(elf, key), bytes);
      evict(folder);
    });
  }

  /** A cache that cannot be used is none: what goes wrong with it concerns nobody. */
  #within<T>(action: (folder: Folder) => T): T | undefined {
    let folder: Folder | undefined;
    try {
      folder = openFolder(this.environment);
      return folder && action(folder);
    } catch {
      return undefined;
    } finally {
      if (folder !== undefined) closeSync(folder.fd);
    }
  }
}

/** Where the folder may be, first choice first. The variables of another user's session say nothing about where ours is. */
function parents(environment: NodeJS.ProcessEnv): string[] {
  const { XDG_CACHE_HOME: cache = '', HOME: home = '' } = environment;
  const found = isAbsolute(cache) ? [cache] : isAbsolute(home) ? [join(home, '.cache')] : [];
  return [...found, join(userInfo().homedir, '.cache')];
}

function openFolder(environment: NodeJS.ProcessEnv): Folder | undefined {
  for (const parent of parents(environment)) {
    const folder = openWithin(parent);
    if (folder !== undefined) return folder;
  }
  return undefined;
}

function openWithin(parent: string): Folder | undefined {
  const own = process.geteuid?.() ?? -1;
  try {
    // Who may write to the folder above could put another one in the place of ours.
    if (!isOurs(dirname(parent), own)) return undefined;
    mkdirUnlessThere(parent);
    if (!isOurs(parent, own)) return undefined;
    const path = join(parent, FOLDER);
    mkdirUnlessThere(path);
    const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
    const { uid, mode } = fstatSync(fd);
    if (uid === own && (mode & 0o077) === 0) return { fd, path: `/proc/self/fd/${fd}` };
    closeSync(fd);
  } catch {
    // Not there, not to be made, a file: no cache.
  }
  return undefined;
}

/** True for a folder that nobody but us and root can change. */
function isOurs(path: string, own: number): boolean {
  const { uid, mode } = lstatSync(path);
  const isFolder = (mode & constants.S_IFMT) === constants.S_IFDIR;
  return isFolder && (uid === own || uid === 0) && (mode & 0o022) === 0;
}

function mkdirUnlessThere(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}

/** The build id is for people who look at the folder; it is the digest that counts. */
function nameOf(elf: ElfFile, key: Buffer): string {
  return `${(elf.buildId ?? '0').slice(0, 40)}-${key.toString('hex')}`;
}

/** Rooms whose code decides what the analysis answers. */
const ANALYSIS = ['../x86/', '../elf/', '../symbols/'];
let ownCode: string | undefined;

/** A digest of the analysis itself: one that was changed answers differently, whatever its version says. */
function codeDigest(): string {
  if (ownCode !== undefined) return ownCode;
  const hash = createHash('sha256');
  for (const room of ANALYSIS) {
    const folder = new URL(room, import.meta.url);
    for (const name of readdirSync(folder).sort())
      if (name.endsWith('.js') && !name.includes('.test.')) hash.update(readFileSync(new URL(name, folder)));
  }
  ownCode = hash.digest('hex');
  return ownCode;
}

const keys = new WeakMap<ElfFile, Buffer>();

/** Of one part. */
function keyOf(elf: ElfFile, functions: readonly FunctionRange[], part: KeptPart): Buffer {
  return createHash('sha256').update(fileKey(elf, functions)).update(part).digest();
}

/** SHA-256 of the analysis and of all that it reads: what is loaded, how it is divided, functions and symbols. */
function fileKey(elf: ElfFile, functions: readonly FunctionRange[]): Buffer {
  const known = keys.get(elf);
  if (known !== undefined) return known;
  const hash = createHash('sha256');
  const shape = {
    code: codeDigest(),
    type: elf.type,
    entry: String(elf.entry),
    segments: elf.segments.map((s) => [s.type, s.executable, s.addressNumber, s.fileSize]),
    sections: elf.sections.map((s) => [
      s.name,
      s.type,
      s.executable,
      s.allocated,
      s.hasBytes,
      s.addressNumber,
      s.size,
    ]),
    functions: functions.length,
    symbols: elf.symbols.length,
    profiled: [elf.mentions('mcount'), elf.mentions('__fentry__')],
    locations: [elf.patchableEntries.map(String)],
  };
  hash.update(JSON.stringify(shape));
  for (const segment of elf.loaded) {
    const bytes = elf.segmentBytes(segment);
    if (bytes !== undefined) hash.update(bytes);
  }
  const numbers = new Float64Array(functions.length * 3 + elf.symbols.length);
  let at = 0;
  for (const { addressNumber, size, sizeKnown, kind } of functions) {
    numbers[at++] = addressNumber;
    numbers[at++] = size;
    numbers[at++] = (sizeKnown === false ? 8 : 0) + ['function', 'ifunc', 'fragment'].indexOf(kind);
  }
  for (const { addressNumber, table } of elf.symbols)
    numbers[at++] = table === 'dynsym' ? -addressNumber : addressNumber;
  hash.update(new Uint8Array(numbers.buffer));
  const key = hash.digest();
  keys.set(elf, key);
  return key;
}

function entryBytes(key: Buffer, count: number, body: Uint8Array): Buffer {
  const bytes = Buffer.alloc(LAYOUT.body + body.length);
  bytes.write(MAGIC, 'latin1');
  bytes.writeUInt32LE(VERDICTS_VERSION, LAYOUT.version);
  bytes.writeUInt32LE(count, LAYOUT.count);
  key.copy(bytes, LAYOUT.key);
  bytes.set(body, LAYOUT.body);
  sumOf(bytes).copy(bytes, LAYOUT.sum);
  return bytes;
}

function sumOf(bytes: Buffer): Buffer {
  const hash = createHash('sha256');
  hash.update(bytes.subarray(0, LAYOUT.sum));
  hash.update(bytes.subarray(LAYOUT.body));
  return hash.digest();
}

/** What is in a file of the cache; undefined unless it is whole, ours, and of this key. */
function readEntry(path: string, key: Buffer, count: number): Uint8Array | undefined {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const { uid, size, mode } = fstatSync(fd);
    const isFile = (mode & constants.S_IFMT) === constants.S_IFREG;
    if (!isFile || uid !== process.geteuid?.() || (mode & 0o022) !== 0) return undefined;
    if (size < LAYOUT.body || size > LONGEST_FILE) return undefined;
    const bytes = Buffer.alloc(size);
    if (readSync(fd, bytes, 0, size, 0) !== size) return undefined;
    const isWhole =
      bytes.toString('latin1', 0, MAGIC.length) === MAGIC &&
      bytes.readUInt32LE(LAYOUT.version) === VERDICTS_VERSION &&
      bytes.readUInt32LE(LAYOUT.count) === count &&
      bytes.subarray(LAYOUT.key, LAYOUT.key + DIGEST).equals(key) &&
      bytes.subarray(LAYOUT.sum, LAYOUT.sum + DIGEST).equals(sumOf(bytes));
    return isWhole
      ? new Uint8Array(bytes.buffer, bytes.byteOffset + LAYOUT.body, size - LAYOUT.body)
      : undefined;
  } finally {
    closeSync(fd);
  }
}

/** Under another name first: whoever reads sees a whole file or none. */
function writeEntry(folder: Folder, name: string, bytes: Buffer): void {
  const unfinished = join(folder.path, `.${randomBytes(12).toString('hex')}`);
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
  const fd = openSync(unfinished, flags, 0o600);
  let isDone = false;
  try {
    for (let at = 0; at < bytes.length;) at += writeSync(fd, bytes, at);
    renameSync(unfinished, join(folder.path, name));
    isDone = true;
  } finally {
    closeSync(fd);
    if (!isDone) unlinkSync(unfinished);
  }
}

/** Removes what was not wanted for longest, until the rest is within bounds. Touches nothing that is not named like ours. */
function evict(folder: Folder): void {
  const now = Date.now();
  const entries: { path: string; size: number; at: number }[] = [];
  for (const name of readdirSync(folder.path)) {
    const path = join(folder.path, name);
    const isEntry = ENTRY.test(name);
    if (!isEntry && !UNFINISHED.test(name)) continue;
    const { size, mtimeMs } = lstatSync(path);
    if (isEntry) entries.push({ path, size, at: mtimeMs });
    else if (now - mtimeMs > STALE_MS) unlinkSync(path);
  }
  entries.sort((a, b) => b.at - a.at);
  let bytes = 0;
  entries.forEach(({ path, size }, index) => {
    bytes += size;
    if (bytes > MOST_BYTES || index >= MOST_FILES) unlinkSync(path);
  });
}
