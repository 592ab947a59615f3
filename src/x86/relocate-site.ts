import { CannotError } from '../errors/index.js';
import { isPrefix } from './instruction-flow.js';
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
 * - at the end `jmp rel32` to the first instruction behind the site
 *
 * For a `call-site` that is the profiler's call.
 */
export function relocateSite(candidate: SiteCandidate, stubAddress: bigint, loadBias: bigint): RelocatedCode {
  const code = new StubCode(stubAddress, candidate.function.name);
  const boundaries: { originalOffset: number; newOffset: number }[] = [];
  const back = candidate.address + loadBias + BigInt(candidate.displacedLength);
  for (const instruction of candidate.displaced) {
    boundaries.push({ originalOffset: instruction.offset, newOffset: code.length });
    const bytes = candidate.original.subarray(instruction.offset, instruction.offset + instruction.length);
    relocateOne(code, instruction, bytes, loadBias, back);
  }
  const last = candidate.displaced.at(-1);
  const comesBack =
    last === undefined || !(last.endsFlow || last.form === 'call' || last.form === 'indirect-call');
  if (comesBack) {
    code.emit(JMP_REL32);
    code.emitDistance(back);
  }
  return { bytes: code.finish(), boundaries };
}

function relocateOne(
  code: StubCode,
  instruction: DisplacedInstruction,
  bytes: Uint8Array,
  loadBias: bigint,
  back: bigint,
): void {
  const target = instruction.target === undefined ? undefined : instruction.target + loadBias;
  switch (instruction.form) {
    case 'nop':
      return;
    case 'verbatim':
      code.emit(...bytes);
      return;
    case 'rip-relative':
      emitRipRelative(code, bytes, instruction.fixOffset, target ?? 0n);
      return;
    case 'branch':
      emitBranch(code, bytes, target ?? 0n);
      return;
    case 'call':
      code.emitPush(back);
      code.emit(JMP_REL32);
      code.emitDistance(target ?? 0n);
      return;
    case 'indirect-call': {
      code.emitPush(back);
      const jump = bytes.slice();
      jump[opcodeOffset(bytes) + 1] ^= CALL_TO_JMP;
      if (target === undefined) code.emit(...jump);
      else emitRipRelative(code, jump, instruction.fixOffset, target);
    }
  }
}

/** The instruction with its displacement adapted; an immediate may follow the displacement. */
function emitRipRelative(code: StubCode, bytes: Uint8Array, fixOffset: number, target: bigint): void {
  code.emit(...bytes.subarray(0, fixOffset));
  const behind = bytes.length - fixOffset - 4;
  code.emitDistance(target, behind);
  code.emit(...bytes.subarray(fixOffset + 4));
}

function emitBranch(code: StubCode, bytes: Uint8Array, target: bigint): void {
  const at = opcodeOffset(bytes);
  const opcode = bytes[at];
  if (opcode === JMP_REL8 || opcode === JMP_REL32) {
    code.emit(JMP_REL32);
  } else if ((opcode & 0xf0) === 0x70) {
    // jcc rel8 has its condition in the low bits, as jcc rel32 (0F 80+cc) has.
    code.emit(0x0f, 0x80 | (opcode & 0x0f));
  } else if ((opcode & 0xfc) === 0xe0) {
    // loopne, loope, loop, jrcxz: only a rel8 form, whose prefixes choose the counter.
    code.emit(...bytes.subarray(0, at + 1), 2, JMP_REL8, 5, JMP_REL32);
  } else {
    // jcc rel32 and xbegin: two bytes of opcode and the distance.
    code.emit(opcode, bytes[at + 1]);
  }
  code.emitDistance(target);
}

function opcodeOffset(bytes: Uint8Array): number {
  let at = 0;
  while (isPrefix(bytes[at])) at++;
  return at;
}

/** Code at a known address that grows at its end, with 8-byte constants that come to lie behind it. */
class StubCode {
  readonly #bytes: number[] = [];
  readonly #constants: { readonly value: bigint; readonly fixOffset: number }[] = [];

  constructor(
    private readonly address: bigint,
    private readonly functionName: string,
  ) {}

  get length(): number {
    return this.#bytes.length;
  }

  emit(...bytes: number[]): void {
    this.#bytes.push(...bytes);
  }

  /** A 32-bit distance to `target` from the end of the instruction, which is `behind` bytes after the distance. */
  emitDistance(target: bigint, behind = 0): void {
    const distance = target - (this.address + BigInt(this.length + 4 + behind));
    if (BigInt.asIntN(32, distance) !== distance) {
      throw new CannotError('out-of-reach', {
        tried: `place the stub of ${this.functionName} at 0x${this.address.toString(16)}`,
        why: `its code refers to 0x${target.toString(16)}, more than 2 GiB away`,
        next: 'place it nearer to the code',
      });
    }
    const value = Number(distance);
    this.emit(value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, (value >> 24) & 0xff);
  }

  /** Pushes a 64-bit constant and changes no register. */
  emitPush(value: bigint): void {
    this.emit(...PUSH_RIP_RELATIVE);
    this.#constants.push({ value, fixOffset: this.length });
    this.emit(0, 0, 0, 0);
  }

  finish(): Uint8Array {
    const bytes = new Uint8Array(this.length + this.#constants.length * 8);
    bytes.set(this.#bytes);
    const view = new DataView(bytes.buffer);
    for (const [index, { value, fixOffset }] of this.#constants.entries()) {
      const at = this.length + index * 8;
      view.setInt32(fixOffset, at - (fixOffset + 4), true);
      view.setBigUint64(at, value, true);
    }
    return bytes;
  }
}
