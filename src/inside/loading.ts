// What a program is given that has our object loaded with it, and the wait until it has come so far that nothing but its own code is
// still to begin.
import { closeSync, fchmodSync, writeSync } from 'node:fs';
import { AGENT, AgentThread, SHARED_NAME, rightsToGiveUp, type GivenUp } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import {
  EVERYBODY,
  FUTEX,
  FUTEX_OWNER_DIED,
  MAP,
  PROT,
  SEEK_SET,
  SYS,
  createGrowingFile,
  createOpenFile,
  errnoName,
  growMemoryFile,
  mapOwn,
  readStatus,
  systemCall,
  type OwnMapping,
  type OwnerWord,
} from '../linux/index.js';
import { SECCOMP_FILTER, pause } from '../target/index.js';
import { NO_C_LIBRARY } from './check-program.js';
import { BLOCK, PRIVATE_HEAD } from './layout.js';
import { NO_LIBRARY } from './listing.js';
import { makeSharedObject } from './shared-object.js';

const OBJECT_NAME = 'safepoke-inside';
const OWNER_FILE = 0o600;
const F_SETFD = 2;
const FD_CLOEXEC = 1;
/** FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, include/uapi/linux/falloc.h */
const PUNCH_HOLE = 0x3;
/** Until the dynamic loader has loaded the program's libraries and ours. */
const LOAD_PATIENCE_MS = 30_000;
const LOAD_POLL_MS = 0.5;

/**
 * Blocks that nobody looks at any more: a session of a program that has become another reads what that has left, for as long as its owner
 * likes, and nothing else says when that is over.
 */
const unused = new FinalizationRegistry<bigint>((address) => {
  systemCall(SYS.munmap, address, BLOCK.size);
});

/** What the agent's thread of a program gives up that we start: it has our own rights, and our own filters, which we cannot read. */
function programGivesUp(): GivenUp {
  const { pid } = process;
  const isFree = readStatus(pid)?.get('Seccomp') !== SECCOMP_FILTER;
  return rightsToGiveUp(pid, pid, () => isFree);
}

/** A block that nobody has mapped yet but we. It is not unmapped by hand, but when no view of it is left, and its owner has been released. */
export interface Block {
  readonly mapping: OwnMapping;
  readonly owner: OwnerWord;
  /** Where it begins in its file. */
  readonly offset: number;
}

/** Two files in memory, of blocks and of the object: a program has them from us, and its successors one from the other. */
export class Files {
  readonly #block: number;
  readonly #object: number;
  /** Where the next block begins. */
  #end = 0;

  constructor() {
    this.#block = createGrowingFile(SHARED_NAME);
    this.#object = createOpenFile(OBJECT_NAME);
    // Whoever may look into /proc/PID/fd of ours or of the program's opens them by their modes.
    fchmodSync(this.#block, OWNER_FILE);
    fchmodSync(this.#object, OWNER_FILE);
  }

  close(): void {
    closeSync(this.#block);
    closeSync(this.#object);
  }

  /** A block of its own for each program: what the one before has left can still be read. */
  newBlock(): Block {
    const offset = this.#end;
    growMemoryFile(this.#block, offset + BLOCK.size);
    const mapping = mapOwn(BLOCK.size, PROT.read | PROT.write, MAP.shared, this.#block, offset);
    unused.register(mapping.bytes, mapping.address);
    this.#end += BLOCK.size;
    return { mapping, owner: AgentThread.prepare(mapping, programGivesUp()), offset };
  }

  /** The memory of a block that is of no use any more goes; where it is still mapped there are zeros. */
  empty({ offset }: Block): void {
    systemCall(SYS.fallocate, this.#block, PUNCH_HOLE, offset, BLOCK.size);
  }

  /** The object as the program gets it that we start: it inherits the files while `start` runs. Returns the descriptor of the object. */
  giveFirst<T>(block: Block, start: (objectFile: number) => T): T {
    writeSync(this.#object, this.#objectFor(block, this.#block, this.#object, false));
    this.#setCloseOnExec(0);
    try {
      return start(this.#object);
    } finally {
      this.#setCloseOnExec(FD_CLOEXEC);
    }
  }

  /** The object as a successor gets it, which inherits these descriptors. The program itself has its own copy of what changes. */
  giveNext(block: Block, blockFile: number, objectFile: number): void {
    const head = this.#objectFor(block, blockFile, objectFile, true).subarray(
      PRIVATE_HEAD.start,
      PRIVATE_HEAD.end,
    );
    // Filters that forbid pwrite64 to programs may be ours as well.
    systemCall(SYS.lseek, this.#object, PRIVATE_HEAD.start, SEEK_SET);
    writeSync(this.#object, head);
  }

  /** Writes the names into a block by which threads of its program open the agent's thread's descriptors, which are as we gave them. */
  tellKept({ mapping }: Block, agentTid: number, blockFile: number, objectFile: number): void {
    const bytes = new Uint8Array(mapping.bytes);
    const name = (file: number): Uint8Array =>
      new TextEncoder().encode(`/proc/self/task/${agentTid}/fd/${file}\0`);
    bytes.set(name(blockFile), BLOCK.keptBlock);
    bytes.set(name(objectFile), BLOCK.keptObject);
  }

  get first(): { readonly blockFile: number; readonly objectFile: number } {
    return { blockFile: this.#block, objectFile: this.#object };
  }

  #objectFor(block: Block, blockFile: number, objectFile: number, isSuccessor: boolean): Uint8Array {
    return makeSharedObject({ blockFile, objectFile, blockOffset: block.offset, isSuccessor });
  }

  #setCloseOnExec(flag: number): void {
    systemCall(SYS.fcntl, this.#block, F_SETFD, flag);
    systemCall(SYS.fcntl, this.#object, F_SETFD, flag);
  }
}

/** Whoever waits in it goes on, now or when it comes, and the agent's thread ends: as if we had died. */
export function letGo({ mapping, owner }: Block): void {
  const words = new Int32Array(mapping.bytes);
  Atomics.store(words, BLOCK.go / 4, 1);
  Atomics.or(words, AGENT.owner / 4, FUTEX_OWNER_DIED);
  owner.wake();
  systemCall(SYS.futex, mapping.address + BigInt(BLOCK.go), FUTEX.wake, EVERYBODY);
  owner.release();
}

const refusedFrom = (what: string, why: string, next: string): CannotError =>
  new CannotError('NOT_INSIDE', { tried: `trace ${what} from inside`, why, next });

/** What a program has told that has not got so far that it waits. */
export function failureOf(what: string, { mapping }: Block): CannotError | undefined {
  const failure = Atomics.load(new Int32Array(mapping.bytes), BLOCK.startFailure / 4);
  if (failure >= 0) return undefined;
  if (failure === NO_LIBRARY) return refusedFrom(what, NO_C_LIBRARY, 'run it without --inside');
  return refusedFrom(
    what,
    `it may have no further thread (clone: ${errnoName(-failure)})`,
    'see whether a limit on threads or a filter forbids it',
  );
}

/**
 * Waits until the program waits. `checkEnd` throws when it has ended.
 *
 * @throws CannotError NOT_INSIDE
 */
export function awaitReady(what: string, block: Block, checkEnd: () => void): void {
  const words = new Int32Array(block.mapping.bytes);
  const refused = (why: string, next: string): CannotError => refusedFrom(what, why, next);
  const isReady = (): boolean =>
    Atomics.load(words, BLOCK.ready / 4) !== 0 &&
    words[BLOCK.agentTid / 4] !== 0 &&
    Atomics.load(words, BLOCK.waiting / 4) !== 0;
  const since = performance.now();
  while (!isReady()) {
    try {
      checkEnd();
    } catch (error) {
      // What it has told says more than that it has ended.
      throw failureOf(what, block) ?? error;
    }
    const failure = failureOf(what, block);
    if (failure !== undefined) throw failure;
    if (performance.now() - since > LOAD_PATIENCE_MS)
      throw refused('its dynamic loader has not loaded our object', 'run it without --inside');
    pause(LOAD_POLL_MS);
  }
  const unlocking = words[BLOCK.unlocking / 4];
  if (unlocking < 0) {
    const file = words[BLOCK.memoryFile / 4];
    const how =
      file < 0 ? `open it: ${errnoName(-file)}` : `write it: ${errnoName(-words[BLOCK.memoryWrite / 4])}`;
    throw refused(
      `it cannot write its own code, neither by /proc/self/mem (${how}) nor by mprotect (${errnoName(-unlocking)}): the kernel, a filter or a rule forbids both`,
      'see proc_mem.force_override of the kernel, seccomp and Landlock rules, and PR_SET_MDWE, or run it without --inside',
    );
  }
}
