// The ELF files that a process has mapped.
import { readFileSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { parseElf, type ElfFile } from '../elf/index.js';
import { isSafepokeError } from '../errors/index.js';
import {
  readCommandLine,
  readExecutablePath,
  readMaps,
  readThreadName,
  type Mapping,
} from '../linux/index.js';

const PT_LOAD = 1;
const PAGE_MASK = 4095;
/** Files in memory that are ours, as the kernel shows them. */
const OWN_MEMORY = '/memfd:safepoke';

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
  /** What to add to an address of the file. */
  readonly bias: bigint;
  /** The parsed file. Reads it when called first. @throws CannotError of parseElf, or where the file has changed */
  readonly elf: () => ElfFile;
}

/** A module whose file cannot be used, and why. */
export interface UnusableModule {
  readonly path: string;
  readonly why: string;
}

function fileOf(
  pid: number,
  path: string,
  executable: string | undefined,
  mapping: Mapping,
): string | undefined {
  const candidates =
    path === executable
      ? [`/proc/${pid}/exe`]
      : [
          `/proc/${pid}/root${path}`,
          path,
          `/proc/${pid}/map_files/${mapping.start.toString(16)}-${mapping.end.toString(16)}`,
        ];
  for (const candidate of candidates) {
    try {
      // The name may lead to another file by now: a package was upgraded. The mapped file's inode tells.
      if (statSync(candidate).ino === mapping.inode || candidate === `/proc/${pid}/exe`) return candidate;
    } catch {
      continue;
    }
  }
  return undefined;
}

function biasOf(elf: ElfFile, text: Mapping): bigint | undefined {
  for (const segment of elf.segments) {
    if (segment.type !== PT_LOAD || !segment.executable) continue;
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
  const executable = readExecutablePath(pid);
  const groups = new Map<string, Mapping[]>();
  for (const mapping of readMaps(pid) ?? []) {
    if (!mapping.permissions.includes('x') || !mapping.path.startsWith('/')) continue;
    if (mapping.path.startsWith(OWN_MEMORY)) continue;
    const path = mapping.path.replace(/ \(deleted\)$/, '');
    const group = groups.get(path);
    if (group === undefined) groups.set(path, [mapping]);
    else group.push(mapping);
  }
  const modules: Module[] = [];
  const unusable: UnusableModule[] = [];
  for (const [path, mappings] of groups) {
    const [first] = mappings;
    const file = fileOf(pid, path, executable, first);
    if (file === undefined) {
      unusable.push({ path, why: 'its file was replaced or removed since it was loaded' });
      continue;
    }
    try {
      let parsed: ElfFile | undefined;
      const elf = (): ElfFile => (parsed ??= parseElf(readFileSync(file), path));
      const bias = biasOf(elf(), first);
      if (bias === undefined) {
        unusable.push({ path, why: 'its mapping does not fit its program headers' });
        continue;
      }
      modules.push({
        path,
        name: basename(path),
        aliases: path === executable ? startedAs(pid) : [],
        isExecutable: path === executable,
        text: mappings.map(({ start, end }) => ({ start, end })),
        bias,
        elf,
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
