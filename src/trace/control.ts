// A session can be talked to while it runs, by its own user and by root. One request, one reply (control-message.ts).
//
// Both sides ask the kernel who the other is, whatever the folder of the socket says (control-place.ts): a session answers its own user and
// root; whoever asks speaks only to a process of the user whose session it looks for, so root gives nothing to a socket of another's to which
// a user's link leads. Neither believes what the other says. A session has few connections at the same time, each for a few seconds, with
// one message's memory for all of them: whoever floods it, or says nothing, costs it that and no more.
import { chmodSync, rmSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { CannotError, UsageError, checkOptionTypes } from '../errors/index.js';
import { peerOf } from '../linux/index.js';
import {
  MAX_MESSAGE_BYTES,
  MessageReader,
  MessageRoom,
  encodeReply,
  encodeRequest,
  parseReply,
  parseRequest,
  refusalFor,
  type ControlAnswer,
  type ControlReply,
  type ControlRequest,
} from './control-message.js';
import { ownUser, placeToListen, placesToAsk, type ControlPlace } from './control-place.js';
import type { Session } from './session.js';

export { NO_RUNTIME_FOLDER } from './control-place.js';
export type { ControlAnswer, ControlRequest } from './control-message.js';

const ROOT = 0;
const OWNER_SOCKET = 0o600;
/** A session answers between two looks at its rings, which take long where all processors are busy. */
const PATIENCE_MS = 20_000;
/** What an honest request takes is far less: it is sent at once. */
const CONNECTION_MS = 5000;
const MAX_CONNECTIONS = 16;

/** Of a session, what can be asked of it. */
export type Controlled = Pick<Session, 'pid' | 'switch' | 'status'>;

/** Lets others talk to a session, for as long as it runs. */
export class ControlServer {
  readonly #session: Controlled;
  readonly #server: Server;
  readonly #place: ControlPlace;
  readonly #room = new MessageRoom();
  readonly #open = new Set<Socket>();

  /** Returns once it can be talked to. @throws CannotError CONTROL_SOCKET; NO_RUNTIME_FOLDER: the user has no place for its socket */
  static async open(session: Controlled): Promise<ControlServer> {
    const server = new ControlServer(session, placeToListen(session.pid));
    await server.#listen();
    return server;
  }

  private constructor(session: Controlled, place: ControlPlace) {
    this.#session = session;
    this.#place = place;
    this.#server = createServer((socket) => {
      this.#serve(socket);
    });
    this.#server.maxConnections = MAX_CONNECTIONS;
    // The session decides how long safepoke lives.
    this.#server.unref();
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#open) socket.destroy();
    rmSync(this.#place.path, { force: true });
  }

  async #listen(): Promise<void> {
    const { path } = this.#place;
    try {
      // One that a killed session has left: nobody else traces this process, for then we would not.
      rmSync(path, { force: true });
      await new Promise<void>((resolve, reject) => {
        this.#server.once('error', reject);
        this.#server.listen(path, resolve);
      });
      chmodSync(path, OWNER_SOCKET);
      // There may be no descriptor for one that connects: whoever it is can try again.
      this.#server.on('error', () => undefined);
    } catch (error) {
      throw new CannotError('CONTROL_SOCKET', {
        tried: `listen at ${path} for \`safepoke control\``,
        why: error instanceof Error ? error.message : String(error),
        next: 'see who may write there; the trace itself needs none of it',
        cause: error,
      });
    }
  }

  #serve(socket: Socket): void {
    // Who asked may have gone.
    socket.on('error', () => socket.destroy());
    const uid = peerOf(socket)?.uid;
    if (uid !== ROOT && uid !== this.#place.uid) {
      socket.destroy();
      return;
    }
    socket.unref();
    this.#open.add(socket);
    const reader = new MessageReader(this.#room);
    // Not an idle time: a byte now and then must not keep it open, nor a reply that nobody reads.
    const end = setTimeout(() => socket.destroy(), CONNECTION_MS).unref();
    socket.on('close', () => {
      clearTimeout(end);
      reader.close();
      this.#open.delete(socket);
    });
    const onData = (piece: Uint8Array): void => {
      const message = reader.add(piece);
      if (message === undefined) return;
      socket.off('data', onData);
      socket.pause();
      if (message === 'too-long') socket.destroy();
      else socket.end(encodeReply(this.#reply(message)), () => socket.destroy());
    };
    socket.on('data', onData);
  }

  #reply(message: Uint8Array): ControlReply {
    try {
      const { on, off } = parseRequest(message);
      const matchedOn = on.length === 0 ? 0 : this.#session.switch(on, true);
      const matchedOff = off.length === 0 ? 0 : this.#session.switch(off, false);
      return { matchedOn, matchedOff, status: this.#session.status };
    } catch (error) {
      return refusalFor(error);
    }
  }
}

export interface ControlOptions {
  /** How long to wait for the session, in milliseconds; by default 20 s. */
  readonly patienceMs?: number;
}

/**
 * Asks the session that traces a process, of this user or, as root, of the user whose process it is.
 *
 * @throws CannotError NO_SESSION; NO_ANSWER: it gives none, or none that a session would give. UsageError BAD_REQUEST
 */
export async function control(
  pid: number,
  request: ControlRequest,
  { patienceMs = PATIENCE_MS }: ControlOptions = {},
): Promise<ControlAnswer> {
  checkOptionTypes('control', request, { on: 'strings', off: 'strings' });
  const message = encodeRequest(request);
  for (const place of placesToAsk(pid)) {
    const bytes = await ask(place, message, patienceMs);
    if (bytes === undefined) continue;
    const reply = parseReply(bytes, pid);
    if (reply === undefined) throw noAnswer(place, 'what it says is not what a session answers');
    if ('status' in reply) return reply;
    const { usage, ...details } = reply;
    throw usage ? new UsageError('BAD_REQUEST', details) : new CannotError('NO_ANSWER', details);
  }
  throw new CannotError('NO_SESSION', {
    tried: `talk to the session that traces process ${pid}`,
    why: `no safepoke of yours traces it${ownUser() === ROOT ? '' : ', or none that has a socket in $XDG_RUNTIME_DIR'}`,
    next: 'give the id of a process that `safepoke attach` or `safepoke run` is tracing',
  });
}

function noAnswer({ path }: ControlPlace, why: string): CannotError {
  return new CannotError('NO_ANSWER', {
    tried: `talk to the session at ${path}`,
    why,
    next: 'see whether it still runs, and is of the same version',
  });
}

/** The bytes of a reply. Undefined: nobody listens there. @throws CannotError NO_ANSWER */
function ask(place: ControlPlace, message: Uint8Array, patienceMs: number): Promise<Uint8Array | undefined> {
  return new Promise((resolve, reject) => {
    const reader = new MessageReader();
    const socket = createConnection(place.path);
    let isConnected = false;
    const fail = (why: string): void => {
      reject(noAnswer(place, why));
      socket.destroy();
    };
    const end = setTimeout(() => {
      fail(`it has not answered for ${patienceMs / 1000} s`);
    }, patienceMs);
    socket.on('connect', () => {
      isConnected = true;
      const uid = peerOf(socket)?.uid;
      if (uid === place.uid) socket.write(message);
      else fail(`who listens there is not user ${place.uid}, but ${uid ?? 'nobody that the kernel knows'}`);
    });
    socket.on('data', (piece: Uint8Array) => {
      const reply = reader.add(piece);
      if (reply === undefined) return;
      if (reply === 'too-long') {
        fail(`it says more than ${MAX_MESSAGE_BYTES} bytes`);
      } else {
        resolve(reply);
        socket.destroy();
      }
    });
    // Told by `close`.
    socket.on('error', () => undefined);
    socket.on('close', () => {
      clearTimeout(end);
      if (isConnected) fail('it ended before it answered, or has too many others to answer');
      else resolve(undefined);
    });
  });
}
