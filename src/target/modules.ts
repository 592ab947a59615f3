// The ELF files that a process has mapped. Which they are the target decides, and it may change them while we look: see `RegularFile`.
import { basename } from 'node:path';
import { parseElf, type ElfFile } from '../elf/index.js';
import { isSafepokeError } from '../errors/index.js';
import {
  NotRegularError,
  RegularFile,
  bytesOfText,
  readCommandLine,
  readExecutablePath,
  readMaps,
  readThreadName,
  type Mapping,
} from '../linux/index.js';

const PAGE_MASK = 4095;
/** Files in memory that are ours, as the kernel shows them. */
const OWN_MEMORY = '/memfd:safepoke';
/** How the kernel ends the path of a file that was removed. A file may have such a name. */
const DELETED = / \(deleted\)$/;

/** An executable or shared object of a running process. */
export interface Module {
  readonly path: string;
  /** Base name: what MODULE of MODULE!PATTERN is matched with, besides the file's own soname and the aliases. */
  readonly name: string;
  /** Names by which an executable was started, which may be a link to it: redis-server is redis-check-rdb on some systems. */
  readonly aliases: readonly string[];
  readonly isExecutable: boolean;
  /** Executable mappings, ascending. */
  readonly text: readonly { readonly start: number; readonly end: number }[];
  /** How the kernel shows which file it is; undefined for a file that was looked at by itself. */
  readonly mapped: Pick<Mapping, 'device' | 'inode'> | undefined;
  /** What to add to an address of the file. */
  readonly bias: bigint;
  /** The file. Most of it is read when it is asked for: who asks for symbols or relocations gets CannotError of parseElf if it is damaged. */
  readonly elf: () => ElfFile;
}

/** A module whose file cannot be used, and why. */
export interface UnusableModule {
  readonly path: string;
  readonly why: string;
}

/** Where a path of the process's leads, as we find it. */
function foundFrom(pid: number, path: string): Buffer {
  return Buffer.concat([Buffer.from(`/proc/${pid}/root`), bytesOfText(path)]);
}

/** The file at a path of the process's if it is the one that is mapped. */
function openByName(pid: number, path: string, mapping: Mapping): RegularFile | undefined {
  try {
    const file = RegularFile.open(foundFrom(pid, path), { follow: false });
    return file.isMappedAs(mapping) ? file : undefined;
  } catch {
    return undefined;
  }
}

/**
 * The file of a mapping, or why there is none. The kernel's own link leads to it whatever its name leads to by now, but is for root
 * alone (CAP_CHECKPOINT_RESTORE). By its name it is looked for below the process's root directory, and must be what is mapped.
 */
function openMapped(pid: number, mapping: Mapping, path: string): RegularFile | string {
  const place = `${mapping.start.toString(16)}-${mapping.end.toString(16)}`;
  try {
    return RegularFile.open(`/proc/${pid}/map_files/${place}`);
  } catch (error) {
    if (error instanceof NotRegularError) return error.message;
  }
  return openByName(pid, path, mapping) ?? 'its file was replaced or removed since it was loaded';
}

/** The path of a mapping's file, without what the kernel says of one that was removed. */
function pathOf(pid: number, mapping: Mapping): string {
  const { path } = mapping;
  if (!DELETED.test(path) || openByName(pid, path, mapping) !== undefined) return path;
  return path.replace(DELETED, '');
}

/** What a process executes: the kernel's link to it, and its path as mappings have it. */
class Executable {
  readonly #path: string | undefined;
  readonly #file: RegularFile | undefined;

  constructor(pid: number) {
    this.#path = readExecutablePath(pid);
    try {
      this.#file = RegularFile.open(`/proc/${pid}/exe`);
    } catch {
      // It has ended, or may not be looked at; its path tells then which it was.
    }
  }

  /** Its file if a mapping is of it. */
  fileOf(mapping: Mapping): RegularFile | undefined {
    return mapping.path === this.#path && this.#file?.isMappedAs(mapping) === true ? this.#file : undefined;
  }
}

/** The file that is mapped there, as far as we may read it. */
export function mappedFile(pid: number, mapping: Mapping): RegularFile | undefined {
  const file = new Executable(pid).fileOf(mapping) ?? openMapped(pid, mapping, mapping.path);
  return typeof file === 'string' ? undefined : file;
}

function biasOf(elf: ElfFile, text: Mapping): bigint | undefined {
  for (const segment of elf.loaded) {
    if (!segment.executable) continue;
    const fileStart = segment.offset - (segment.offset & PAGE_MASK);
    if (text.offset < fileStart || text.offset >= segment.offset + segment.fileSize) continue;
    return BigInt(text.start) - (segment.address - BigInt(segment.offset - text.offset));
  }
  return undefined;
}

/** A program may have put a title in the place of its arguments, the first word of which is its name then. */
function startedAs(pid: number): string[] {
  const [first = ''] = readCommandLine(pid) ?? [];
  const names = [basename(first), basename(first.split(' ')[0]), readThreadName(pid, pid) ?? ''];
  return names.filter((name) => name !== '');
}

/** The modules of a process in the order of their addresses, the executable first. */
export function readModules(pid: number): { modules: Module[]; unusable: UnusableModule[] } {
  const executable = new Executable(pid);
  const groups = new Map<string, Mapping[]>();
  for (const mapping of readMaps(pid) ?? []) {
    const { device, inode, path } = mapping;
    if (!mapping.permissions.includes('x') || !path.startsWith('/') || path.startsWith(OWN_MEMORY)) continue;
    // Of two files that had one name, one may have taken the other's place.
    const key = `${device} ${inode} ${path}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [mapping]);
    else group.push(mapping);
  }
  const modules: Module[] = [];
  const unusable: UnusableModule[] = [];
  for (const mappings of groups.values()) {
    const [first] = mappings;
    const path = pathOf(pid, first);
    const own = executable.fileOf(first);
    const file = own ?? openMapped(pid, first, path);
    if (typeof file === 'string') {
      unusable.push({ path, why: file });
      continue;
    }
    try {
      const elf = parseElf(file, path);
      const bias = biasOf(elf, first);
      if (bias === undefined) {
        unusable.push({ path, why: 'its mapping does not fit its program headers' });
        continue;
      }
      modules.push({
        path,
        name: basename(path),
        aliases: own === undefined ? [] : startedAs(pid),
        isExecutable: own !== undefined,
        text: mappings.map(({ start, end }) => ({ start, end })),
        mapped: first,
        bias,
        elf: () => elf,
      });
    } catch (error) {
      unusable.push({ path, why: isSafepokeError(error) ? error.details.why : String(error) });
    }
  }
  modules.sort(
    (a, b) => Number(b.isExecutable) - Number(a.isExecutable) || a.text[0].start - b.text[0].start,
  );
  return { modules, unusable };
}
