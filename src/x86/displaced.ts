import { common } from './common-instructions.js';
import { Flow } from './flow.js';
import { Code, Decoder, DecoderOptions, OpKind, Register, type Instruction } from './iced.js';
import { branchTarget, decodeFlow, decodeRare, int32At, isPrefix } from './instruction-flow.js';
import { SITE_LENGTH, type DisplacedInstruction, type RefusalReason } from './sites.js';

/** The longest instruction is 15 bytes, and one may begin at the last byte of the site. */
const MOST_DISPLACED = SITE_LENGTH - 1 + 15;

const OPERAND_SIZE_PREFIX = 0x66;
const ENDBR64 = [0xf3, 0x0f, 0x1e, 0xfa] as const;

/** Length of the `endbr64` at `at` if there is one, else 0: it must stay where it is, and the site comes behind it. */
export function endbrLength(bytes: Uint8Array, at: number): number {
  if (bytes[at] !== ENDBR64[0]) return 0;
  return ENDBR64.every((byte, i) => bytes[at + i] === byte) ? ENDBR64.length : 0;
}

/**
 * The instructions that a site at `site` in `bytes` displaces, or why it cannot. `address` is where `bytes` lie; the function
 * ends at `end` in them.
 */
export function describeDisplaced(
  bytes: Uint8Array,
  site: number,
  address: number,
  end: number = bytes.length,
): DisplacedInstruction[] | RefusalReason {
  const displaced: DisplacedInstruction[] = [];
  const limit = Math.min(site + MOST_DISPLACED, end);
  for (let start = site; start < site + SITE_LENGTH; start = common.end) {
    if (start >= limit) return 'too-short';
    const rare = decodeFlow(bytes, start, limit);
    if (common.flow === Flow.invalid) {
      // Cut off by the end of the function, or no instruction at all.
      return limit < site + MOST_DISPLACED ? 'too-short' : 'not-relocatable';
    }
    const described = describe(bytes, start, site, address, rare);
    if (typeof described === 'string') return described;
    displaced.push(described);
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
    const described = describe(bytes, start, from, base, rare);
    if (typeof described === 'string') return described;
    displaced.push(described);
  }
  return displaced;
}

function lastEnd(displaced: readonly DisplacedInstruction[]): number {
  const { offset, length } = displaced[displaced.length - 1];
  return offset + length;
}

/** Describes the instruction that was decoded last. */
function describe(
  bytes: Uint8Array,
  start: number,
  site: number,
  address: number,
  rare: Instruction | undefined,
): DisplacedInstruction | RefusalReason {
  const { end, flow, isNop } = common;
  const offset = start - site;
  const length = end - start;
  const isLast = end - site >= SITE_LENGTH;
  const endsFlow = flow === Flow.end || flow === Flow.jump || flow === Flow.indirectJump;
  let form: DisplacedInstruction['form'] = 'verbatim';
  if (isNop) return { offset, length, form: 'nop', fixOffset: 0, target: undefined, endsFlow };
  if (flow === Flow.jump || flow === Flow.conditionalJump || flow === Flow.call) {
    // With an operand size prefix processors of the two makers disagree on where the instruction ends.
    if (hasOperandSizePrefix(bytes, start)) return 'not-relocatable';
    if (flow === Flow.call && !isLast) return 'call-in-prologue';
    form = flow === Flow.call ? 'call' : 'branch';
    const target = BigInt(address + branchTarget(bytes, start, end));
    return { offset, length, form, fixOffset: 0, target, endsFlow };
  }
  if (flow === Flow.indirectCall) {
    const call = rare ?? decodeRare(bytes, start, end);
    // The stub pushes the return address first, which moves what is addressed through the stack pointer.
    if (!isLast || usesStackPointer(call)) return 'call-in-prologue';
    if (call.code !== Code.Call_rm64 || hasOperandSizePrefix(bytes, start)) return 'not-relocatable';
    form = 'indirect-call';
  }
  const displacement = rare === undefined ? common.displacement : displacementOf(rare, bytes, start, end);
  if (displacement === undefined) return 'not-relocatable';
  if (displacement < 0) return { offset, length, form, fixOffset: 0, target: undefined, endsFlow };
  if (form === 'verbatim') form = 'rip-relative';
  const target = BigInt(address + end + int32At(bytes, displacement));
  return { offset, length, form, fixOffset: displacement - start, target, endsFlow };
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
