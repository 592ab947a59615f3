// A program that has our object loaded with it. It needs no permission over the program: all that safepoke wants of it the
// agent's thread does, which the object starts before anything of the program runs.
import { AgentThread, type ResidentThread } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import { waitForThread, type OwnMapping, type OwnerWord } from '../linux/index.js';
import {
  killStopped,
  ownEnvironment,
  spawnFree,
  startFailure,
  type CallMaker,
  type HeldThread,
  type HoldTimes,
  type Standstill,
} from '../target/index.js';
import { checkProgram } from './check-program.js';
import { Following } from './following.js';
import { InsideMemory } from './inside-memory.js';
import { BLOCK, STUBS, TEXT } from './layout.js';
import { NO_BLOCK_STATUS } from './listing.js';
import { Files, awaitReady, letGo, type Block } from './loading.js';
import { Meetings } from './rendezvous.js';
import { addressOfWord, preloadVariable } from './shared-object.js';

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
  /** Into what it executes. */
  readonly following: Following;
  readonly #meetings: Meetings;
  readonly #files: Files;
  readonly #block: OwnMapping;
  readonly #owner: OwnerWord;
  readonly #object: number;

  /** The program waits, with these descriptors of the files. */
  private constructor(pid: number, files: Files, block: Block, blockFile: number, objectFile: number) {
    const { mapping, owner } = block;
    const view = new DataView(mapping.bytes);
    const address = Number(view.getBigUint64(BLOCK.address, true));
    const agentTid = view.getUint32(BLOCK.agentTid, true);
    const thread = AgentThread.adopt(agentTid, pid, owner, mapping);
    const object = Number(view.getBigUint64(BLOCK.object, true));
    this.pid = pid;
    this.#files = files;
    this.#block = mapping;
    this.#owner = owner;
    this.#object = object;
    this.resident = { thread, page: mapping, address };
    this.code = { start: object + TEXT, end: object + STUBS };
    this.memory = new InsideMemory(pid, thread, block, address, object + addressOfWord('nmi_running'));
    this.#meetings = new Meetings(pid, thread, mapping, this.memory, object);
    [this.leader] = this.#meetings.first().threads;
    files.tellKept(block, agentTid, blockFile, objectFile);
    this.following = new Following(pid, files, block, this.resident, this.memory);
  }

  /**
   * Starts a program that waits, before anything of it has run, for `begin().release()`.
   *
   * @throws CannotError NOT_INSIDE, NOT_X86_64, NOT_STARTED
   */
  static start(path: string, command: readonly string[]): InsideProcess {
    checkProgram(path);
    const files = new Files();
    let block: Block | undefined;
    let pid: number | undefined;
    try {
      block = files.newBlock();
      // The program inherits the files, and closes them before it begins.
      const child = files.giveFirst(block, (objectFile) => spawnFree(path, command, environment(objectFile)));
      pid = child;
      awaitReady(path, block, () => {
        const result = waitForThread(child, false);
        if (result.kind === 'exited' && result.status === NO_BLOCK_STATUS) throw noBlock(path);
        if (result.kind === 'exited') throw startFailure(path, result.status);
        if (result.kind === 'killed') throw startFailure(path, undefined);
      });
      const { blockFile, objectFile } = files.first;
      return new InsideProcess(pid, files, block, blockFile, objectFile);
    } catch (error) {
      if (pid !== undefined) killStopped(pid);
      block?.owner.release();
      files.close();
      throw error;
    }
  }

  /** True once it is another program, or has ended. */
  get isOver(): boolean {
    return !this.resident.thread.isPresent;
  }

  /**
   * The program that this one has executed, which waits as one that was started does. `checkEnd` throws when the process has ended.
   *
   * @throws CannotError NOT_INSIDE: it runs without us
   */
  succeed(checkEnd: () => void): InsideProcess {
    const { block, blockFile, objectFile } = this.following.adopt(checkEnd);
    try {
      return new InsideProcess(this.pid, this.#files, block, blockFile, objectFile);
    } catch (error) {
      letGo(block);
      throw error;
    }
  }

  /** The process has ended. */
  close(): void {
    this.#owner.release();
    this.#files.close();
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

function noBlock(path: string): CannotError {
  return new CannotError('NOT_INSIDE', {
    tried: `trace ${path} from inside`,
    why: 'it cannot map the memory that safepoke shares with it',
    next: 'see whether a limit on its address space forbids it (ulimit -v), or run it without --inside',
  });
}

/** The user's own LD_PRELOAD comes first, where our object finds it again; of two variables the loader takes the last. */
function environment(objectFile: number): string[] {
  const others = process.env['LD_PRELOAD'];
  const own = preloadVariable(objectFile);
  return [...ownEnvironment(), others === undefined || others === '' ? own : `${own}:${others}`];
}
