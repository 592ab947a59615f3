// Whether a program can have our object loaded with it: known before it is started.
import { parseElf } from '../elf/index.js';
import { CannotError } from '../errors/index.js';
import {
  NotRegularError,
  RegularFile,
  SYS,
  addressOf,
  bytesOfText,
  systemCall,
  textOfBytes,
} from '../linux/index.js';
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

function headOf(file: RegularFile): string {
  const bytes = new Uint8Array(HEAD_BYTES);
  return Buffer.from(bytes.buffer, 0, file.read(bytes, 0)).toString('latin1');
}

/** The file that the kernel maps for a program: a script's interpreter, as `find` finds it. */
function executableOf(path: string, find: (name: string) => string): { path: string; file: RegularFile } {
  let at = path;
  for (let depth = 0; ; depth++) {
    const file = RegularFile.open(bytesOfText(at));
    const interpreter = /^#![ \t]*([^ \t\n]+)/.exec(headOf(file));
    if (interpreter === null || depth === MAX_INTERPRETERS) return { path: at, file };
    at = find(textOfBytes(Buffer.from(interpreter[1], 'latin1')));
  }
}

function hasCapabilities(path: string): boolean {
  const [file, name] = [bytesOfText(`${path}\0`), Buffer.from('security.capability\0')];
  return systemCall(SYS.getxattr, addressOf(file), addressOf(name), 0, 0) > 0;
}

/** Who is to execute a program. */
export interface Identity {
  readonly uid: number | undefined;
  readonly gid: number | undefined;
}

/** True if the kernel can execute it, as far as its beginning tells. */
export function hasProgramFormat(file: string): boolean {
  const head = headOf(RegularFile.open(bytesOfText(file)));
  return head.startsWith('#!') || head.startsWith('\x7fELF');
}

/** `path` is what it is called, `found` where we find it; `find` says where a script's interpreter is found. @throws CannotError NOT_INSIDE, NOT_X86_64, NOT_STARTED */
export function checkProgram(
  found: string,
  path = found,
  identity: Identity = { uid: process.geteuid?.(), gid: process.getegid?.() },
  find = (name: string): string => name,
): void {
  let executable: { path: string; file: RegularFile };
  try {
    executable = executableOf(found, find);
  } catch (error) {
    const why =
      error instanceof NotRegularError
        ? error.message
        : `it cannot be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'})`;
    throw refused(path, why, 'run it without --inside');
  }
  const { file } = executable;
  const head = new Uint8Array(HEAD_BYTES);
  file.read(head, 0);
  checkMachine(head, `run ${executable.path === found ? path : executable.path}`);
  const { mode, uid, gid } = file;
  const isOther = uid !== identity.uid || gid !== identity.gid;
  if (((mode & SET_ID_BITS) !== 0 && isOther) || hasCapabilities(executable.path)) {
    throw refused(
      path,
      'it gets the rights of another user or capabilities, and the dynamic loader loads nothing with such a program',
      'run safepoke as root, without --inside',
    );
  }
  const { interpreter, needed } = parseElf(file, executable.path);
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
