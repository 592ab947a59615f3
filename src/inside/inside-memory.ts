// The memory of a process by its own hand: the agent's thread reads and writes it through /proc/self/mem, into and out of a
// buffer that we share with it. That takes no permission at all, and bad addresses are errors there as well.
import type { AgentThread } from '../agent/index.js';
import { CannotError, isSafepokeError } from '../errors/index.js';
import { ERRNO, SYS, errnoName, type MemoryRange, type OwnMapping } from '../linux/index.js';
import { TargetMemory, pause } from '../target/index.js';
import { BLOCK, BUFFER_SIZE, CHANGE } from './layout.js';
import { EBUSY, MAKE_CHANGES, SCRATCH } from './listing.js';
import { planChanges, type PlannedChange } from './planned-changes.js';

/** The first half of the buffer is for what is read and written, the second for changes of code. */
const HALF = BUFFER_SIZE / 2;
const CHANGES_ROOM = HALF - SCRATCH;
const WORD = 8;
/** A handler takes microseconds, as a rule. */
const HANDLERS_PATIENCE_MS = 200;
const POLL_MS = 0.05;
/** The word is of 32 bits. */
const RUNNING_MASK = 0xffff_ffffn;

/** The code of the error that says that the program may not make a call for us. */
export const CALL_REFUSED = 'CALL_REFUSED';

export class InsideMemory extends TargetMemory {
  readonly #thread: AgentThread;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  /** Where the block is in the target, and the descriptor of the memory there. */
  readonly #address: number;
  readonly #file: number;
  readonly #runningWord: number;

  constructor(pid: number, thread: AgentThread, block: OwnMapping, address: number, runningWord: number) {
    super(pid);
    this.#thread = thread;
    this.#bytes = new Uint8Array(block.bytes);
    this.#view = new DataView(block.bytes);
    this.#address = address;
    this.#runningWord = runningWord;
    this.#file = this.#view.getInt32(BLOCK.memoryFile, true);
  }

  readSome(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    let done = 0;
    try {
      while (done < length) {
        const some = Math.min(length - done, HALF);
        const count = this.#thread.call(SYS.pread64, this.#file, this.#buffer, some, address + done);
        if (isForbidden(count)) throw refusedCall(this.pid, 'read its memory', 'pread64', count);
        if (count <= 0) break;
        bytes.set(this.#bytes.subarray(BLOCK.buffer, BLOCK.buffer + count), done);
        done += count;
      }
    } catch (error) {
      // The process has ended, or executes another program.
      if (!isSafepokeError(error) || error.code !== 'AGENT_LOST') throw error;
    }
    return bytes.subarray(0, done);
  }

  /** Many reads are one command to the thread: threads may be standing still meanwhile. */
  override readMany(ranges: readonly MemoryRange[]): Uint8Array[] {
    const results: Uint8Array[] = [];
    while (results.length < ranges.length) {
      const batch = this.#batchOf(ranges, results.length);
      if (batch.length > 1) results.push(...this.#readBatch(batch));
      else {
        const { address, length } = ranges[results.length];
        results.push(this.readSome(address, length));
      }
    }
    return results;
  }

  /** As many ranges as there is room for. */
  #batchOf(ranges: readonly MemoryRange[], from: number): readonly MemoryRange[] {
    let to = from;
    for (let room = HALF; to < ranges.length && ranges[to].length <= room; to++) room -= ranges[to].length;
    return ranges.slice(from, to);
  }

  #readBatch(batch: readonly MemoryRange[]): Uint8Array[] {
    let end = 0;
    const places = batch.map(({ length }) => (end += length) - length);
    let counts: readonly number[];
    try {
      counts = this.#thread.calls(
        batch.map(({ address, length }, i) => [
          SYS.pread64,
          this.#file,
          this.#buffer + places[i],
          length,
          address,
        ]),
      );
    } catch (error) {
      if (!isSafepokeError(error) || error.code !== 'AGENT_LOST') throw error;
      counts = [];
    }
    return batch.map((_, i) => {
      const count = counts.at(i) ?? 0;
      if (isForbidden(count)) throw refusedCall(this.pid, 'read its memory', 'pread64', count);
      const at = BLOCK.buffer + places[i];
      return this.#bytes.slice(at, at + Math.max(count, 0));
    });
  }

  write(address: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length;) {
      const some = bytes.subarray(done, done + HALF);
      this.#bytes.set(some, BLOCK.buffer);
      const count = this.#thread.call(SYS.pwrite64, this.#file, this.#buffer, some.length, address + done);
      if (isForbidden(count)) throw refusedCall(this.pid, 'write its memory', 'pwrite64', count);
      if (count <= 0) throw this.error('write', address, bytes.length);
      done += count;
    }
  }

  /** By the protocol: handlers that run on threads that stand in the rendezvous help, and see no half of a change. */
  changeCode(address: number, before: Uint8Array, after: Uint8Array): void {
    let batch: PlannedChange[] = [];
    let room = CHANGES_ROOM;
    // All are planned before any is made: it may turn out that one cannot be.
    for (const change of [...planChanges(address, before, after)]) {
      const bytes = CHANGE.size + 2 * roundUp(change.after.length);
      if (bytes > room) {
        this.#make(batch);
        batch = [];
        room = CHANGES_ROOM;
      }
      batch.push(change);
      room -= bytes;
    }
    this.#make(batch);
  }

  close(): void {
    // There is nothing of ours to close.
  }

  #make(changes: readonly PlannedChange[]): void {
    if (changes.length === 0) return;
    // A helper that is late may still read what stands in the buffer.
    if (!this.isQuiet()) throw this.#busy();
    const table = BLOCK.buffer + HALF;
    let at = table + changes.length * CHANGE.size;
    const place = (bytes: Uint8Array): bigint => {
      const here = at;
      this.#bytes.set(bytes, here);
      at += roundUp(bytes.length);
      return BigInt(this.#address + here);
    };
    changes.forEach(({ address, before, after }, i) => {
      const entry = table + i * CHANGE.size;
      this.#view.setBigUint64(entry + CHANGE.address, BigInt(address), true);
      this.#view.setBigUint64(entry + CHANGE.before, place(before), true);
      this.#view.setBigUint64(entry + CHANGE.after, place(after), true);
      this.#view.setBigUint64(entry + CHANGE.length, BigInt(after.length), true);
    });
    this.#view.setBigUint64(BLOCK.changes, BigInt(this.#address + table), true);
    this.#view.setUint32(BLOCK.changeCount, changes.length, true);
    this.#view.setUint32(BLOCK.abandon, 0, true);
    this.#thread.perform(MAKE_CHANGES, HANDLERS_PATIENCE_MS, () => {
      this.#view.setUint32(BLOCK.abandon, 1, true);
    });
    const made = this.#view.getUint32(BLOCK.changed, true);
    if (made === changes.length) return;
    if (this.#view.getInt32(BLOCK.changeStatus, true) === EBUSY) throw this.#busy();
    const { address, after } = changes[made];
    throw new CannotError('MEMORY', {
      tried: `change ${after.length} bytes of code at 0x${address.toString(16)} in process ${this.pid}`,
      why: `the protocol says ${errnoName(-this.#view.getInt32(BLOCK.changeStatus, true))}`,
      next: 'see whether something else changes the same code or a filter (seccomp) forbids pwrite64, and try again',
    });
  }

  /**
   * True if, within a moment, no handler runs. One that has jumped elsewhere counts until its thread comes to a rendezvous again; one
   * that is late to see the last change would take what is written for the next.
   */
  isQuiet(): boolean {
    const since = performance.now();
    while (((this.readWord(this.#runningWord) ?? 0n) & RUNNING_MASK) !== 0n) {
      if (performance.now() - since > HANDLERS_PATIENCE_MS) return false;
      pause(POLL_MS);
    }
    return true;
  }

  #busy(): CannotError {
    return new CannotError('HANDLER_BUSY', {
      tried: `change code of process ${this.pid}`,
      why: 'a signal handler runs that does not end while the other threads stand still',
      next: 'try again: it may wait for one of them',
    });
  }

  get #buffer(): number {
    return this.#address + BLOCK.buffer;
  }
}

/** What the kernel says of an address at which there is nothing. */
const NO_MEMORY: readonly number[] = [ERRNO.EIO, ERRNO.EFAULT, ERRNO.ENOMEM, ERRNO.EINVAL];

function isForbidden(result: number): boolean {
  return result < 0 && !NO_MEMORY.includes(-result);
}

/** The program has a filter of its own (seccomp) that our thread needs to get by. */
export function refusedCall(pid: number, what: string, call: string, result: number): CannotError {
  return new CannotError(CALL_REFUSED, {
    tried: `have process ${pid} ${what}`,
    why: `it may not call ${call} (${errnoName(-result)})`,
    next: 'let its seccomp filter allow that, or trace it from outside',
  });
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / WORD) * WORD;
}
