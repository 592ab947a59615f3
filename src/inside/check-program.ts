// Whether a program can have our object loaded with it: known before it is started.
import { closeSync, constants, fstatSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { parseElf } from '../elf/index.js';
import { CannotError } from '../errors/index.js';
import { SYS, addressOf, systemCall } from '../linux/index.js';
import { checkMachine } from '../target/index.js';

/** BINPRM_BUF_SIZE, and how deep interpreters may be nested (fs/exec.c). */
const HEAD_BYTES = 256;
const MAX_INTERPRETERS = 5;
const SET_ID_BITS = 0o6000;

/** Why our object is not loaded with a program that has nothing of which the object could ask where the C library's functions are. */
export const NO_C_LIBRARY = 'it has no C library, without which our object can do nothing';

function refused(path: string, why: string, next: string): CannotError {
  return new CannotError('NOT_INSIDE', { tried: `trace ${path} from inside`, why, next });
}

/** include/uapi/asm-generic/fcntl.h: names a file and opens nothing. */
const O_PATH = 0o1000_0000;

/**
 * Opens a file that a program is about to execute, by a name or a descriptor of its own: it may be a pipe in which nothing comes, or a device.
 * It is named first, and opened if it is an ordinary file. Throws an Error with a code.
 */
function withFile<T>(path: string, read: (file: number) => T): T {
  const named = openSync(path, O_PATH);
  try {
    if (!fstatSync(named).isFile()) throw Object.assign(new Error('no ordinary file'), { code: 'EACCES' });
    const file = openSync(
      `/proc/self/fd/${named}`,
      constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY,
    );
    try {
      return read(file);
    } finally {
      closeSync(file);
    }
  } finally {
    closeSync(named);
  }
}

function readHead(path: string): Uint8Array {
  return withFile(path, (file) => {
    const bytes = new Uint8Array(HEAD_BYTES);
    return bytes.subarray(0, readSync(file, bytes, 0, HEAD_BYTES, 0));
  });
}

/** The file that the kernel maps for a program: a script's interpreter, as `find` finds it. */
function executableOf(path: string, find: (name: string) => string): string {
  let file = path;
  for (let depth = 0; depth < MAX_INTERPRETERS; depth++) {
    const line = new TextDecoder('latin1').decode(readHead(file));
    const interpreter = /^#![ \t]*([^ \t\n]+)/.exec(line);
    if (interpreter === null) return file;
    file = find(interpreter[1]);
  }
  return file;
}

function hasCapabilities(path: string): boolean {
  const encode = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`);
  const [file, name] = [encode(path), encode('security.capability')];
  return systemCall(SYS.getxattr, addressOf(file), addressOf(name), 0, 0) > 0;
}

/** Who is to execute a program. */
export interface Identity {
  readonly uid: number | undefined;
  readonly gid: number | undefined;
}

/** True if the kernel can execute it, as far as its beginning tells. */
export function hasProgramFormat(file: string): boolean {
  const head = new TextDecoder('latin1').decode(readHead(file));
  return head.startsWith('#!') || head.startsWith('\x7fELF');
}

/** `path` is what it is called, `found` where we find it; `find` says where a script's interpreter is found. @throws CannotError NOT_INSIDE, NOT_X86_64, NOT_STARTED */
export function checkProgram(
  found: string,
  path = found,
  identity: Identity = { uid: process.geteuid?.(), gid: process.getegid?.() },
  find = (name: string): string => name,
): void {
  let file: string;
  let bytes: Uint8Array;
  try {
    file = executableOf(found, find);
    bytes = withFile(file, (opened) => readFileSync(opened));
  } catch (error) {
    throw refused(
      path,
      `it cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`,
      'run it without --inside',
    );
  }
  checkMachine(bytes, `run ${file === found ? path : file}`);
  const { mode, uid, gid } = statSync(file);
  const isOther = uid !== identity.uid || gid !== identity.gid;
  if (((mode & SET_ID_BITS) !== 0 && isOther) || hasCapabilities(file)) {
    throw refused(
      path,
      'it gets the rights of another user or capabilities, and the dynamic loader loads nothing with such a program',
      'run safepoke as root, without --inside',
    );
  }
  const { interpreter, needed } = parseElf(bytes, file);
  if (interpreter === undefined) {
    throw refused(
      path,
      'it is a static program, with which no dynamic loader loads anything',
      'run it without --inside',
    );
  }
  // One that needs a library has a C library by way of that, as a rule; where not the object itself finds out.
  if (needed.length === 0) throw refused(path, NO_C_LIBRARY, 'run it without --inside');
  if (interpreter.includes('musl')) {
    throw refused(
      path,
      'its C library is musl, with which this has not been made to work',
      'run it without --inside',
    );
  }
}
