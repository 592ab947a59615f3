// How much memory a process can still get before somebody is killed for want of it: what the system has, and what the control groups
// that it is in leave (cgroups(7), Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst).
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { bytesOfText, textOfLatin1 } from './path-text.js';

const KIB = 1024;

/** Names of a group's files in either version. */
const FILES = {
  1: { limit: 'memory.limit_in_bytes', usage: 'memory.usage_in_bytes', reclaimable: 'total_inactive_file' },
  2: { limit: 'memory.max', usage: 'memory.current', reclaimable: 'inactive_file' },
} as const;

/** Bytes that the process may still fill; undefined if nothing tells. `root` is where /proc and all else is looked for: tests have their own. */
export function availableMemory(pid: number, root = '/'): number | undefined {
  const read = (path: string): string | undefined => {
    try {
      return readFileSync(bytesOfText(join(root, path)), 'latin1');
    } catch {
      return undefined;
    }
  };
  const system = /^MemAvailable: +(\d+) kB$/m.exec(read('proc/meminfo') ?? '')?.[1];
  const amounts = system === undefined ? [] : [Number(system) * KIB];
  for (const { version, mount, group } of memoryGroups(
    read(`proc/${pid}/cgroup`) ?? '',
    read('proc/self/mountinfo') ?? '',
  )) {
    const names = FILES[version];
    for (let path = group; ; path = dirname(path)) {
      const folder = join(mount, path);
      const limit = Number(read(join(folder, names.limit)) ?? Number.NaN);
      const usage = Number(read(join(folder, names.usage)) ?? Number.NaN);
      const stat = new RegExp(`^${names.reclaimable} (\\d+)$`, 'm').exec(
        read(join(folder, 'memory.stat')) ?? '',
      );
      // "max" is no number, and version 1 says so by one beyond all memory.
      if (Number.isFinite(limit - usage)) amounts.push(Math.max(0, limit - usage + Number(stat?.[1] ?? 0)));
      if (path === '/' || path === '.') break;
    }
  }
  return amounts.length === 0 ? undefined : amounts.reduce((least, amount) => Math.min(least, amount));
}

/** A path of mountinfo, in which blanks, tabs, line feeds and backslashes are octal (proc(5)). */
function unescaped(shown: string): string {
  const bytes = shown.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
  return textOfLatin1(bytes);
}

interface MemoryGroup {
  readonly version: 1 | 2;
  /** Where the hierarchy is mounted, and the group's path below. */
  readonly mount: string;
  readonly group: string;
}

/** The groups of a process that account for memory, of both hierarchies where there are two. */
function memoryGroups(groups: string, mounts: string): MemoryGroup[] {
  const found: MemoryGroup[] = [];
  // Names in them may have all characters but a line feed: nothing else ends a line.
  for (const line of groups.split('\n')) {
    const parts = /^\d+:([^:]*):([^]*)$/.exec(line);
    if (parts === null) continue;
    const [, controllers] = parts;
    const path = textOfLatin1(parts[2]);
    const isUnified = controllers === '';
    if (!isUnified && !controllers.split(',').includes('memory')) continue;
    // proc(5), mountinfo: the fourth field is the part of the hierarchy that is mounted, the fifth where.
    for (const mountLine of mounts.split('\n')) {
      const fields = /^[^ ]+ [^ ]+ [^ ]+ ([^ ]+) ([^ ]+) .* - ([^ ]+) [^ ]+ ([^ ]+)$/s.exec(mountLine);
      if (fields === null) continue;
      const [, , , type, options] = fields;
      const [shown, mount] = [unescaped(fields[1]), unescaped(fields[2])];
      const isIt = isUnified
        ? type === 'cgroup2'
        : type === 'cgroup' && options.split(',').includes('memory');
      if (!isIt) continue;
      const below = shown === '/' ? path : path.startsWith(shown) ? path.slice(shown.length) : '/';
      found.push({ version: isUnified ? 2 : 1, mount, group: join('/', below) });
    }
  }
  return found;
}
