// What safepoke was given by whoever started it, and what a program that it starts is to get as if safepoke were not there: descriptors
// beyond the first three, which Node marks to be closed, and strings that are not UTF-8, which Node's own do not hold.
import { readFileSync, readdirSync } from 'node:fs';
import { bytesOfText, readLink } from '../linux/index.js';

const FIRST_OTHER_FILE = 3;
const REPLACEMENT = '\ufffd';

let passedOn: readonly number[] = [];

function filesOf(pid: number | 'self'): Map<number, string> {
  const files = new Map<number, string>();
  let names: readonly string[];
  try {
    names = readdirSync(`/proc/${pid}/fd`);
  } catch {
    return files;
  }
  for (const name of names) {
    const link = readLink(`/proc/${pid}/fd/${name}`);
    if (link !== undefined) files.set(Number(name), link);
  }
  return files;
}

/** O_CLOEXEC in /proc/PID/fdinfo/N: include/uapi/asm-generic/fcntl.h. */
const CLOSED_ON_EXEC = 0o2000000;

function isClosedOnExec(pid: number, file: number): boolean {
  try {
    const flags = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/${pid}/fdinfo/${file}`, 'utf8'))?.[1] ?? '0';
    return (Number.parseInt(flags, 8) & CLOSED_ON_EXEC) !== 0;
  } catch {
    return false;
  }
}

/**
 * Has programs that are started from now on inherit the descriptors that this process has inherited itself. To be called before it
 * has opened any of its own. Those that Node makes for itself have no place in a file system, and no other end or holder.
 */
export function passOnFiles(): void {
  const own = filesOf('self');
  const parents = filesOf(process.ppid);
  const links = [...own.values()];
  const isShared = new Set(parents.values());
  const isInherited = (file: number, link: string): boolean => {
    if (link.startsWith('anon_inode:')) return false;
    if (link.startsWith('pipe:'))
      return isShared.has(link) || links.indexOf(link) === links.lastIndexOf(link);
    // Node opens one, so that another Node that has started us may have its own at the same number.
    return link !== '/dev/null' || (parents.get(file) === link && !isClosedOnExec(process.ppid, file));
  };
  passedOn = [...own]
    .filter(([file, link]) => file >= FIRST_OTHER_FILE && isInherited(file, link))
    .map(([file]) => file);
}

/** Descriptors that a program is to inherit, besides the first three. */
export function filesToPassOn(): readonly number[] {
  return passedOn;
}

let others: ReadonlyMap<string, readonly Uint8Array[]> | undefined;

/** Arguments and variables of our own that are not UTF-8, by what Node makes of them. */
function otherStrings(): ReadonlyMap<string, readonly Uint8Array[]> {
  const found = new Map<string, Uint8Array[]>();
  for (const file of ['cmdline', 'environ']) {
    const bytes = readFileSync(`/proc/self/${file}`);
    for (let at = 0; at < bytes.length;) {
      const end = bytes.indexOf(0, at);
      const raw = bytes.subarray(at, end < 0 ? bytes.length : end);
      const text = raw.toString();
      if (text.includes(REPLACEMENT)) found.set(text, [...(found.get(text) ?? []), raw]);
      at += raw.length + 1;
    }
  }
  return found;
}

/** Makes bytes of strings for a program: those that came to us in another encoding are what they were. In their order, if several look alike. */
export function encoder(): (text: string) => Uint8Array {
  const used = new Map<string, number>();
  return (text) => {
    if (!text.includes(REPLACEMENT)) return bytesOfText(text);
    others ??= otherStrings();
    const raw = others.get(text) ?? [];
    const index = used.get(text) ?? 0;
    used.set(text, index + 1);
    return raw.at(Math.min(index, raw.length - 1)) ?? bytesOfText(text);
  };
}
