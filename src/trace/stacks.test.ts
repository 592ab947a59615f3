import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Mapping, MemoryRange } from '../linux/index.js';
import { savedInstructionPointers, stackFrom } from './stacks.js';

const SIZE = 0x1000;
/** Code and stack segment as Linux saves them, behind the saved rip (struct sigcontext). */
const USER_CS = 0x33;
const USER_SS = 0x2b;

/** Stacks that begin at multiples of 1 MiB. */
class Memory {
  readonly #stacks: readonly Uint8Array[];
  read = 0;

  constructor(stacks: number) {
    this.#stacks = Array.from({ length: stacks }, () => new Uint8Array(SIZE));
  }

  static at(stack: number, offset: number): number {
    return ((stack + 1) << 20) + offset;
  }

  get maps(): Mapping[] {
    return this.#stacks.map((_, i) => ({
      start: Memory.at(i, 0),
      end: Memory.at(i, SIZE),
      permissions: 'rw-p',
      offset: 0,
      device: '00:00',
      inode: 0,
      path: '',
    }));
  }

  /** Puts a frame with its saved rip at an offset of a stack. */
  frame(stack: number, offset: number, rip: number, rsp: number): void {
    const view = new DataView(this.#stacks[stack].buffer);
    view.setBigUint64(offset - 8, BigInt(rsp), true);
    view.setBigUint64(offset, BigInt(rip), true);
    view.setUint16(offset + 16, USER_CS, true);
    view.setUint16(offset + 22, USER_SS, true);
  }

  /** What handlers return to on threads with these stack pointers. */
  find(...stackPointers: number[]): number[] {
    const stacks = stackPointers.map((rsp) => stackFrom(rsp, this.maps));
    return savedInstructionPointers(stacks, this.maps, SIZE, (ranges) => this.#bytes(ranges));
  }

  #bytes(ranges: readonly MemoryRange[]): Uint8Array {
    const pieces = ranges.map(({ address, length }) => {
      const stack = (address >> 20) - 1;
      const offset = address - Memory.at(stack, 0);
      this.read += length;
      return this.#stacks[stack].subarray(offset, offset + length);
    });
    return Buffer.concat(pieces);
  }
}

test('frames are found on the stack of a thread, and on all that lie below it', () => {
  const memory = new Memory(4);
  memory.frame(0, 0x800, 1, Memory.at(0, 0xc00));
  memory.frame(0, 0xd00, 2, Memory.at(1, 0x100));
  memory.frame(1, 0x180, 3, Memory.at(2, 0xf00));
  memory.frame(2, 0xf80, 4, 0);
  // Below the stack pointer lies what is over.
  memory.frame(2, 0x100, 5, 0);
  memory.frame(3, 0x100, 6, 0);
  assert.deepEqual(memory.find(Memory.at(0, 0x700)), [1, 2, 3, 4]);
});

test('what of a mapping lies below the stack that was looked through is looked through as well, once', () => {
  const memory = new Memory(1);
  memory.frame(0, 0xc00, 1, Memory.at(0, 0x200));
  memory.frame(0, 0x300, 2, Memory.at(0, 0x280));
  assert.deepEqual(memory.find(Memory.at(0, 0x800)), [1, 2]);
  assert.equal(memory.read, SIZE - 0x200);
});

test('stacks that lead to each other come to an end, and where there is no stack nothing is read', () => {
  const memory = new Memory(3);
  memory.frame(0, 0x800, 1, Memory.at(1, 0x10));
  memory.frame(1, 0x800, 2, Memory.at(0, 0x10));
  memory.frame(2, 0x800, 3, Memory.at(9, 0));
  assert.deepEqual(memory.find(Memory.at(0, 0x700), Memory.at(2, 0)), [1, 3, 2]);
});
