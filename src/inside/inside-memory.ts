// The memory of a process by its own hand: the agent's thread reads and writes it through /proc/self/mem, into and out of a
// buffer that we share with it. That takes no permission at all, and bad addresses are errors there as well. Where that file cannot be
// used the file of the buffer is: the kernel copies between it and memory, with the rights that the memory has, and bad addresses
// are errors again. Code is unlocked for it (mprotect) and locked again, as the protocol says.
import { isAgentLost, type AgentThread } from '../agent/index.js';
import { CannotError } from '../errors/index.js';
import {
  ERRNO,
  PROT,
  SEEK_SET,
  SYS,
  errnoName,
  mappingAt,
  readMaps,
  type Mapping,
  type MemoryRange,
} from '../linux/index.js';
import { TargetMemory, pause } from '../target/index.js';
import { BLOCK, BUFFER_SIZE, CHANGE } from './layout.js';
import { EBUSY, MAKE_CHANGES, SCRATCH } from './listing.js';
import type { Block } from './loading.js';
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

/** Text with the same rights, in which changes lie. */
interface Region {
  readonly start: number;
  readonly length: number;
  /** PROT_... */
  readonly rights: number;
}

/** The code of the error that says that the program may not make a call for us. */
export const CALL_REFUSED = 'CALL_REFUSED';

export class InsideMemory extends TargetMemory {
  readonly #thread: AgentThread;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  /** Where the block is in the target, and the descriptor of the memory there. */
  readonly #address: number;
  readonly #file: number;
  readonly #blockFile: number;
  readonly #blockOffset: number;
  readonly #runningWord: number;
  /** Code must be unlocked to be written, and all else is written by the block's file. */
  readonly mustUnlock: boolean;

  constructor(pid: number, thread: AgentThread, block: Block, address: number, runningWord: number) {
    super(pid);
    this.#thread = thread;
    this.#bytes = new Uint8Array(block.mapping.bytes);
    this.#view = new DataView(block.mapping.bytes);
    this.#blockOffset = block.offset;
    this.#address = address;
    this.#runningWord = runningWord;
    this.#file = this.#view.getInt32(BLOCK.memoryFile, true);
    this.#blockFile = this.#view.getInt32(BLOCK.blockFile, true);
    this.mustUnlock = this.#view.getInt32(BLOCK.unlocking, true) === 1;
  }

  readSome(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    let done = 0;
    try {
      while (done < length) {
        const some = Math.min(length - done, HALF);
        const count = noMoreThan(some, this.#thread.calls(this.#reading(address + done, 0, some)).at(-1));
        if (isForbidden(count)) throw refusedCall(this.pid, 'read its memory', this.#readingCall, count);
        if (count <= 0) break;
        bytes.set(this.#bytes.subarray(BLOCK.buffer, BLOCK.buffer + count), done);
        done += count;
      }
    } catch (error) {
      // The process has ended, or executes another program.
      if (!isAgentLost(error)) throw error;
    }
    return bytes.subarray(0, done);
  }

  /** Many reads are one command to the thread: threads may be standing still meanwhile. */
  override readMany(ranges: readonly MemoryRange[]): Uint8Array[] {
    const results: Uint8Array[] = [];
    while (results.length < ranges.length) {
      const batch = this.#batchOf(ranges, results.length);
      if (batch.length > 1) for (const read of this.#readBatch(batch)) results.push(read);
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
      const each = batch.map(({ address, length }, i) => this.#reading(address, places[i], length));
      const results = this.#thread.calls(each.flat());
      const perRead = results.length / batch.length;
      counts = batch.map((_, i) => results[(i + 1) * perRead - 1]);
    } catch (error) {
      if (!isAgentLost(error)) throw error;
      counts = [];
    }
    return batch.map((_, i) => {
      const count = noMoreThan(batch[i].length, counts.at(i));
      if (isForbidden(count)) throw refusedCall(this.pid, 'read its memory', this.#readingCall, count);
      const at = BLOCK.buffer + places[i];
      return this.#bytes.slice(at, at + Math.max(count, 0));
    });
  }

  write(address: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length;) {
      const some = bytes.subarray(done, done + HALF);
      this.#bytes.set(some, BLOCK.buffer);
      const calls = this.mustUnlock
        ? [this.#seek(0), [SYS.read, this.#blockFile, address + done, some.length]]
        : [[SYS.pwrite64, this.#file, this.#buffer, some.length, address + done]];
      const count = noMoreThan(some.length, this.#thread.calls(calls).at(-1));
      const call = this.mustUnlock ? 'read' : 'pwrite64';
      if (isForbidden(count)) throw refusedCall(this.pid, 'write its memory', call, count);
      if (count <= 0) throw this.error('write', address, bytes.length);
      done += count;
    }
  }

  /** System calls that read into the buffer, the last of which returns how much. */
  #reading(address: number, to: number, length: number): (readonly number[])[] {
    return this.#file < 0
      ? [this.#seek(to), [SYS.write, this.#blockFile, address, length]]
      : [[SYS.pread64, this.#file, this.#buffer + to, length, address]];
  }

  get #readingCall(): string {
    return this.#file < 0 ? 'write' : 'pread64';
  }

  /** The block's file goes to a place in the buffer. */
  #seek(to: number): readonly number[] {
    return [SYS.lseek, this.#blockFile, this.#blockOffset + BLOCK.buffer + to, SEEK_SET];
  }

  /** By the protocol: handlers that run on threads that stand in the rendezvous help, and see no half of a change. */
  changeCode(address: number, before: Uint8Array, after: Uint8Array): void {
    let batch: PlannedChange[] = [];
    let room = CHANGES_ROOM;
    let region: Region | undefined;
    // All are planned before any is made: it may turn out that one cannot be.
    const changes = [...planChanges(address, before, after)];
    const regions = this.mustUnlock ? this.#regionsOf(changes) : undefined;
    changes.forEach((change, i) => {
      const bytes = CHANGE.size + 2 * roundUp(change.after.length);
      const wanted = regions?.[i];
      if (bytes > room || wanted?.start !== region?.start || wanted?.length !== region?.length) {
        this.#make(batch, region);
        batch = [];
        room = CHANGES_ROOM;
      }
      region = wanted;
      batch.push(change);
      room -= bytes;
    });
    this.#make(batch, region);
  }

  /**
   * For each change the text that is unlocked for it: whole mappings. A part of one would stay a mapping of its own for ever, as what
   * has once been writable counts as the process's own memory (VM_ACCOUNT).
   */
  #regionsOf(changes: readonly PlannedChange[]): Region[] {
    const maps = readMaps(this.pid) ?? [];
    return changes.map(({ address, after }) => {
      const end = address + after.length;
      const first = mappingAt(maps, address);
      let last = first;
      while (first >= 0 && maps[last].end < end && maps.at(last + 1)?.start === maps[last].end) last++;
      const within = first < 0 ? [] : maps.slice(first, last + 1);
      if (within.length === 0 || within[within.length - 1].end < end)
        throw this.error('unlock', address, after.length);
      const [{ start, permissions }] = within;
      if (permissions.endsWith('s') || within.some((m) => m.permissions !== permissions)) {
        throw new CannotError('MEMORY', {
          tried: `unlock ${after.length} bytes of code at 0x${address.toString(16)} in process ${this.pid}`,
          why: `their mappings (${within.map((m) => m.permissions).join(', ')}) are shared, or have different rights`,
          next: 'leave out the functions there',
        });
      }
      return { start, length: within[within.length - 1].end - start, rights: rightsOf(permissions) };
    });
  }

  close(): void {
    // There is nothing of ours to close.
  }

  #make(changes: readonly PlannedChange[], region: Region | undefined): void {
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
    this.#tellRegion(region);
    this.#thread.perform(MAKE_CHANGES, HANDLERS_PATIENCE_MS, () => {
      this.#view.setUint32(BLOCK.abandon, 1, true);
    });
    const unlocked = this.#view.getInt32(BLOCK.unlockStatus, true);
    const locked = this.#view.getInt32(BLOCK.lockStatus, true);
    if (region !== undefined && unlocked === 0 && locked < 0) throw this.#stillUnlocked(region, locked);
    const made = this.#view.getUint32(BLOCK.changed, true);
    if (made >= changes.length) return;
    if (this.#view.getInt32(BLOCK.changeStatus, true) === EBUSY) throw this.#busy();
    const { address, after } = changes[made];
    const isRefused = region !== undefined && unlocked < 0;
    const call = region === undefined ? 'pwrite64' : 'mprotect, lseek or read';
    throw new CannotError('MEMORY', {
      tried: `change ${after.length} bytes of code at 0x${address.toString(16)} in process ${this.pid}`,
      why: `the protocol says ${errnoName(-this.#view.getInt32(BLOCK.changeStatus, true))}${isRefused ? `: mprotect says ${errnoName(-unlocked)}` : ''}`,
      next: `see whether something else changes the same code or a filter (seccomp) forbids ${call}, and try again`,
    });
  }

  #tellRegion(region: Region | undefined): void {
    const { start, length, rights } = region ?? NO_REGION;
    this.#view.setBigUint64(BLOCK.region, BigInt(start), true);
    this.#view.setBigUint64(BLOCK.regionLength, BigInt(length), true);
    this.#view.setUint32(BLOCK.rights, rights, true);
    this.#view.setUint32(BLOCK.unlockedRights, rights | PROT.write, true);
    this.#view.setInt32(BLOCK.unlockStatus, 0, true);
  }

  #stillUnlocked({ start, length }: Region, status: number): CannotError {
    return new CannotError('MEMORY', {
      tried: `lock ${length} bytes of code at 0x${start.toString(16)} in process ${this.pid} again, which were unlocked to be changed`,
      why: `mprotect says ${errnoName(-status)}`,
      next: 'end the process: it can write its own code, if it was not unmapped meanwhile',
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

/** What was read or written of so many bytes, or -errno: the result stands in memory that anybody in the program may write. */
function noMoreThan(most: number, result = 0): number {
  return Math.min(result, most);
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

/** For memory that need not be unlocked. */
const NO_REGION: Region = { start: 0, length: 0, rights: 0 };

/** `r-xp` as mprotect takes it. */
function rightsOf(permissions: Mapping['permissions']): number {
  return (
    (permissions.startsWith('r') ? PROT.read : 0) |
    (permissions[1] === 'w' ? PROT.write : 0) |
    (permissions[2] === 'x' ? PROT.exec : 0)
  );
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / WORD) * WORD;
}
