import { common } from './common-instructions.js';
import { Flow, endsFlow } from './flow.js';
import { Code, Decoder, DecoderOptions, OpKind, Register, type Instruction } from './iced.js';
import { branchTarget, decodeFlow, decodeRare, int32At, isPrefix } from './instruction-flow.js';
import { SITE_LENGTH, type DisplacedInstruction, type RefusalReason } from './sites.js';

/** Intel SDM volume 2A, 2.3.11. */
const LONGEST_INSTRUCTION = 15;
const INT3 = 0xcc;
const OPERAND_SIZE_PREFIX = 0x66;
const ENDBR64 = [0xf3, 0x0f, 0x1e, 0xfa] as const;

/** Length of the `endbr64` at `at` if there is one, else 0: it must stay where it is, and the site comes behind it. */
export function endbrLength(bytes: Uint8Array, at: number): number {
  if (bytes[at] !== ENDBR64[0]) return 0;
  return ENDBR64.every((byte, i) => bytes[at + i] === byte) ? ENDBR64.length : 0;
}

/** Prefix of the jumps of MPX. */
const BND = 0xf2;
/** `jmp *disp32(%rip)` without the distance: Intel SDM, vol. 2A, "JMP". */
const JMP_THROUGH_SLOT = [0xff, 0x25] as const;
/** An entry of the procedure linkage table has at least as many; the jump, with what stands before it, at most. */
export const LINKAGE_ENTRY_BYTES = 11;

/** Where the jump through a slot stands in an entry of the procedure linkage table: perhaps behind `endbr64` and a prefix; -1: it is none. */
export function linkageJump(bytes: Uint8Array, at: number): number {
  const start = at + endbrLength(bytes, at);
  const jump = bytes[start] === BND ? start + 1 : start;
  return JMP_THROUGH_SLOT.every((byte, i) => bytes[jump + i] === byte) ? jump : -1;
}

/** How much code a site displaces. */
export interface DisplacedExtent {
  /** Bytes of the site, padding that is needed behind the last instruction included. */
  readonly length: number;
  /** Instructions. */
  readonly count: number;
}

/**
 * The extent of the whole instructions that a site of `wanted` bytes at `site` in `bytes` displaces, or why it cannot. The function
 * ends at `end`. Where the last instruction goes nowhere on, padding behind it, up to `padded`, may be a part of the site.
 */
export function measureDisplaced(
  bytes: Uint8Array,
  site: number,
  end: number = bytes.length,
  padded: number = end,
  wanted: number = SITE_LENGTH,
): DisplacedExtent | RefusalReason {
  const limit = Math.min(site + wanted - 1 + LONGEST_INSTRUCTION, end);
  let count = 0;
  let start = site;
  while (start < site + wanted) {
    if (start >= limit) return 'too-short';
    const rare = decodeFlow(bytes, start, limit);
    const { flow, end: next } = common;
    if (flow === Flow.invalid) {
      // Cut off by the end of the function, or no instruction at all.
      return limit < site + wanted - 1 + LONGEST_INSTRUCTION ? 'too-short' : 'not-relocatable';
    }
    const why = obstacle(bytes, start, next - site >= wanted, rare);
    if (why !== undefined) return why;
    count++;
    start = next;
    const endsFlow = flow === Flow.end || flow === Flow.jump || flow === Flow.indirectJump;
    if (endsFlow && wanted === SITE_LENGTH && start < site + wanted) {
      if (isPadding(bytes, start, Math.min(site + wanted, padded)) && site + wanted <= padded)
        return { length: wanted, count };
      // What stands behind is reached from elsewhere: it is displaced with the rest if nothing lands on it.
    }
  }
  return { length: start - site, count };
}

/** True if nothing but nops and int3 stands from `from` on, up to `to` or beyond. */
function isPadding(bytes: Uint8Array, from: number, to: number): boolean {
  for (let at = from; at < to;) {
    if (bytes[at] === INT3) {
      at++;
      continue;
    }
    decodeFlow(bytes, at, bytes.length);
    if (common.flow === Flow.invalid || !common.isNop) return false;
    at = common.end;
  }
  return true;
}

/** The same instructions, described. `address` is where `bytes` lie. */
export function describeDisplaced(
  bytes: Uint8Array,
  site: number,
  address: number,
  end: number = bytes.length,
  padded: number = end,
  wanted: number = SITE_LENGTH,
): DisplacedInstruction[] | RefusalReason {
  const extent = measureDisplaced(bytes, site, end, padded, wanted);
  if (typeof extent === 'string') return extent;
  const displaced: DisplacedInstruction[] = [];
  for (let start = site; displaced.length < extent.count; start = common.end) {
    const rare = decodeFlow(bytes, start, Math.min(start + LONGEST_INSTRUCTION, bytes.length));
    displaced.push(describe(bytes, start, site, address, rare));
  }
  return displaced;
}

/** The instructions from `from` up to `end` in `bytes`, none of which is a call; `base` is what an index lacks to be an address. */
export function describeRun(
  bytes: Uint8Array,
  from: number,
  end: number,
  base: number,
): DisplacedInstruction[] | RefusalReason {
  const displaced: DisplacedInstruction[] = [];
  for (let start = from; start < end; start = from + lastEnd(displaced)) {
    const rare = decodeFlow(bytes, start, end);
    if (common.flow === Flow.invalid) return 'not-relocatable';
    const why = obstacle(bytes, start, common.end === end, rare);
    if (why !== undefined) return why;
    displaced.push(describe(bytes, start, from, base, rare));
  }
  return displaced;
}

function lastEnd(displaced: readonly DisplacedInstruction[]): number {
  const { offset, length } = displaced[displaced.length - 1];
  return offset + length;
}

/** Why the instruction that was decoded last cannot run elsewhere; undefined if it can. */
function obstacle(
  bytes: Uint8Array,
  start: number,
  isLast: boolean,
  rare: Instruction | undefined,
): RefusalReason | undefined {
  const { end, flow } = common;
  if (flow === Flow.jump || flow === Flow.conditionalJump || flow === Flow.call) {
    // With an operand size prefix processors of the two makers disagree on where the instruction ends.
    if (hasOperandSizePrefix(bytes, start)) return 'not-relocatable';
    return flow === Flow.call && !isLast ? 'call-in-prologue' : undefined;
  }
  if (flow === Flow.indirectCall) {
    const call = rare ?? decodeRare(bytes, start, end);
    // The stub pushes the return address first, which moves what is addressed through the stack pointer.
    if (!isLast || usesStackPointer(call)) return 'call-in-prologue';
    if (call.code !== Code.Call_rm64 || hasOperandSizePrefix(bytes, start)) return 'not-relocatable';
  }
  if (rare?.isIpRelMemoryOperand === true && displacementOf(rare, bytes, start, end) === undefined)
    return 'not-relocatable';
  return undefined;
}

/** Describes the instruction that was decoded last, in whose way nothing stands. */
function describe(
  bytes: Uint8Array,
  start: number,
  site: number,
  address: number,
  rare: Instruction | undefined,
): DisplacedInstruction {
  const { end, flow, isNop } = common;
  const offset = start - site;
  const length = end - start;
  const plain = { offset, length, fixOffset: 0, target: undefined, endsFlow: endsFlow(flow) };
  if (isNop) return { ...plain, form: 'nop' };
  if (flow === Flow.jump || flow === Flow.conditionalJump || flow === Flow.call) {
    const target = BigInt(address + branchTarget(bytes, start, end));
    return { ...plain, form: flow === Flow.call ? 'call' : 'branch', target };
  }
  const form = flow === Flow.indirectCall ? 'indirect-call' : 'verbatim';
  const displacement =
    rare === undefined ? common.displacement : (displacementOf(rare, bytes, start, end) ?? -1);
  if (displacement < 0) return { ...plain, form };
  const target = BigInt(address + end + int32At(bytes, displacement));
  return {
    ...plain,
    form: form === 'verbatim' ? 'rip-relative' : form,
    fixOffset: displacement - start,
    target,
  };
}

/**
 * Index of the displacement of an operand that is relative to the instruction pointer; -1: there is none; undefined: there is one
 * of a kind that cannot be adapted.
 */
function displacementOf(
  instruction: Instruction,
  bytes: Uint8Array,
  start: number,
  end: number,
): number | undefined {
  if (!instruction.isIpRelMemoryOperand) return -1;
  if (instruction.memoryBase !== Register.RIP) return undefined;
  const decoder = new Decoder(64, bytes.subarray(start, end), DecoderOptions.None);
  const again = decoder.decode();
  const offsets = decoder.getConstantOffsets(again);
  const { hasDisplacement, displacementOffset, displacementSize } = offsets;
  offsets.free();
  again.free();
  decoder.free();
  return hasDisplacement && displacementSize === 4 ? start + displacementOffset : undefined;
}

function hasOperandSizePrefix(code: Uint8Array, start: number): boolean {
  for (let at = start; isPrefix(code[at]); at++) if (code[at] === OPERAND_SIZE_PREFIX) return true;
  return false;
}

function usesStackPointer(instruction: Instruction): boolean {
  return instruction.op0Kind === OpKind.Register
    ? instruction.op0Register === Register.RSP
    : instruction.memoryBase === Register.RSP || instruction.memoryBase === Register.ESP;
}
