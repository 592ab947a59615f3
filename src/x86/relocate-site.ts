import { CannotError } from '../errors/index.js';
import { isPrefix } from './instruction-flow.js';
import type { ExitBlock, ExitKind, ExitMark } from './exit-sites.js';
import type { DisplacedInstruction, SiteCandidate } from './sites.js';

/** What the stub runs in place of the displaced instructions, ending in a jump back (or in what never comes back). */
export interface RelocatedCode {
  /** Code, and behind it the constants that it reads. */
  readonly bytes: Uint8Array;
  /**
   * For each displaced instruction, where its copy begins in `bytes`: a thread stopped at `address + originalOffset`
   * goes on at `stubAddress + newOffset`. Ascending; the first is at offset 0 of both.
   */
  readonly boundaries: readonly { readonly originalOffset: number; readonly newOffset: number }[];
}

const JMP_REL32 = 0xe9;
const JMP_REL8 = 0xeb;
const PUSH_RIP_RELATIVE = [0xff, 0x35] as const;
/** In the ModRM of FF: /2 is call, /4 is jmp. */
const CALL_TO_JMP = 0x30;
/** Behind the opcode of a `loop`: it skips a short jump, which skips the opcode and the distance of a long one. */
const OVER_LONG_JUMP = [2, JMP_REL8, 5, JMP_REL32] as const;
const MOST_DISTANCE = 0x7fff_ffff;
const TWO_TO_32 = 2 ** 32;
const CALL_REL32 = 0xe8;
const INT3 = 0xcc;
/** What does nothing, by its length: Intel SDM, vol. 2B, "NOP". */
const NOPS: readonly (readonly number[])[] = [
  [],
  [0x90],
  [0x66, 0x90],
  [0x0f, 0x1f, 0x00],
  [0x0f, 0x1f, 0x40, 0x00],
  [0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
  [0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
  [0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];
const LONGEST_NOP = NOPS.length - 1;

/** Calls of a recorder stand at multiples of so many bytes, by which they can be told apart. */
export const CELL_SIZE = 16;

/** What a stub calls the recorder for: where a call begins, in one of these ways, or right before an instruction by which it ends. */
export type UsualEvent = 'entry' | 'frame' | 'leaf' | ExitKind;
/** The same where something is on the stack: how much, stands in a nop behind the call (`DEPTH_OFFSET`). */
export type DeepEvent = 'deep-entry' | 'deep-leaf' | 'deep-return' | 'deep-tail';
export type RecordedEvent = UsualEvent | DeepEvent;

/** nopl disp32(%rax): the distance says how many bytes are on the stack above which the return address stands. */
const NOP_WITH_DEPTH = [0x0f, 0x1f, 0x80] as const;
/** Where that is, from the return address of the recorder's call on. */
export const DEPTH_OFFSET = NOP_WITH_DEPTH.length;

/** Bytes below the stack pointer that belong to the function that runs: System V ABI, AMD64, 3.2.2. */
const RED_ZONE = 128;
/** lea -128(%rsp), %rsp and lea 128(%rsp), %rsp: flags stay. */
const BELOW_RED_ZONE = [0x48, 0x8d, 0x64, 0x24, 0x80] as const;
const ABOVE_RED_ZONE = [0x48, 0x8d, 0xa4, 0x24, 0x80, 0x00, 0x00, 0x00] as const;

/** How a stub records. */
export interface Recording {
  /** What it begins with. */
  readonly begins: 'entry' | 'frame' | 'leaf' | undefined;
  /** Bytes that have been pushed there; of `entry` and `leaf`. */
  readonly depth?: number;
  readonly exits: readonly ExitMark[];
  /** Told of each call of the recorder, which stands at `address`; returns where it goes to. */
  readonly call: (address: number, event: RecordedEvent) => number;
}

/** What is displaced, and where from; a `SiteCandidate` is one. Addresses are those of the file. */
export type DisplacedCode = Pick<
  SiteCandidate,
  'addressNumber' | 'displacedLength' | 'displacedCount' | 'displaced' | 'original'
> & {
  /** As `SiteCandidate.isWhole`. */
  readonly isWhole?: boolean;
  readonly function: { readonly name: string; readonly addressNumber: number };
};

/**
 * The code for one stub. `stubAddress` is where `bytes` will lie in the process, within 2 GiB of all that the
 * instructions refer to (`CannotError` `out-of-reach` otherwise); `loadBias` is what the process adds to addresses of
 * the file.
 *
 * - nops are dropped; instructions that do not depend on their address are copied
 * - `op [rip+x]` has its displacement adapted
 * - `jcc`, `jmp` become their long forms, `loop` and `jrcxz`, which have none, jump over a long jump:
 *   `loop 1f; jmp 2f; 1: jmp target; 2:`
 * - `call target` becomes `push [rip+constant]; jmp target`: the callee returns to where the original call returns, so
 *   that no return address in the stub is ever on the stack, where an unwinder would find it
 * - where the whole function is copied, jumps within it go to the copies
 * - at the end `jmp rel32` to the first instruction behind the site
 *
 * For a `call-site` that is the profiler's call.
 */
export function relocateSite(candidate: SiteCandidate, stubAddress: bigint, loadBias: bigint): RelocatedCode {
  const boundaries: { originalOffset: number; newOffset: number }[] = [];
  const room = new Uint8Array(relocatedBound(candidate));
  const length = emitSite(candidate, Number(stubAddress), Number(loadBias), room, 0, boundaries);
  return { bytes: room.slice(0, length), boundaries };
}

/** Most bytes that the code of a stub can need: each displaced instruction perhaps grown by a long branch, and a jump. */
export function relocatedBound(
  { displacedLength, displacedCount }: { readonly displacedLength: number; readonly displacedCount: number },
  exits: readonly ExitMark[] = [],
  calls = exits.length,
): number {
  const GROWN_INSTRUCTION = 20;
  const JUMP_BACK = 16;
  const CALL_AND_FILLING = 2 * CELL_SIZE + BELOW_RED_ZONE.length + ABOVE_RED_ZONE.length;
  let bytes = displacedLength + displacedCount * GROWN_INSTRUCTION + JUMP_BACK + calls * CALL_AND_FILLING;
  for (const { block } of exits)
    if (block !== undefined)
      bytes += block.original.length + (block.displaced.length + 1) * GROWN_INSTRUCTION;
  return bytes;
}

/**
 * How far behind the beginning of a cell a stub is to begin, so that its first call of the recorder comes to stand at the beginning of
 * one with nothing to be filled.
 */
export function stubShift(displaced: readonly DisplacedInstruction[], exits: readonly ExitMark[]): number {
  const JMP = 5;
  const JCC = 6;
  const lengthOf = ({ form, length, endsFlow }: DisplacedInstruction): number =>
    form === 'branch' ? (endsFlow ? JMP : JCC) : form === 'nop' ? 0 : length;
  // Conditional jumps out of the function are recorded behind all else.
  const first = exits.find(({ index }) => index === displaced.length || displaced[index].endsFlow);
  if (first === undefined) return 0;
  const before = [...displaced.slice(0, first.index), ...(first.block?.displaced.slice(0, -1) ?? [])];
  const isEarly = first.index === displaced.length || first.block?.displaced.length === 0;
  const ahead = isEarly ? BELOW_RED_ZONE.length : 0;
  return -before.reduce((sum, instruction) => sum + lengthOf(instruction), ahead) & (CELL_SIZE - 1);
}

/**
 * The same, written into `into` from index `at` on, where there is room for `relocatedBound`. Returns the number of bytes.
 * Addresses are numbers: many stubs are emitted at once.
 */
export function emitSite(
  candidate: DisplacedCode,
  stubAddress: number,
  loadBias: number,
  into: Uint8Array,
  at: number,
  boundaries?: { originalOffset: number; newOffset: number }[],
  recording?: Recording,
): number {
  stub.begin(candidate, stubAddress, into, at);
  if (candidate.isWhole === true) {
    // Where each copy will be: instructions take the same room wherever they lead.
    const copies = new Map<number, number>();
    emitDisplaced(candidate, loadBias, recording, (offset) => {
      copies.set(candidate.addressNumber + offset, stubAddress + stub.length);
    });
    // A jump to the entry may go to its endbr64, which stays where it is. A turn of the loop is no call.
    copies.set(candidate.function.addressNumber, copies.get(candidate.addressNumber) ?? stubAddress);
    stub.begin(candidate, stubAddress, into, at, copies);
  }
  emitDisplaced(candidate, loadBias, recording, (originalOffset) => {
    boundaries?.push({ originalOffset, newOffset: stub.length });
  });
  return stub.finish();
}

/** All that comes before the constants. `onInstruction` is told of each that is displaced, by its offset, before it is emitted. */
function emitDisplaced(
  { displaced, original, addressNumber, displacedLength }: DisplacedCode,
  loadBias: number,
  recording: Recording | undefined,
  onInstruction: (offset: number) => void,
): void {
  const back = addressNumber + loadBias + displacedLength;
  if (recording?.begins !== undefined) {
    const { begins, depth = 0 } = recording;
    if (depth === 0 || begins === 'frame') stub.emitRecord(recording, begins);
    else stub.emitRecord(recording, begins === 'entry' ? 'deep-entry' : 'deep-leaf', depth);
  }
  // Of conditional jumps out of the function: they lead to a place behind all else, where that is recorded.
  const taken: { readonly fix: number; readonly target: number; readonly mark: ExitMark }[] = [];
  let next = 0;
  for (let i = 0; i < displaced.length; i++) {
    const instruction = displaced[i];
    onInstruction(instruction.offset);
    const mark = recording?.exits[next];
    if (recording === undefined || mark?.index !== i) {
      relocateOne(stub, instruction, original, loadBias, back);
      continue;
    }
    next++;
    if (instruction.form === 'branch' && !instruction.endsFlow) {
      const target = Number(instruction.target) + loadBias;
      emitBranch(stub, original, instruction.offset, target);
      taken.push({ fix: stub.length - 4, target, mark });
    } else if (mark.block !== undefined) {
      emitBlock(stub, mark.block, loadBias, recording);
    } else {
      stub.fillCell(true);
      stub.emitRecord(recording, mark.kind);
      relocateOne(stub, instruction, original, loadBias, back);
    }
  }
  const last = displaced.at(-1);
  const early = recording?.exits[next];
  if (recording !== undefined && early?.index === displaced.length)
    emitEarly(stub, recording, early.kind, early.depth);
  const comesBack =
    last === undefined || !(last.endsFlow || last.form === 'call' || last.form === 'indirect-call');
  if (comesBack) {
    stub.emit(JMP_REL32);
    stub.emitDistance(back);
  }
  for (const { fix, target, mark } of taken) {
    if (recording === undefined) break;
    if (mark.block !== undefined) {
      stub.leadHere(fix);
      emitBlock(stub, mark.block, loadBias, recording);
      continue;
    }
    stub.fillCell(false);
    stub.leadHere(fix);
    stub.emitRecord(recording, mark.kind);
    stub.emit(JMP_REL32);
    stub.emitDistance(target);
  }
}

/** Records an end before the last instructions of its function: these may use the red zone, which is kept clear of. */
function emitEarly(code: StubCode, recording: Recording, kind: ExitKind, depth = 0): void {
  for (const byte of BELOW_RED_ZONE) code.emit(byte);
  code.fillCell(true);
  code.emitRecord(recording, kind === 'return' ? 'deep-return' : 'deep-tail', depth + RED_ZONE);
  for (const byte of ABOVE_RED_ZONE) code.emit(byte);
}

/** A copy of a block, which records before its last instruction; or what records and goes on to the block itself. */
function emitBlock(code: StubCode, block: ExitBlock, loadBias: number, recording: Recording): void {
  const { displaced, original, addressNumber, kind, depth } = block;
  if (displaced.length === 0) {
    emitEarly(code, recording, kind, depth);
    code.emit(JMP_REL32);
    code.emitDistance(addressNumber + loadBias);
    return;
  }
  const back = addressNumber + original.length + loadBias;
  for (const instruction of displaced.slice(0, -1)) relocateOne(code, instruction, original, loadBias, back);
  code.fillCell(true);
  code.emitRecord(recording, kind);
  relocateOne(code, displaced[displaced.length - 1], original, loadBias, back);
}

function relocateOne(
  code: StubCode,
  instruction: DisplacedInstruction,
  original: Uint8Array,
  loadBias: number,
  back: number,
): void {
  const { form, offset, length, fixOffset } = instruction;
  const end = offset + length;
  const target = instruction.target === undefined ? undefined : Number(instruction.target) + loadBias;
  switch (form) {
    case 'nop':
      return;
    case 'verbatim':
      code.copy(original, offset, end);
      return;
    case 'rip-relative':
      emitRipRelative(code, original, offset, end, fixOffset, target ?? 0);
      return;
    case 'branch':
      emitBranch(code, original, offset, code.copyOf(Number(instruction.target)) ?? target ?? 0);
      return;
    case 'call':
      code.emitPush(back);
      code.emit(JMP_REL32);
      code.emitDistance(target ?? 0);
      return;
    case 'indirect-call': {
      code.emitPush(back);
      const jump = original.slice(offset, end);
      jump[opcodeIndex(jump, 0) + 1] ^= CALL_TO_JMP;
      if (target === undefined) code.copy(jump, 0, length);
      else emitRipRelative(code, jump, 0, length, fixOffset, target);
    }
  }
}

/** The instruction from `start` to `end` with its displacement adapted; an immediate may follow the displacement. */
function emitRipRelative(
  code: StubCode,
  bytes: Uint8Array,
  start: number,
  end: number,
  fixOffset: number,
  target: number,
): void {
  const fix = start + fixOffset;
  code.copy(bytes, start, fix);
  code.emitDistance(target, end - fix - 4);
  code.copy(bytes, fix + 4, end);
}

function emitBranch(code: StubCode, bytes: Uint8Array, start: number, target: number): void {
  const at = opcodeIndex(bytes, start);
  const opcode = bytes[at];
  if (opcode === JMP_REL8 || opcode === JMP_REL32) {
    code.emit(JMP_REL32);
  } else if ((opcode & 0xf0) === 0x70) {
    // jcc rel8 has its condition in the low bits, as jcc rel32 (0F 80+cc) has.
    code.emit(0x0f);
    code.emit(0x80 | (opcode & 0x0f));
  } else if ((opcode & 0xfc) === 0xe0) {
    // loopne, loope, loop, jrcxz: only a rel8 form, whose prefixes choose the counter.
    code.copy(bytes, start, at + 1);
    for (const byte of OVER_LONG_JUMP) code.emit(byte);
  } else {
    // jcc rel32 and xbegin: two bytes of opcode and the distance.
    code.emit(opcode);
    code.emit(bytes[at + 1]);
  }
  code.emitDistance(target);
}

function opcodeIndex(bytes: Uint8Array, start: number): number {
  let at = start;
  while (isPrefix(bytes[at])) at++;
  return at;
}

/** Code at a known address that grows at its end, with 8-byte constants that come to lie behind it. One serves all stubs. */
class StubCode {
  #into: Uint8Array = new Uint8Array(0);
  #start = 0;
  #at = 0;
  #address = 0;
  #candidate: DisplacedCode | undefined;
  #copies: ReadonlyMap<number, number> | undefined;
  readonly #constants: { readonly value: number; readonly fix: number }[] = [];

  /** `copies`: where in the stub is what stands at an address of the file, if jumps there are to go to it. */
  begin(
    candidate: DisplacedCode,
    address: number,
    into: Uint8Array,
    at: number,
    copies?: ReadonlyMap<number, number>,
  ): void {
    this.#copies = copies;
    this.#into = into;
    this.#start = at;
    this.#at = at;
    this.#address = address;
    this.#candidate = candidate;
    this.#constants.length = 0;
  }

  copyOf(address: number): number | undefined {
    return this.#copies?.get(address);
  }

  get length(): number {
    return this.#at - this.#start;
  }

  emit(byte: number): void {
    this.#into[this.#at++] = byte;
  }

  copy(bytes: Uint8Array, from: number, to: number): void {
    for (let i = from; i < to; i++) this.#into[this.#at++] = bytes[i];
  }

  /** A 32-bit distance to `target` from the end of the instruction, which is `behind` bytes after the distance. */
  emitDistance(target: number, behind = 0): void {
    const distance = target - (this.#address + this.length + 4 + behind);
    if (Math.abs(distance) > MOST_DISTANCE) {
      throw new CannotError('out-of-reach', {
        tried: `place the stub of ${this.#candidate?.function.name ?? ''} at 0x${this.#address.toString(16)}`,
        why: `its code refers to 0x${target.toString(16)}, more than 2 GiB away`,
        next: 'place it nearer to the code',
      });
    }
    this.#put32(this.#at, distance);
    this.#at += 4;
  }

  /** Pushes a 64-bit constant and changes no register. */
  emitPush(value: number): void {
    for (const byte of PUSH_RIP_RELATIVE) this.emit(byte);
    this.#constants.push({ value, fix: this.#at });
    this.#at += 4;
  }

  /** Goes on at the beginning of a cell. */
  fillCell(isReached: boolean): void {
    let left = -(this.#address + this.length) & (CELL_SIZE - 1);
    for (; !isReached && left > 0; left--) this.emit(INT3);
    while (left > 0) {
      const length = Math.min(left, LONGEST_NOP);
      for (const byte of NOPS[length]) this.emit(byte);
      left -= length;
    }
  }

  /** Calls the recorder, from the beginning of a cell. */
  emitRecord(recording: Recording, event: UsualEvent): void;
  emitRecord(recording: Recording, event: DeepEvent, depth: number): void;
  emitRecord(recording: Recording, event: RecordedEvent, depth?: number): void {
    const target = recording.call(this.#address + this.length, event);
    this.emit(CALL_REL32);
    this.emitDistance(target);
    if (depth === undefined) return;
    for (const byte of NOP_WITH_DEPTH) this.emit(byte);
    this.#put32(this.#at, depth);
    this.#at += 4;
  }

  /** Has the branch whose distance is at an offset lead to where the code goes on. */
  leadHere(fix: number): void {
    this.#put32(this.#start + fix, this.length - (fix + 4));
  }

  /** Appends the constants. Returns the number of bytes in all. */
  finish(): number {
    for (const { value, fix } of this.#constants) {
      this.#put32(fix, this.#at - (fix + 4));
      this.#put32(this.#at, value % TWO_TO_32);
      this.#put32(this.#at + 4, Math.floor(value / TWO_TO_32));
      this.#at += 8;
    }
    return this.length;
  }

  #put32(at: number, value: number): void {
    const into = this.#into;
    into[at] = value & 0xff;
    into[at + 1] = (value >> 8) & 0xff;
    into[at + 2] = (value >> 16) & 0xff;
    into[at + 3] = (value >> 24) & 0xff;
  }
}

const stub = new StubCode();
