// Following a program from inside into the one that it executes: the tracer's side of executing.ts. A thread asks; what it is about to
// execute is looked at as it will find it, and if our object can be loaded with that, a block and the object are made ready for it, and
// the environment is written in which our variable stands last. The program then waits, as any that we start, until it is adopted.
//
// It never waits in vain: whoever does not want it any more lets it go, and that is remembered in its block, also if it comes later.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { AgentThread, ResidentThread } from '../agent/index.js';
import { CannotError, isSafepokeError } from '../errors/index.js';
import {
  AT_FDCWD,
  EVERYBODY,
  FUTEX,
  SYS,
  faultPoint,
  hasEnded,
  isInEnvironment,
  readLimit,
  readLink,
  readStatus,
  systemCall,
  textOfBytes,
} from '../linux/index.js';
import { hasOurFilters, mayExecute } from '../target/index.js';
import { checkProgram, hasProgramFormat, type Identity } from './check-program.js';
import type { InsideMemory } from './inside-memory.js';
import { BLOCK, ENVIRONMENT_SIZE, EXECUTION, EXECUTION_KIND, FOLLOW } from './layout.js';
import { awaitReady, failureOf, letGo, type Block, type Files } from './loading.js';
import { preloadVariable } from './shared-object.js';

/** PATH_MAX, include/uapi/linux/limits.h, and the most that one string of an environment may have (MAX_ARG_STRLEN). */
const PATH_BYTES = 4096;
const STRING_BYTES = 32 * 4096;
const POINTER = 8;
/** Where a C library looks that finds no PATH (confstr). */
const DEFAULT_PATH = '/bin:/usr/bin';
const SHELL = '/bin/sh';
/** So long a program may take to be seen as the one that was made ready; it is looked at so often then. */
const FOREIGN_MS = 500;
/** With less address space a program may get by, and lack what is ours. */
const LEAST_ADDRESS_SPACE = 2 ** 30;
/** With this variable the dynamic loader lists what it loads, and runs nothing. */
const LIST_ONLY = 'LD_TRACE_LOADED_OBJECTS';
/** Of each variable so much is read as tells whether it is one of ours. */
const HEAD_BYTES = `${LIST_ONLY}=`.length;
const QUICKER = 'another thread, or a signal handler, was quicker to execute something';
/** A program that waits for nobody is let go after this time. */
const ADOPT_PATIENCE_MS = 2000;

/** What a thread asks. */
interface Request {
  readonly kind: number;
  readonly tid: number;
  readonly directory: number;
  readonly path: number;
  readonly environment: number;
}

/** An environment of the target's. */
interface Entries {
  readonly pointers: readonly bigint[];
  /** How each begins: its name at least, if it is one of those that are looked for. */
  readonly heads: readonly string[];
}

/** A file, and how the target calls it. */
interface Named {
  readonly file: string;
  readonly name: string;
}

export class Following {
  readonly #pid: number;
  readonly #files: Files;
  readonly #block: Block;
  readonly #address: number;
  readonly #memory: InsideMemory;
  readonly #thread: AgentThread;
  readonly #words: Int32Array;
  readonly #view: DataView;
  /** For the program that comes; it stays ready while what was to be executed could not be. */
  #next: Block | undefined;
  #nextFiles: { readonly blockFile: number; readonly objectFile: number } | undefined;
  /** Why what was asked for last is not followed. */
  #refusal: Error | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(
    pid: number,
    files: Files,
    block: Block,
    { thread, address }: ResidentThread,
    memory: InsideMemory,
  ) {
    this.#pid = pid;
    this.#thread = thread;
    this.#files = files;
    this.#block = block;
    this.#address = address;
    this.#memory = memory;
    this.#words = new Int32Array(block.mapping.bytes);
    this.#view = new DataView(block.mapping.bytes);
  }

  /** From now on threads ask; `serve` must be called often. */
  begin(): void {
    this.#keep();
    Atomics.store(this.#words, BLOCK.follow / 4, FOLLOW.yes);
  }

  /** No thread asks any more. One that comes all the same, since it has been answered already, does not wait. */
  end(): void {
    this.#keep();
    if (Atomics.load(this.#words, BLOCK.follow / 4) === FOLLOW.yes)
      Atomics.store(this.#words, BLOCK.follow / 4, FOLLOW.no);
    this.#answer(EXECUTION.denied);
    this.#refusal = this.refusal;
    if (this.#next !== undefined) letGo(this.#next);
    this.#next = undefined;
  }

  /** Somebody is expected to go on with this soon, by `begin` or `adopt`. If nobody does, it ends. */
  leave(): void {
    this.#keep();
    this.#timer = setTimeout(() => {
      this.end();
    }, ADOPT_PATIENCE_MS).unref();
  }

  #keep(): void {
    clearTimeout(this.#timer);
  }

  /** A successor waits to be adopted. */
  get hasSuccessor(): boolean {
    return this.#next !== undefined && new Int32Array(this.#next.mapping.bytes)[BLOCK.waiting / 4] !== 0;
  }

  /** A thread waits for an answer. */
  get isAsked(): boolean {
    return Atomics.load(this.#words, BLOCK.execution / 4) === EXECUTION.asked;
  }

  /** Answers a thread that asks, if one does. */
  serve(): void {
    if (!this.isAsked) return;
    let answer: number = EXECUTION.denied;
    try {
      this.#prepare(this.#request());
      answer = EXECUTION.granted;
    } catch (error) {
      // Whatever it is, the thread must not wait for it.
      this.#refusal = this.#reasonOf(error);
    }
    faultPoint();
    this.#answer(answer);
  }

  /** Where the program is another already, or has ended, what has been looked at tells nothing. */
  #reasonOf(error: unknown): Error | undefined {
    if (!this.#thread.isPresent) {
      return hasEnded(this.#pid) ? undefined : notFollowed(this.#pid, QUICKER);
    }
    if (isSafepokeError(error)) return error;
    return notFollowed(this.#pid, error instanceof Error ? error.message : String(error));
  }

  /**
   * The block of the program that this one has become, which waits, and the descriptors that it has kept. `checkEnd` throws when the
   * process has ended.
   *
   * @throws CannotError with the reason why it is none of ours; it runs then
   */
  adopt(checkEnd: () => void): {
    readonly block: Block;
    readonly blockFile: number;
    readonly objectFile: number;
  } {
    this.#keep();
    const block = this.#next;
    const files = this.#nextFiles;
    const state = Atomics.load(this.#words, BLOCK.execution / 4);
    try {
      checkEnd();
      if (block === undefined || files === undefined || state !== EXECUTION.granted) throw this.#why();
      const { objectFile } = files;
      const since = performance.now();
      awaitReady(this.#successor, block, () => {
        checkEnd();
        if (performance.now() - since < FOREIGN_MS || hasOurVariable(this.#pid, objectFile)) return;
        throw notFollowed(this.#pid, QUICKER);
      });
    } catch (error) {
      this.end();
      throw error;
    }
    this.#next = undefined;
    this.#block.owner.release();
    this.#files.empty(this.#block);
    return { block, ...files };
  }

  /** Why the program that the process has become, which may have ended meanwhile, was not followed; undefined where nobody knows. */
  get refusal(): Error | undefined {
    switch (Atomics.load(this.#words, BLOCK.execution / 4)) {
      case EXECUTION.denied:
        return this.#refusal;
      case EXECUTION.granted:
        return this.#refusal ?? (this.#next && failureOf(this.#successor, this.#next));
      case EXECUTION.noFiles:
        return notFollowed(
          this.#pid,
          'it may open too few further files (ulimit -n), and what it executes would lack them',
        );
      default:
        return undefined;
    }
  }

  /** How it is called. */
  get #successor(): string {
    return `what process ${this.#pid} executes`;
  }

  #why(): Error {
    if (this.refusal !== undefined) return this.refusal;
    switch (Atomics.load(this.#words, BLOCK.follow / 4)) {
      case FOLLOW.tired:
        return notFollowed(this.#pid, 'safepoke has not got round to making it ready in time');
      case FOLLOW.no:
        return notFollowed(this.#pid, 'nobody followed it any more, and it runs without us');
      default:
        return notFollowed(
          this.#pid,
          'it was executed past the C library, by a system call of its own, or while another was, and nothing of ours is loaded with it',
        );
    }
  }

  #answer(answer: number): void {
    const { asked } = EXECUTION;
    if (Atomics.compareExchange(this.#words, BLOCK.execution / 4, asked, answer) !== asked) return;
    systemCall(SYS.futex, this.#block.mapping.address + BigInt(BLOCK.execution), FUTEX.wake, EVERYBODY);
  }

  #request(): Request {
    const view = this.#view;
    return {
      kind: view.getUint32(BLOCK.executionKind, true),
      tid: view.getUint32(BLOCK.asker, true),
      directory: view.getInt32(BLOCK.directory, true),
      path: Number(view.getBigUint64(BLOCK.path, true)),
      environment: Number(view.getBigUint64(BLOCK.givenEnvironment, true)),
    };
  }

  #prepare(request: Request): void {
    this.#refusal = undefined;
    const status = readStatus(this.#pid);
    if (!hasOurFilters(this.#pid)) {
      throw notFollowed(
        this.#pid,
        'it has confined itself by a seccomp filter, which the program inherits that it executes, and which may kill what does something unforeseen',
      );
    }
    const addressSpace = readLimit(this.#pid, 'Max address space');
    if (addressSpace !== undefined && addressSpace < LEAST_ADDRESS_SPACE) {
      throw notFollowed(
        this.#pid,
        `its address space is limited to ${addressSpace} bytes (ulimit -v), of which our memory would take a part`,
      );
    }
    const from = this.#threadPath(request.tid);
    const { file, name } = this.#fileOf(request, from);
    checkProgram(file, name, this.#identity(status), (interpreter) => asFoundFrom(from, interpreter));
    const entries = this.#read(request.environment);
    if (this.#value(entries, LIST_ONLY, 'first') !== undefined) {
      throw notFollowed(
        this.#pid,
        `${LIST_ONLY} is set for what it executes: the dynamic loader lists what it loads, our object too, and runs nothing`,
      );
    }
    const block = (this.#next ??= this.#files.newBlock());
    const blockFile = this.#view.getUint32(BLOCK.nextBlockFile, true);
    const objectFile = this.#view.getUint32(BLOCK.nextObjectFile, true);
    faultPoint();
    this.#writeEnvironment(entries, objectFile);
    faultPoint();
    this.#files.giveNext(block, blockFile, objectFile);
    this.#nextFiles = { blockFile, objectFile };
  }

  /** Whoever is not who it was started as gets nothing loaded by the dynamic loader. */
  #identity(status: ReadonlyMap<string, string> | undefined): Identity {
    const ids = (name: string): readonly string[] => (status?.get(name) ?? '').split(/\s+/);
    const [uid, effectiveUid] = ids('Uid');
    const [gid, effectiveGid] = ids('Gid');
    if (uid !== effectiveUid || gid !== effectiveGid) {
      throw notFollowed(
        this.#pid,
        'it has the rights of another user, and the dynamic loader loads nothing with what it executes',
      );
    }
    return { uid: Number(uid), gid: Number(gid) };
  }

  /** Where what is of a thread's own is found: its files, its current directory. */
  #threadPath(tid: number): string {
    const thread = `/proc/${this.#pid}/task/${tid}`;
    const from = existsSync(thread) ? thread : `/proc/${this.#pid}`;
    this.#checkPlace(from);
    return from;
  }

  /** The file as we find it which the thread is about to execute. */
  #fileOf({ kind, directory, path }: Request, from: string): Named {
    const byDescriptor = `${from}/fd/${directory}`;
    if (kind === EXECUTION_KIND.descriptor) return { file: byDescriptor, name: `descriptor ${directory}` };
    const name = textOfBytes(this.#string(path, PATH_BYTES));
    if (kind === EXECUTION_KIND.search) return { file: this.#search(name, from), name };
    if (kind === EXECUTION_KIND.at && directory !== AT_FDCWD && !name.startsWith('/'))
      return { file: name === '' ? byDescriptor : `${byDescriptor}/${name}`, name };
    return { file: asFoundFrom(from, name), name };
  }

  /** As execvp does: the first of the candidates that may be executed. What the kernel cannot execute is a script for the shell. */
  #search(name: string, from: string): string {
    const ownEnvironment = Number(this.#view.getBigUint64(BLOCK.ownEnvironment, true));
    const path = name.includes('/') ? undefined : this.#value(this.#read(ownEnvironment), 'PATH', 'first');
    const folders = path === undefined ? DEFAULT_PATH : textOfBytes(path);
    const candidates = name.includes('/') ? [name] : folders.split(':').map((folder) => join(folder, name));
    const file = candidates.map((candidate) => asFoundFrom(from, candidate)).find(mayExecute);
    if (file === undefined) throw notFollowed(this.#pid, `${name} is not found`);
    return hasProgramFormat(file) ? file : asFoundFrom(from, SHELL);
  }

  /** Files are looked for from our own root. */
  #checkPlace(from: string): void {
    const places = ['root', 'ns/mnt'].map((link) => [
      readLink(`${from}/${link}`),
      readLink(`/proc/self/${link}`),
    ]);
    if (places.some(([theirs]) => theirs === undefined))
      throw notFollowed(this.#pid, 'safepoke may not look at its files: it has become another user’s');
    if (places.some(([theirs, ours]) => theirs !== ours))
      throw notFollowed(this.#pid, 'it has another root directory or other mounts than safepoke');
  }

  #string(address: number, most: number): Uint8Array {
    const pieces: Uint8Array[] = [];
    for (let length = 0; length < most; length += PATH_BYTES) {
      const piece = this.#memory.readSome(address + length, PATH_BYTES);
      const end = piece.indexOf(0);
      pieces.push(end < 0 ? piece : piece.subarray(0, end));
      if (end >= 0) return Buffer.concat(pieces);
      if (piece.length < PATH_BYTES) break;
    }
    throw notFollowed(this.#pid, 'it gives an address at which there is no string');
  }

  #read(environment: number): Entries {
    const pointers = environment === 0 ? [] : this.#pointers(environment);
    const heads = this.#memory.readMany(
      pointers.map((pointer) => ({ address: Number(pointer), length: HEAD_BYTES })),
    );
    return { pointers, heads: heads.map((head) => Buffer.from(head).toString('latin1')) };
  }

  /** The value of a variable, where it stands several times the first, or the last. */
  #value({ pointers, heads }: Entries, name: string, which: 'first' | 'last'): Uint8Array | undefined {
    const start = `${name}=`;
    const isIt = (head: string): boolean => head.startsWith(start);
    const at = which === 'first' ? heads.findIndex(isIt) : heads.findLastIndex(isIt);
    return at < 0 ? undefined : this.#string(Number(pointers[at]), STRING_BYTES).subarray(start.length);
  }

  #pointers(environment: number): bigint[] {
    const pointers: bigint[] = [];
    for (let at = environment; pointers.length < ENVIRONMENT_SIZE / POINTER; at += PATH_BYTES) {
      const bytes = this.#memory.readSome(at, PATH_BYTES);
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      for (let i = 0; i + POINTER <= bytes.length; i += POINTER) {
        const pointer = view.getBigUint64(i, true);
        if (pointer === 0n) return pointers;
        pointers.push(pointer);
      }
      if (bytes.length < PATH_BYTES) break;
    }
    throw notFollowed(this.#pid, 'its environment cannot be read, or is too large');
  }

  /** The program's entries, and ours: of two variables the loader takes the last. */
  #writeEnvironment(entries: Entries, objectFile: number): void {
    const { pointers } = entries;
    const others = this.#value(entries, 'LD_PRELOAD', 'last') ?? new Uint8Array();
    const own = preloadVariable(objectFile);
    const text = Buffer.concat([
      Buffer.from(others.length === 0 ? own : `${own}:`),
      others,
      Uint8Array.of(0),
    ]);
    const textAt = (pointers.length + 2) * POINTER;
    if (textAt + text.length > ENVIRONMENT_SIZE) throw notFollowed(this.#pid, 'its environment is too large');
    const at = BLOCK.environment;
    pointers.forEach((pointer, i) => {
      this.#view.setBigUint64(at + i * POINTER, pointer, true);
    });
    this.#view.setBigUint64(at + pointers.length * POINTER, BigInt(this.#address + at + textAt), true);
    this.#view.setBigUint64(at + (pointers.length + 1) * POINTER, 0n, true);
    new Uint8Array(this.#block.mapping.bytes).set(text, at + textAt);
  }
}

function notFollowed(pid: number, why: string): CannotError {
  return new CannotError('NOT_INSIDE', {
    tried: `go on from inside in what process ${pid} executes`,
    why,
    next: 'trace it from outside, or start that program itself with `safepoke run --inside`',
  });
}

/** Names that lead to whoever asks. */
function asFoundFrom(from: string, name: string): string {
  if (!name.startsWith('/')) return `${from}/cwd/${name}`;
  return name
    .replace(/^\/proc\/(self|thread-self)(?=\/)/, from)
    .replace(/^\/dev\/fd(?=\/)/, `${from}/fd`)
    .replace(/^\/dev\/stdin$/, `${from}/fd/0`);
}

/** What a process was given at its start tells, where it can be read at all. */
function hasOurVariable(pid: number, objectFile: number): boolean {
  // It cannot be read where it has become another user's, or has ended.
  return isInEnvironment(pid, preloadVariable(objectFile)) ?? !hasEnded(pid);
}
