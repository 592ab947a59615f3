// Where a session's socket is: in a folder that only its user can have made, and that nobody else can change.
//
//   root        /run/safepoke
//   a user      $XDG_RUNTIME_DIR/safepoke, or /run/user/UID/safepoke: of the first of these folders that is that user's alone
//
// Never /tmp, where whoever comes first owns a name. A user without such a folder has sessions that cannot be talked to.
import { lstatSync, mkdirSync, type Stats } from 'node:fs';
import { isAbsolute, join } from 'node:path';
import { CannotError } from '../errors/index.js';
import { effectiveUser } from '../linux/index.js';

const ROOT = 0;
const NAME = 'safepoke';
const OWNER_ONLY = 0o700;
/** Whoever has these rights in a folder can put another thing in a name's place. */
const OTHERS_WRITE = 0o022;
const OTHERS_ANY = 0o077;

/** A socket, and whose session listens there. */
export interface ControlPlace {
  readonly path: string;
  readonly uid: number;
}

/** No folder is this user's own: not a fault of anybody's. */
export const NO_RUNTIME_FOLDER = 'NO_RUNTIME_FOLDER';

/** Effective user of this process. */
export function ownUser(): number {
  return process.geteuid?.() ?? ROOT;
}

function factsOf(path: string): Stats | undefined {
  try {
    return lstatSync(path);
  } catch {
    return undefined;
  }
}

function isFolderOf(path: string, uid: number, forbidden: number): boolean {
  const facts = factsOf(path);
  return facts?.isDirectory() === true && facts.uid === uid && (facts.mode & forbidden) === 0;
}

/** Folders in which a user's may be made. */
function runtimeFolders(uid: number): string[] {
  if (uid === ROOT) return ['/run'];
  const told = uid === ownUser() ? process.env['XDG_RUNTIME_DIR'] : undefined;
  const usual = `/run/user/${uid}`;
  return told === undefined || !isAbsolute(told) || told === usual ? [usual] : [told, usual];
}

const isRuntimeFolder = (path: string, uid: number): boolean =>
  isFolderOf(path, uid, uid === ROOT ? OTHERS_WRITE : OTHERS_ANY);

/**
 * Where a session of this user's listens; the folder is made.
 *
 * @throws CannotError CONTROL_SOCKET if it is not safe, NO_RUNTIME_FOLDER
 */
export function placeToListen(pid: number): ControlPlace {
  const uid = ownUser();
  const candidates = runtimeFolders(uid);
  const tried = 'listen for `safepoke control`';
  const parent = candidates.find((path) => isRuntimeFolder(path, uid));
  if (parent === undefined) {
    const isThere = candidates.some((path) => factsOf(path) !== undefined);
    throw new CannotError(isThere ? 'CONTROL_SOCKET' : NO_RUNTIME_FOLDER, {
      tried,
      why: `there is no folder that is user ${uid}'s alone: not ${candidates.join(', nor ')}`,
      next: 'set XDG_RUNTIME_DIR to one with mode 0700; the trace itself needs none of it',
    });
  }
  const folder = join(parent, NAME);
  try {
    mkdirSync(folder, { mode: OWNER_ONLY });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== 'EEXIST') {
      throw new CannotError('CONTROL_SOCKET', {
        tried: `make ${folder}, to ${tried}`,
        why: message,
        next: 'see who may write there; the trace itself needs none of it',
        cause: error,
      });
    }
  }
  if (!isFolderOf(folder, uid, OTHERS_WRITE)) {
    throw new CannotError('CONTROL_SOCKET', {
      tried: `use ${folder}, to ${tried}`,
      why: `it is no folder of user ${uid}'s, or others may write there`,
      next: 'remove it; the trace itself needs none of it',
    });
  }
  return { path: join(folder, socketName(pid)), uid };
}

/**
 * Where a session may listen that traces a process: one of this user's, and for root one of the user's whose process it is. A name that
 * somebody else could have put there is none.
 */
export function placesToAsk(pid: number): ControlPlace[] {
  const uids = new Set([ownUser(), ...(ownUser() === ROOT ? [effectiveUser(pid) ?? ROOT] : [])]);
  return [...uids].flatMap((uid) =>
    runtimeFolders(uid)
      .filter((parent) => isRuntimeFolder(parent, uid) && isFolderOf(join(parent, NAME), uid, OTHERS_WRITE))
      .map((parent) => ({ path: join(parent, NAME, socketName(pid)), uid }))
      .filter(({ path }) => {
        const facts = factsOf(path);
        return facts?.isSocket() === true && facts.uid === uid;
      }),
  );
}

function socketName(pid: number): string {
  return `${pid}.socket`;
}
