// Lengths and flow of the instructions that compilers use all the time, from tables: what most sweeps over code ask of most
// instructions. It knows only what it is sure of and says so; everything else is iced-x86's, which takes twenty times as long.
// A test compares the two over all opcodes, prefixes and operands.
//
//   prefixes   none or some of fs:, 66, F2, F3 (each once), then perhaps REX
//   opcode     one byte, or 0F and one byte
//   ModRM      perhaps, with SIB and displacement as it says
//   immediate  perhaps
//
// Sources: Intel SDM volume 2, chapter 2 (format), appendix A (opcode map).
import { Flow } from './flow.js';

/** What `decodeCommon` found; overwritten by the next call. An object of its own for each instruction would cost more than to decode it. */
export const common: {
  /** Behind the instruction, as an index into the bytes. */
  end: number;
  flow: Flow;
  /** Index of the 32-bit displacement of an operand that is relative to the instruction pointer; -1: there is none. */
  displacement: number;
  /** True for `nop` in all its lengths. */
  isNop: boolean;
  /** True for `pop r` and `leave`. */
  endsFrame: boolean;
  /** `STACK_POINTER` or `FRAME_POINTER` where an operand is addressed by that register and a displacement alone, else `OTHER_BASE`. */
  base: number;
  /** The displacement then. */
  baseOffset: number;
  /** Index of the ModRM byte; -1: there is none, or the tables do not know the instruction. */
  modrm: number;
} = {
  end: 0,
  flow: Flow.next,
  displacement: -1,
  isNop: false,
  endsFrame: false,
  base: 0,
  baseOffset: 0,
  modrm: -1,
};

/** Numbers of rsp and rbp as ModRM and SIB have them. */
export const STACK_POINTER = 4;
export const FRAME_POINTER = 5;
export const OTHER_BASE = 0;

/** How an opcode goes on. The lower bits are `Flow`. */
const FLOW_MASK = 0xf;
const MODRM = 0x10;
const IMM8 = 0x20;
/** 16 bits with prefix 66, else 32. */
const IMM_Z = 0x40;
/** As IMM_Z, but 64 bits with REX.W. */
const IMM_V = 0x80;
/** Which prefixes it may have, one bit each; without any it is always known. */
const WITH_66 = 0x100;
const WITH_F3 = 0x200;
const WITH_F2 = 0x400;
/** Nothing but a mandatory prefix makes it known. */
const NOT_PLAIN = 0x800;
/** The operand must be memory. */
const MEMORY_ONLY = 0x1000;
/** The reg field of ModRM decides: see `decodeCommon`. */
const GROUP = 0x2000;
const NOP = 0x4000;
const ENDS_FRAME = 0x8000;
const KNOWN = 0x1_0000;

const ONE_BYTE = new Int32Array(256);
const TWO_BYTE = new Int32Array(256);

function define(table: Int32Array, first: number, last: number, properties: number): void {
  for (let opcode = first; opcode <= last; opcode++) table[opcode] = KNOWN | properties;
}

// add, or, adc, sbb, and, sub, xor, cmp
for (let row = 0x00; row <= 0x38; row += 8) {
  define(ONE_BYTE, row, row + 3, MODRM | WITH_66);
  define(ONE_BYTE, row + 4, row + 4, IMM8 | WITH_66);
  define(ONE_BYTE, row + 5, row + 5, IMM_Z | WITH_66);
}
define(ONE_BYTE, 0x50, 0x57, WITH_66); // push r
define(ONE_BYTE, 0x58, 0x5f, WITH_66 | ENDS_FRAME); // pop r
define(ONE_BYTE, 0x63, 0x63, MODRM | WITH_66); // movsxd
define(ONE_BYTE, 0x68, 0x68, IMM_Z | WITH_66); // push imm
define(ONE_BYTE, 0x69, 0x69, MODRM | IMM_Z | WITH_66); // imul r, rm, imm
define(ONE_BYTE, 0x6a, 0x6a, IMM8 | WITH_66); // push imm8
define(ONE_BYTE, 0x6b, 0x6b, MODRM | IMM8 | WITH_66); // imul r, rm, imm8
define(ONE_BYTE, 0x70, 0x7f, IMM8 | Flow.conditionalJump); // jcc rel8
define(ONE_BYTE, 0x80, 0x80, MODRM | IMM8 | WITH_66); // add ... cmp rm, imm
define(ONE_BYTE, 0x81, 0x81, MODRM | IMM_Z | WITH_66);
define(ONE_BYTE, 0x83, 0x83, MODRM | IMM8 | WITH_66);
define(ONE_BYTE, 0x84, 0x8b, MODRM | WITH_66); // test, xchg, mov
define(ONE_BYTE, 0x8d, 0x8d, MODRM | MEMORY_ONLY | Flow.leaRelative); // lea
define(ONE_BYTE, 0x90, 0x90, WITH_66 | NOP); // nop, and with REX.B xchg
define(ONE_BYTE, 0x91, 0x97, WITH_66); // xchg
define(ONE_BYTE, 0x98, 0x99, WITH_66); // cdqe, cqo
define(ONE_BYTE, 0xa4, 0xa5, WITH_66 | WITH_F3); // movs
define(ONE_BYTE, 0xa8, 0xa8, IMM8 | WITH_66); // test
define(ONE_BYTE, 0xa9, 0xa9, IMM_Z | WITH_66);
define(ONE_BYTE, 0xaa, 0xab, WITH_66 | WITH_F3); // stos
define(ONE_BYTE, 0xb0, 0xb7, IMM8 | WITH_66); // mov r, imm
define(ONE_BYTE, 0xb8, 0xbf, IMM_V | WITH_66);
define(ONE_BYTE, 0xc0, 0xc1, MODRM | IMM8 | WITH_66); // shifts
define(ONE_BYTE, 0xc3, 0xc3, WITH_F3 | Flow.end); // ret
define(ONE_BYTE, 0xc6, 0xc6, MODRM | IMM8 | GROUP | WITH_66); // mov rm, imm
define(ONE_BYTE, 0xc7, 0xc7, MODRM | IMM_Z | GROUP | WITH_66);
define(ONE_BYTE, 0xc9, 0xc9, ENDS_FRAME); // leave
define(ONE_BYTE, 0xcc, 0xcc, 0); // int3
define(ONE_BYTE, 0xd0, 0xd3, MODRM | WITH_66); // shifts
define(ONE_BYTE, 0xe8, 0xe8, IMM_Z | Flow.call); // call rel32
define(ONE_BYTE, 0xe9, 0xe9, IMM_Z | Flow.jump); // jmp rel32
define(ONE_BYTE, 0xeb, 0xeb, IMM8 | Flow.jump); // jmp rel8
define(ONE_BYTE, 0xf6, 0xf7, MODRM | GROUP | WITH_66); // test, not, neg, mul, div
define(ONE_BYTE, 0xfe, 0xff, MODRM | GROUP | WITH_66); // inc, dec, call, jmp, push

define(TWO_BYTE, 0x0b, 0x0b, Flow.end); // ud2
define(TWO_BYTE, 0x10, 0x11, MODRM | WITH_66 | WITH_F3 | WITH_F2); // movups, movss ...
define(TWO_BYTE, 0x1f, 0x1f, MODRM | GROUP | WITH_66 | NOP); // nop rm
define(TWO_BYTE, 0x28, 0x29, MODRM | WITH_66); // movaps
define(TWO_BYTE, 0x2a, 0x2a, MODRM | NOT_PLAIN | WITH_F3 | WITH_F2); // cvtsi2sd
define(TWO_BYTE, 0x2c, 0x2d, MODRM | NOT_PLAIN | WITH_F3 | WITH_F2); // cvttsd2si
define(TWO_BYTE, 0x2e, 0x2f, MODRM | WITH_66); // ucomisd
define(TWO_BYTE, 0x40, 0x4f, MODRM | WITH_66); // cmov
define(TWO_BYTE, 0x51, 0x51, MODRM | WITH_66 | WITH_F3 | WITH_F2); // sqrt
define(TWO_BYTE, 0x54, 0x57, MODRM | WITH_66); // andps ... xorps
define(TWO_BYTE, 0x58, 0x5a, MODRM | WITH_66 | WITH_F3 | WITH_F2); // add, mul, cvtss2sd
define(TWO_BYTE, 0x5c, 0x5f, MODRM | WITH_66 | WITH_F3 | WITH_F2); // sub, min, div, max
define(TWO_BYTE, 0x6c, 0x6e, MODRM | NOT_PLAIN | WITH_66); // punpcklqdq, movd
define(TWO_BYTE, 0x6f, 0x6f, MODRM | NOT_PLAIN | WITH_66 | WITH_F3); // movdqa
define(TWO_BYTE, 0x7e, 0x7f, MODRM | NOT_PLAIN | WITH_66 | WITH_F3);
define(TWO_BYTE, 0x80, 0x8f, IMM_Z | Flow.conditionalJump); // jcc rel32
define(TWO_BYTE, 0x90, 0x9f, MODRM | WITH_66); // setcc
define(TWO_BYTE, 0xa3, 0xa3, MODRM | WITH_66); // bt
define(TWO_BYTE, 0xaf, 0xaf, MODRM | WITH_66); // imul
define(TWO_BYTE, 0xb6, 0xb7, MODRM | WITH_66); // movzx
define(TWO_BYTE, 0xbe, 0xbf, MODRM | WITH_66); // movsx
define(TWO_BYTE, 0xc8, 0xcf, 0); // bswap
define(TWO_BYTE, 0xd6, 0xd6, MODRM | NOT_PLAIN | WITH_66 | MEMORY_ONLY); // movq
define(TWO_BYTE, 0xef, 0xef, MODRM | NOT_PLAIN | WITH_66); // pxor

const REX_W = 8;
const REX_X = 2;
const REX_B = 1;

/**
 * Decodes the instruction at `start` in `bytes` into `common`. False if it is none of the common ones, or does not end by
 * `limit`.
 */
export function decodeCommon(bytes: Uint8Array, start: number, limit: number): boolean {
  let at = start;
  let mandatory = 0;
  let has66 = false;
  let hasSegment = false;
  let byte = bytes[at];
  for (;;) {
    if (byte === 0x66 && !has66) has66 = true;
    else if ((byte === 0xf2 || byte === 0xf3) && mandatory === 0)
      mandatory = byte === 0xf3 ? WITH_F3 : WITH_F2;
    else if (byte === 0x64 && !hasSegment) hasSegment = true;
    else break;
    byte = bytes[++at];
  }
  let rex = 0;
  if ((byte & 0xf0) === 0x40) {
    rex = byte;
    byte = bytes[++at];
  }
  const isTwoByte = byte === 0x0f;
  const properties = isTwoByte ? TWO_BYTE[bytes[++at]] : ONE_BYTE[byte];
  const opcode = bytes[at++];
  // Past the end of the bytes they are undefined, and the index into the table too.
  if (!(properties >= KNOWN)) return false;
  const prefix = mandatory !== 0 ? mandatory : has66 ? WITH_66 : 0;
  if (prefix === 0 ? (properties & NOT_PLAIN) !== 0 : (properties & prefix) === 0) return false;
  // With both, what 66 does depends on the instruction.
  if (mandatory !== 0 && has66) return false;

  let flow = (properties & FLOW_MASK) as Flow;
  if (hasSegment && flow !== Flow.next) return false;
  let immediate = 0;
  if ((properties & IMM8) !== 0) immediate = 1;
  else if ((properties & (IMM_Z | IMM_V)) !== 0) {
    const isWide = (rex & REX_W) !== 0;
    immediate = isWide && (properties & IMM_V) !== 0 ? 8 : has66 && !isWide ? 2 : 4;
  }
  let isNop = (properties & NOP) !== 0;
  if (isNop && !isTwoByte && (rex & REX_B) !== 0) isNop = false;
  let displacement = -1;
  let base = OTHER_BASE;
  let baseOffset = 0;
  let modrmAt = -1;
  if ((properties & MODRM) !== 0) {
    modrmAt = at;
    const modrm = bytes[at++];
    const mod = modrm >> 6;
    const rm = modrm & 7;
    if (mod === 3) {
      if ((properties & MEMORY_ONLY) !== 0) return false;
    } else if (mod === 0 && rm === 5) {
      displacement = at;
      at += 4;
    } else {
      const hasNoBase = mod === 0 && rm === 4 && (bytes[at] & 7) === 5;
      if (rm === 4) {
        // SIB 24: rsp and no index, unless REX says r12 or an index. 25: rbp.
        const sib = bytes[at++] & 0x3f;
        if ((sib === 0x24 || (sib === 0x25 && mod !== 0)) && (rex & (REX_B | REX_X)) === 0) base = sib & 7;
      } else if (rm === 5 && (rex & REX_B) === 0) base = FRAME_POINTER;
      if (mod === 1) {
        baseOffset = (bytes[at] << 24) >> 24;
        at += 1;
      } else if (mod === 2 || hasNoBase) {
        if (base !== OTHER_BASE) baseOffset = int32(bytes, at);
        at += 4;
      }
    }
    if ((properties & GROUP) !== 0) {
      const reg = (modrm >> 3) & 7;
      if (isTwoByte || opcode === 0xc6 || opcode === 0xc7) {
        if (reg !== 0) return false;
      } else if (opcode === 0xf6) {
        if (reg < 2) immediate = 1;
      } else if (opcode === 0xf7) {
        if (reg < 2) immediate = has66 && (rex & REX_W) === 0 ? 2 : 4;
      } else if (reg > 1) {
        if (opcode === 0xfe || has66 || hasSegment) return false;
        if (reg === 2) flow = Flow.indirectCall;
        else if (reg === 4) flow = Flow.indirectJump;
        else if (reg !== 6) return false;
      }
    }
  }
  at += immediate;
  if (at > limit) return false;
  common.end = at;
  common.flow = flow;
  common.displacement = displacement;
  common.isNop = isNop;
  common.endsFrame = (properties & ENDS_FRAME) !== 0;
  common.base = base;
  common.baseOffset = baseOffset;
  common.modrm = modrmAt;
  return true;
}

function int32(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
}
