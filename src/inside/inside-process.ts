// A program that has our object loaded with it. It needs no permission over the program: all that safepoke wants of it the
// agent's thread does, which the object starts before anything of the program runs.
import { closeSync, writeSync } from 'node:fs';
import { AgentThread, SHARED_NAME, type ResidentThread } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import {
  MAP,
  PROT,
  SYS,
  createMemoryFile,
  errnoName,
  mapOwn,
  systemCall,
  waitForThread,
  type OwnMapping,
  type OwnerWord,
} from '../linux/index.js';
import {
  killStopped,
  ownEnvironment,
  pause,
  spawnFree,
  startFailure,
  type CallMaker,
  type HeldThread,
  type HoldTimes,
  type Standstill,
} from '../target/index.js';
import { checkProgram } from './check-program.js';
import { InsideMemory } from './inside-memory.js';
import { BLOCK, STUBS, TEXT } from './layout.js';
import { Meetings } from './rendezvous.js';
import { addressOfWord, makeSharedObject, preloadVariable } from './shared-object.js';

const OBJECT_NAME = 'safepoke-inside';
const F_SETFD = 2;
/** Until the dynamic loader has loaded the program's libraries and ours. */
const LOAD_PATIENCE_MS = 30_000;
const LOAD_POLL_MS = 0.5;

/** In the spirit of the kernel's dyn_ftrace_total_info. */
export interface ProtocolCounts {
  /** Times the patcher waited for handlers. */
  readonly waits: number;
  /** The longest of these waits, in time-stamp ticks. */
  readonly longestWaitTicks: number;
  /** Times a handler helped. */
  readonly helperWrites: number;
  /** Code is written by /proc/self/mem; or it is unlocked for it (mprotect), and handlers wait where they would help. */
  readonly writtenBy: WrittenBy;
}

export type WrittenBy = 'proc-self-mem' | 'mprotect';

const CLOCK_UNIT_TICKS = 1024;
const COUNTERS = ['nmi_wait_count', 'nmi_longest_wait', 'nmi_update_count'] as const;

export class InsideProcess {
  readonly pid: number;
  readonly memory: InsideMemory;
  readonly resident: ResidentThread;
  /** Code of ours that calls functions of the program: its handlers. */
  readonly code: { readonly start: number; readonly end: number };
  /** The first thread, as it was before the program began. */
  readonly leader: HeldThread;
  readonly #meetings: Meetings;
  readonly #block: OwnMapping;
  readonly #object: number;

  private constructor(pid: number, thread: AgentThread, block: OwnMapping, address: number, object: number) {
    this.pid = pid;
    this.#block = block;
    this.#object = object;
    this.resident = { thread, page: block, address };
    this.code = { start: object + TEXT, end: object + STUBS };
    this.memory = new InsideMemory(pid, thread, block, address, object + addressOfWord('nmi_running'));
    this.#meetings = new Meetings(pid, thread, block, this.memory, object);
    [this.leader] = this.#meetings.first().threads;
  }

  /**
   * Starts a program that waits, before anything of it has run, for `begin().release()`.
   *
   * @throws CannotError NOT_INSIDE, NOT_X86_64, NOT_STARTED
   */
  static start(path: string, command: readonly string[]): InsideProcess {
    checkProgram(path);
    const blockFile = createMemoryFile(SHARED_NAME, BLOCK.size);
    const objectFile = createMemoryFile(OBJECT_NAME, 0);
    let block: OwnMapping;
    let owner: OwnerWord;
    let pid: number;
    try {
      block = mapOwn(BLOCK.size, PROT.read | PROT.write, MAP.shared, blockFile);
      writeSync(objectFile, makeSharedObject(blockFile, objectFile));
      owner = AgentThread.prepare(block);
      // The program inherits these two, and closes them before it begins.
      systemCall(SYS.fcntl, blockFile, F_SETFD, 0);
      systemCall(SYS.fcntl, objectFile, F_SETFD, 0);
      pid = spawnFree(path, command, environment(objectFile));
    } finally {
      closeSync(blockFile);
      closeSync(objectFile);
    }
    try {
      awaitReady(path, pid, block);
      const view = new DataView(block.bytes);
      const thread = AgentThread.adopt(view.getUint32(BLOCK.agentTid, true), pid, owner, block);
      const object = Number(view.getBigUint64(BLOCK.object, true));
      const address = Number(view.getBigUint64(BLOCK.address, true));
      return new InsideProcess(pid, thread, block, address, object);
    } catch (error) {
      killStopped(pid);
      owner.release();
      block.unmap();
      throw error;
    }
  }

  /** Standing still, the program waits to begin. */
  begin(): Standstill {
    return this.#meetings.first();
  }

  /** Has all threads meet. @throws CannotError WILL_NOT_STOP, UNCOUNTED_HANDLER */
  meet(times: HoldTimes): Standstill {
    return this.#meetings.all(times);
  }

  /** The agent's thread makes calls. */
  get calls(): CallMaker {
    const { thread, address } = this.resident;
    return {
      tid: thread.tid,
      run: (work) =>
        work(thread.call, (text) => {
          new Uint8Array(this.#block.bytes).set(new TextEncoder().encode(`${text}\0`), BLOCK.buffer);
          return BigInt(address + BLOCK.buffer);
        }),
    };
  }

  /** What the protocol has counted; undefined once the program is no more. */
  counts(): ProtocolCounts | undefined {
    const read = (word: string): number | undefined => {
      const value = this.memory.readWord(this.#object + addressOfWord(word));
      return value === undefined ? undefined : Number(value & 0xffff_ffffn);
    };
    const [waits, longest, helperWrites] = COUNTERS.map(read);
    if (waits === undefined || longest === undefined || helperWrites === undefined) return undefined;
    // The clock is read around each look, also around those that need not wait: what they took is of no interest.
    const writtenBy = this.memory.mustUnlock ? 'mprotect' : 'proc-self-mem';
    return { waits, longestWaitTicks: waits === 0 ? 0 : longest * CLOCK_UNIT_TICKS, helperWrites, writtenBy };
  }
}

/** The user's own LD_PRELOAD comes first, where our object finds it again; of two variables the loader takes the last. */
function environment(objectFile: number): string[] {
  const others = process.env['LD_PRELOAD'];
  const own = preloadVariable(objectFile);
  return [...ownEnvironment(), others === undefined || others === '' ? own : `${own}:${others}`];
}

function awaitReady(path: string, pid: number, block: OwnMapping): void {
  const words = new Int32Array(block.bytes);
  const isReady = (): boolean =>
    Atomics.load(words, BLOCK.ready / 4) !== 0 &&
    words[BLOCK.agentTid / 4] !== 0 &&
    Atomics.load(words, BLOCK.waiting / 4) !== 0;
  const since = performance.now();
  while (!isReady()) {
    const result = waitForThread(pid, false);
    if (result.kind === 'exited') throw startFailure(path, result.status);
    if (result.kind === 'killed') throw startFailure(path, undefined);
    if (performance.now() - since > LOAD_PATIENCE_MS) {
      throw new CannotError('NOT_INSIDE', {
        tried: `trace ${path} from inside`,
        why: 'its dynamic loader has not loaded our object',
        next: 'run it without --inside',
      });
    }
    pause(LOAD_POLL_MS);
  }
  const unlocking = words[BLOCK.unlocking / 4];
  if (unlocking < 0) {
    const file = words[BLOCK.memoryFile / 4];
    const what =
      file < 0 ? `open it: ${errnoName(-file)}` : `write it: ${errnoName(-words[BLOCK.memoryWrite / 4])}`;
    throw new CannotError('NOT_INSIDE', {
      tried: `trace ${path} from inside`,
      why: `it cannot write its own code, neither by /proc/self/mem (${what}) nor by mprotect (${errnoName(-unlocking)}): the kernel, a filter or a rule forbids both`,
      next: 'see proc_mem.force_override of the kernel, seccomp and Landlock rules, and PR_SET_MDWE, or run it without --inside',
    });
  }
}
