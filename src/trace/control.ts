// A session can be talked to while it runs, by whoever may write to its socket: the user that runs it, and root. One request, one
// answer, each a line of JSON.
import { chmodSync, lstatSync, mkdirSync, rmSync, statSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { CannotError, UsageError, checkOptionTypes, isSafepokeError } from '../errors/index.js';
import type { Session } from './session.js';
import type { SessionStatus } from './summary.js';

/** Where the folders with sockets are: not TMPDIR, which may differ between the session and whoever asks. */
const SOCKETS = '/tmp';
const OWNER_ONLY = 0o700;
const OWNER_SOCKET = 0o600;
/** A session answers between two looks at its rings, which take long where all processors are busy. */
const PATIENCE_MS = 60_000;
/** No honest request is longer. */
const MAX_REQUEST = 1 << 20;

/** What to do: functions to switch on, then those to switch off. */
export interface ControlRequest {
  readonly on: readonly string[];
  readonly off: readonly string[];
}

/** What was done, and how things are now. */
export interface ControlAnswer {
  /** Functions that the patterns matched. */
  readonly matchedOn: number;
  readonly matchedOff: number;
  readonly status: SessionStatus;
}

/** A line of the socket: an answer, or why there is none. */
type Reply =
  | ControlAnswer
  | { readonly usage: boolean; readonly tried: string; readonly why: string; readonly next: string };

function folderOf(uid: number): string {
  return join(SOCKETS, `safepoke-${uid}`);
}

function socketOf(uid: number, pid: number): string {
  return join(folderOf(uid), `${pid}.socket`);
}

function ownUid(): number {
  return process.getuid?.() ?? 0;
}

/** Lets others talk to a session, for as long as it runs. */
export class ControlServer {
  readonly #session: Session;
  readonly #server: Server;
  readonly #path: string;

  /** Returns once it can be talked to. @throws CannotError CONTROL_SOCKET */
  static async open(session: Session): Promise<ControlServer> {
    const server = new ControlServer(session);
    await server.#listen();
    return server;
  }

  private constructor(session: Session) {
    this.#session = session;
    this.#path = socketOf(ownUid(), session.pid);
    this.#server = createServer((socket) => {
      this.#serve(socket);
    });
    // The session decides how long safepoke lives.
    this.#server.unref();
  }

  close(): void {
    this.#server.close();
    rmSync(this.#path, { force: true });
  }

  async #listen(): Promise<void> {
    try {
      const folder = folderOf(ownUid());
      mkdirSync(folder, { recursive: true, mode: OWNER_ONLY });
      const facts = lstatSync(folder);
      if (!facts.isDirectory() || facts.uid !== ownUid() || (facts.mode & 0o077) !== 0)
        throw new Error(`${folder} belongs to somebody else, or is open to others`);
      // One that a killed session has left: nobody else traces this process, for then we would not.
      rmSync(this.#path, { force: true });
      await new Promise<void>((resolve, reject) => {
        this.#server.once('error', reject);
        this.#server.listen(this.#path, resolve);
      });
      chmodSync(this.#path, OWNER_SOCKET);
    } catch (error) {
      throw new CannotError('CONTROL_SOCKET', {
        tried: `listen at ${this.#path} for \`safepoke control\``,
        why: error instanceof Error ? error.message : String(error),
        next: 'see who may write there; the trace itself needs none of it',
        cause: error,
      });
    }
  }

  #serve(socket: Socket): void {
    let text = '';
    socket.setEncoding('utf8');
    socket.unref();
    // Who asked may have gone.
    socket.on('error', () => socket.destroy());
    socket.on('data', (piece: string) => {
      text += piece;
      if (text.length > MAX_REQUEST) socket.destroy();
      const end = text.indexOf('\n');
      if (end >= 0) socket.end(`${JSON.stringify(this.#answer(text.slice(0, end)))}\n`);
    });
  }

  #answer(line: string): Reply {
    try {
      const { on, off } = parseRequest(line);
      const matchedOn = on.length === 0 ? 0 : this.#session.switch(on, true);
      const matchedOff = off.length === 0 ? 0 : this.#session.switch(off, false);
      return { matchedOn, matchedOff, status: this.#session.status };
    } catch (error) {
      if (!isSafepokeError(error)) throw error;
      const { tried, why, next } = error.details;
      return { usage: error instanceof UsageError, tried, why, next };
    }
  }
}

function parseRequest(line: string): ControlRequest {
  let request: unknown;
  try {
    request = JSON.parse(line);
  } catch {
    request = undefined;
  }
  const { on, off } = (request ?? {}) as { readonly on?: unknown; readonly off?: unknown };
  if (isTexts(on) && isTexts(off)) return { on, off };
  throw new UsageError('BAD_REQUEST', {
    tried: 'read a request',
    why: 'it is not {"on": [...], "off": [...]}',
    next: 'use `safepoke control` of the same version',
  });
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((item) => typeof item === 'string');
}

/**
 * Asks the session that traces a process, of this user or, as root, of the user whose process it is.
 *
 * @throws CannotError NO_SESSION, NO_ANSWER; what the session throws
 */
export async function control(pid: number, request: ControlRequest): Promise<ControlAnswer> {
  checkOptionTypes('control', request, { on: 'strings', off: 'strings' });
  const uids = [ownUid(), ownerOf(pid)].filter((uid) => uid !== undefined);
  for (const uid of new Set(uids)) {
    const reply = await ask(socketOf(uid, pid), request);
    if (reply === undefined) continue;
    if ('status' in reply) return reply;
    const { usage, ...details } = reply;
    throw usage ? new UsageError('BAD_REQUEST', details) : new CannotError('NO_ANSWER', details);
  }
  throw new CannotError('NO_SESSION', {
    tried: `talk to the session that traces process ${pid}`,
    why: 'no safepoke of yours traces it',
    next: 'give the id of a process that `safepoke attach` or `safepoke run` is tracing',
  });
}

function ownerOf(pid: number): number | undefined {
  try {
    return statSync(`/proc/${pid}`).uid;
  } catch {
    return undefined;
  }
}

/** Undefined: nobody listens there. */
async function ask(path: string, request: ControlRequest): Promise<Reply | undefined> {
  const text = await new Promise<string | undefined>((resolve) => {
    let received = '';
    const socket = createConnection(path);
    socket.setEncoding('utf8');
    socket.setTimeout(PATIENCE_MS, () => socket.destroy());
    socket.on('connect', () => socket.write(`${JSON.stringify(request)}\n`));
    socket.on('data', (piece: string) => (received += piece));
    socket.on('error', () => {
      resolve(undefined);
    });
    socket.on('close', () => {
      resolve(received);
    });
  });
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text) as Reply;
  } catch {
    throw new CannotError('NO_ANSWER', {
      tried: `talk to the session at ${path}`,
      why: 'it ended before it answered',
      next: 'see whether it still runs',
    });
  }
}
