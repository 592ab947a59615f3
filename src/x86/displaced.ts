import { Code, OpKind, Register, type Decoder, type Instruction } from './iced.js';
import { branchTarget, Flow, flowOf, forEachInstruction, isPrefix } from './instruction-flow.js';
import { SITE_LENGTH, type DisplacedInstruction, type RefusalReason } from './sites.js';

/** The longest instruction is 15 bytes, and one may begin at the last byte of the site. */
const MOST_DISPLACED = SITE_LENGTH - 1 + 15;

const OPERAND_SIZE_PREFIX = 0x66;
const ENDBR64 = [0xf3, 0x0f, 0x1e, 0xfa] as const;

/** Length of the `endbr64` at `at` if there is one, else 0: it must stay where it is, and the site comes behind it. */
export function endbrLength(bytes: Uint8Array, at: number): number {
  return ENDBR64.every((byte, i) => bytes[at + i] === byte) ? ENDBR64.length : 0;
}

/** The instructions that a site at `site` in `bytes` (which lie at `address`) displaces, or why it cannot. */
export function describeDisplaced(
  bytes: Uint8Array,
  site: number,
  address: number,
): DisplacedInstruction[] | RefusalReason {
  const displaced: DisplacedInstruction[] = [];
  let refusal: RefusalReason | undefined;
  let covered = 0;
  const code = bytes.subarray(site, site + MOST_DISPLACED);
  forEachInstruction(code, (instruction, start, end, decoder) => {
    const flow = flowOf(instruction);
    if (flow === Flow.invalid) {
      // Cut off by the end of the function, or no instruction at all.
      refusal = code.length < MOST_DISPLACED ? 'too-short' : 'not-relocatable';
      return false;
    }
    const isLast = end >= SITE_LENGTH;
    const described = describe(instruction, flow, code, start, end, address + site, decoder, isLast);
    if (typeof described === 'string') {
      refusal = described;
      return false;
    }
    displaced.push(described);
    covered = end;
    return !isLast;
  });
  if (refusal !== undefined) return refusal;
  return covered >= SITE_LENGTH ? displaced : 'too-short';
}

function describe(
  instruction: Instruction,
  flow: Flow,
  code: Uint8Array,
  start: number,
  end: number,
  codeAddress: number,
  decoder: Decoder,
  isLast: boolean,
): DisplacedInstruction | RefusalReason {
  const plain = {
    offset: start,
    length: end - start,
    form: 'verbatim' as const,
    fixOffset: 0,
    target: undefined,
    endsFlow: flow === Flow.end || flow === Flow.jump || flow === Flow.indirectJump,
  };
  if (isNop(instruction)) return { ...plain, form: 'nop' };
  if (flow === Flow.jump || flow === Flow.conditionalJump || flow === Flow.call) {
    // With an operand size prefix processors of the two makers disagree on where the instruction ends.
    if (hasOperandSizePrefix(code, start)) return 'not-relocatable';
    if (flow === Flow.call && !isLast) return 'call-in-prologue';
    const target = BigInt(codeAddress + branchTarget(code, start, end));
    return { ...plain, form: flow === Flow.call ? 'call' : 'branch', target };
  }

  let form: DisplacedInstruction['form'] = 'verbatim';
  if (flow === Flow.indirectCall) {
    // The stub pushes the return address first, which moves what is addressed through the stack pointer.
    if (!isLast || usesStackPointer(instruction)) return 'call-in-prologue';
    if (instruction.code !== Code.Call_rm64 || hasOperandSizePrefix(code, start)) return 'not-relocatable';
    form = 'indirect-call';
  }
  if (!instruction.isIpRelMemoryOperand) return { ...plain, form };
  if (instruction.memoryBase !== Register.RIP) return 'not-relocatable';
  const offsets = decoder.getConstantOffsets(instruction);
  const { hasDisplacement, displacementOffset, displacementSize } = offsets;
  offsets.free();
  if (!hasDisplacement || displacementSize !== 4) return 'not-relocatable';
  return {
    ...plain,
    form: form === 'verbatim' ? 'rip-relative' : form,
    fixOffset: displacementOffset,
    target: BigInt(codeAddress) + BigInt.asIntN(64, instruction.ipRelMemoryAddress),
  };
}

/** True for `nop` in all its lengths. */
export function isNop(instruction: Instruction): boolean {
  switch (instruction.code) {
    case Code.Nopw:
    case Code.Nopd:
    case Code.Nopq:
    case Code.Nop_rm16:
    case Code.Nop_rm32:
    case Code.Nop_rm64:
      return true;
    default:
      return false;
  }
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
