import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { CannotError } from '../errors/index.js';
import { faultPoint, readRemoteRanges, type MemoryRange } from '../linux/index.js';
import { permissionAdvice } from './permission.js';

/**
 * The memory of a process. Text that is r-x can be read and written as well (as a debugger may); bad addresses are errors.
 * Addresses are numbers here: user space ends below 2^47.
 */
export abstract class TargetMemory {
  protected readonly pid: number;

  constructor(pid: number) {
    this.pid = pid;
  }

  /** Reads up to `length` bytes; fewer where memory ends; an empty array where there is none, or the process has gone. */
  abstract readSome(address: number, length: number): Uint8Array;

  /** Each range as `readSome` reads it, but in less time, if there is a way, where there are many. */
  readMany(ranges: readonly MemoryRange[]): Uint8Array[] {
    return ranges.map(({ address, length }) => this.readSome(address, length));
  }

  /** The same, one behind the other into `into`, which has room for all; what cannot be read is left zero. */
  readInto(ranges: readonly MemoryRange[], into: Uint8Array): void {
    into.fill(0);
    let at = 0;
    this.readMany(ranges).forEach((bytes, i) => {
      into.set(bytes, at);
      at += ranges[i].length;
    });
  }

  /** Writes all of `bytes`. @throws CannotError MEMORY */
  abstract write(address: number, bytes: Uint8Array): void;

  /** Writes over code, of which the bytes `before` stand there, while all threads are held. @throws CannotError MEMORY */
  abstract changeCode(address: number, before: Uint8Array, after: Uint8Array): void;

  abstract close(): void;

  /** Reads exactly `length` bytes. @throws CannotError MEMORY */
  read(address: number, length: number): Uint8Array {
    const bytes = this.readSome(address, length);
    if (bytes.length !== length) throw this.error('read', address, length);
    return bytes;
  }

  /** One 8-byte word; undefined where there is none. */
  readWord(address: number): bigint | undefined {
    const bytes = this.readSome(address, 8);
    return bytes.length === 8
      ? new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true)
      : undefined;
  }

  writeWord(address: number, value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt.asUintN(64, value), true);
    this.write(address, bytes);
  }

  protected error(verb: string, address: number, length: number, cause?: unknown): CannotError {
    return new CannotError('MEMORY', {
      tried: `${verb} ${length} bytes at 0x${address.toString(16)} in process ${this.pid}`,
      why: 'there is no such memory there, or the process has ended',
      next: 'see whether the process still runs, and attach again if it does',
      cause,
    });
  }
}

/** From outside, through /proc/PID/mem. */
export class OutsideMemory extends TargetMemory {
  readonly #fd: number;

  /** @throws CannotError NOT_PERMITTED, NO_PROCESS */
  constructor(pid: number) {
    super(pid);
    try {
      this.#fd = openSync(`/proc/${pid}/mem`, 'r+');
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      throw new CannotError(code === 'ENOENT' ? 'NO_PROCESS' : 'NOT_PERMITTED', {
        tried: `open the memory of process ${pid}`,
        why: code === 'ENOENT' ? 'there is no such process' : `the kernel refused it (${code ?? 'unknown'})`,
        next: code === 'ENOENT' ? 'give the id of a running process' : permissionAdvice(),
        cause: error,
      });
    }
  }

  readSome(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      let count: number;
      try {
        count = readSync(this.#fd, bytes, done, length - done, address + done);
      } catch {
        break;
      }
      if (count === 0) break;
      done += count;
    }
    return bytes.subarray(0, done);
  }

  override readMany(ranges: readonly MemoryRange[]): Uint8Array[] {
    const all = new Uint8Array(ranges.reduce((sum, { length }) => sum + length, 0));
    const whole = readRemoteRanges(this.pid, ranges, 0, all);
    let at = 0;
    return ranges.map(({ address, length }, i) => {
      at += length;
      return i < whole ? all.subarray(at - length, at) : this.readSome(address, length);
    });
  }

  override readInto(ranges: readonly MemoryRange[], into: Uint8Array): void {
    let at = 0;
    for (let i = 0; i < ranges.length;) {
      const whole = readRemoteRanges(this.pid, ranges, i, into.subarray(at));
      for (const end = i + whole; i < end; i++) at += ranges[i].length;
      if (i >= ranges.length) break;
      const { address, length } = ranges[i++];
      const some = this.readSome(address, length);
      into.set(some, at);
      into.fill(0, at + some.length, at + length);
      at += length;
    }
  }

  write(address: number, bytes: Uint8Array): void {
    faultPoint();
    let done = 0;
    while (done < bytes.length) {
      let count: number;
      try {
        count = writeSync(this.#fd, bytes, done, bytes.length - done, address + done);
      } catch (error) {
        throw this.error('write', address, bytes.length, error);
      }
      // No error, but nothing written either, for ever: so the kernel says that the process has ended.
      if (count === 0) throw this.error('write', address, bytes.length);
      done += count;
    }
  }

  /** Nothing runs while threads are held from outside: a write is all it takes. */
  changeCode(address: number, _before: Uint8Array, after: Uint8Array): void {
    this.write(address, after);
  }

  close(): void {
    closeSync(this.#fd);
  }
}
