// How much a function has pushed where it leaves: by the unwind table, and by following its instructions where there is none.
import { DWARF_RBP, type UnwindTable } from '../elf/index.js';
import { CodeRanges, Trait } from './code-ranges.js';
import type { CodeRegion, CodeRegions } from './code-regions.js';
import { FRAME_POINTER, STACK_POINTER, common } from './common-instructions.js';
import { Flow } from './flow.js';
import { Mnemonic, OpKind, Register, RegisterExt, type Instruction } from './iced.js';
import { branchTarget, decodeFlow, decodeRare, int32At } from './instruction-flow.js';

/** Longer functions without an unwind table are not followed: nobody writes such by hand. */
const LONGEST_FOLLOWED = 1024 * 1024;

/** Answers what is on the stack at a place of a range. */
export class StackDepths {
  /** What the walk over ranges without an unwind table found at their jumps and returns: bytes pushed. */
  readonly #followed = new Map<number, number>();

  constructor(
    regions: CodeRegions,
    private readonly ranges: CodeRanges,
    private readonly unwind: UnwindTable,
  ) {
    const { starts, ends, count } = ranges;
    for (let i = 0; i < count; i++) {
      const region = ranges.unwind[i] < 0 && ranges.functions[i] >= 0 ? regions.at(starts[i]) : undefined;
      if (region === undefined || ends[i] - starts[i] > LONGEST_FOLLOWED) continue;
      if (ranges.has(i, Trait.undecodable)) continue;
      this.#follow(region, starts[i] - region.start, ends[i] - region.start, i);
    }
  }

  /** True if nothing is on the stack but what a call leaves; undefined where that cannot be known. */
  isCallFrame(range: number, address: number): boolean | undefined {
    const entry = this.ranges.unwind[range];
    if (entry >= 0) return this.unwind.isCallFrame(entry, address);
    const depth = this.#followed.get(address);
    return depth === undefined ? undefined : depth === 0;
  }

  /** True if rbp is the frame pointer at an address of a range: the unwind table finds the caller's frame by it. */
  hasFramePointer(range: number, address: number): boolean {
    const entry = this.ranges.unwind[range];
    const RETURN_ADDRESS = 8;
    return entry >= 0 && this.unwind.isReturnSlot(entry, address, DWARF_RBP, RETURN_ADDRESS);
  }

  /** Bytes that have been pushed at an address of a range, where the unwind table tells. */
  pushedAt(range: number, address: number): number | undefined {
    const entry = this.ranges.unwind[range];
    return entry < 0 ? undefined : this.unwind.pushedAt(entry, address);
  }

  /** In the order of addresses; what stands behind a jump has the depth that was left for it by a jump to it. */
  #follow(region: CodeRegion, first: number, end: number, index: number): void {
    const { bytes, start: base } = region;
    const left = new Map<number, number>();
    let depth: number | undefined = 0;
    /** What `rbp` stands for, once it is the frame pointer. */
    let frame: number | undefined;
    let found = 0;
    for (let at = first; at < end; at = common.end) {
      const known = left.get(at);
      depth ??= known;
      const rare = decodeFlow(bytes, at, end);
      const { flow } = common;
      const next = common.end;
      if (
        flow === Flow.jump ||
        flow === Flow.conditionalJump ||
        flow === Flow.indirectJump ||
        flow === Flow.end
      ) {
        if (depth !== undefined) this.#followed.set(base + at, depth);
        if (depth !== undefined && (flow === Flow.jump || flow === Flow.conditionalJump)) {
          const target = branchTarget(bytes, at, next);
          if (!left.has(target)) left.set(target, depth);
        }
        if (flow !== Flow.conditionalJump) depth = undefined;
        continue;
      }
      if (depth === undefined || common.isNop) continue;
      if (common.base === STACK_POINTER && common.baseOffset === depth) found |= Trait.ownReturn;
      const change = stackChange(bytes, at, next, rare);
      if (change === OTHER) {
        if (depth === 0) found |= Trait.ownReturn;
        else found |= Trait.oddStack;
        depth = undefined;
      } else if (change === FROM_FRAME) {
        depth = frame;
        if (depth !== undefined && isLeave(bytes, at)) depth -= 8;
      } else if (change === TO_FRAME) frame = depth;
      else if (change === TO_OTHER) {
        // The address of the return address goes into a register.
        if (depth === 0) found |= Trait.ownReturn;
      } else if (Number.isFinite(change)) {
        depth += change;
        if (depth < 0) {
          found |= Trait.ownReturn;
          depth = undefined;
        }
      }
      common.end = next;
    }
    this.ranges.traits[index] |= found;
  }
}

const OTHER = Number.POSITIVE_INFINITY;
const FROM_FRAME = Number.NEGATIVE_INFINITY;
/** `mov rbp, rsp` and `mov r, rsp`: told apart from changes by being no whole numbers. */
export const TO_FRAME = 0.5;
export const TO_OTHER = 0.25;

function isLeave(bytes: Uint8Array, at: number): boolean {
  return bytes[at] === 0xc9;
}

/** By how much the instruction decoded last, which does not jump, lowers the stack pointer, or what else it does to it: no whole number. */
export function stackChange(
  bytes: Uint8Array,
  start: number,
  end: number,
  rare: Instruction | undefined,
): number {
  if (rare !== undefined) return rareStackChange(rare);
  const first = bytes[start];
  const opcode = (first & 0xf0) === 0x40 ? bytes[start + 1] : first;
  if (end - start <= 2 && (opcode & 0xf0) === 0x50 && (first === opcode || (first & 0xfe) === 0x40)) {
    if ((opcode & 0xf8) === 0x50) return 8;
    return opcode === 0x5c && first === opcode ? OTHER : -8;
  }
  if (first === 0xc9) return FROM_FRAME;
  if (first === 0x6a || first === 0x68) return 8;
  // 48 83 EC/C4 ib, 48 81 EC/C4 id: sub, add rsp. 48 8D 64 24 ib, 48 8D A4 24 id: lea rsp, [rsp + x].
  if (first === 0x48) {
    const modrm = bytes[start + 2];
    if (opcode === 0x83 && (modrm === 0xec || modrm === 0xc4)) {
      const value = (bytes[start + 3] << 24) >> 24;
      return modrm === 0xec ? value : -value;
    }
    if (opcode === 0x81 && (modrm === 0xec || modrm === 0xc4)) {
      const value = int32At(bytes, start + 3);
      return modrm === 0xec ? value : -value;
    }
    if (opcode === 0x8d && (modrm & 0x38) === 0x20 && common.base === STACK_POINTER)
      return -common.baseOffset;
  }
  if (common.modrm < 0) return 0;
  const modrm = bytes[common.modrm];
  if (bytes[common.modrm - 1] === 0xff && (modrm & 0x38) === 0x30) return 8;
  // Register 4 is rsp, or r12 with a REX prefix.
  const mayBeStack = (modrm & 0x38) === 0x20 || (modrm & 0xc7) === 0xc4;
  return mayBeStack ? rareStackChange(decodeRare(bytes, start, end)) : 0;
}

/** The same for what is seldom seen, as iced-x86 has it. */
function rareStackChange(instruction: Instruction): number {
  const { mnemonic } = instruction;
  if (mnemonic === Mnemonic.Push) return 8;
  if (mnemonic === Mnemonic.Pop) return -8;
  if (mnemonic === Mnemonic.Pushfq) return 8;
  if (mnemonic === Mnemonic.Popfq) return -8;
  if (instruction.opCount === 0) return 0;
  const isStack = (operand: number): boolean =>
    instruction.opKind(operand) === OpKind.Register &&
    RegisterExt.fullRegister(instruction.opRegister(operand)) === Register.RSP;
  const isFrame = (operand: number): boolean =>
    instruction.opKind(operand) === OpKind.Register && instruction.opRegister(operand) === Register.RBP;
  if (mnemonic === Mnemonic.Mov && instruction.opCount === 2) {
    if (isStack(0)) return isFrame(1) ? FROM_FRAME : OTHER;
    if (isStack(1)) return isFrame(0) ? TO_FRAME : instruction.op0Kind === OpKind.Register ? TO_OTHER : 0;
    return 0;
  }
  if (mnemonic === Mnemonic.Cmp || mnemonic === Mnemonic.Test) return 0;
  if (isStack(0)) return OTHER;
  return mnemonic === Mnemonic.Xchg && instruction.opCount === 2 && isStack(1) ? OTHER : 0;
}

/** True if the instruction that was decoded last addresses memory by rsp, or perhaps by rbp, and an index. */
export function hasStackIndex(bytes: Uint8Array, rare: Instruction | undefined): boolean {
  if (rare !== undefined) {
    const { memoryBase, memoryIndex } = rare;
    return memoryIndex !== Register.None && (memoryBase === Register.RSP || memoryBase === Register.RBP);
  }
  const { modrm } = common;
  if (modrm < 0) return false;
  const RM_SIB = 4;
  const isSib = bytes[modrm] >> 6 !== 3 && (bytes[modrm] & 7) === RM_SIB;
  const sib = bytes[modrm + 1];
  const NO_INDEX = 0x20;
  // r12 and r13 look the same without their prefix.
  const base = sib & 7;
  return isSib && (sib & 0x38) !== NO_INDEX && (base === STACK_POINTER || base === FRAME_POINTER);
}
