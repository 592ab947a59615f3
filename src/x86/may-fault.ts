// Which instructions may fault: those whose fault a program may answer by where it happened. A handler of SIGSEGV, SIGBUS, SIGFPE, SIGILL,
// SIGTRAP or SIGSYS looks the instruction up in a table, or throws. It finds neither in a stub, so that such an instruction stays where it is.
//
//   may fault     memory by way of a register, also of jumps and calls; division; floating point (it may be set to trap; not of the x87, which
//                 traps at a later instruction); string instructions; what traps by itself; what the kernel may trap (system calls)
//   does not      memory on the stack, by rsp, or by rbp where it is the frame pointer; relative to the instruction pointer; at a constant
//                 offset from fs (thread-local variables); nop, lea, prefetch; push, pop, call, ret
import { FRAME_POINTER, STACK_POINTER, common } from './common-instructions.js';
import { Flow } from './flow.js';
import { FlowControl, Mnemonic, OpKind, Register, type Instruction } from './iced.js';
import { int32At, isPrefix } from './instruction-flow.js';

const FS_PREFIX = 0x64;
const TWO_BYTE = 0x0f;
const INT3 = 0xcc;
const INT = 0xcd;
const UD2 = 0x0b;
const SYSCALL = 0x05;
const SYSENTER = 0x34;
/** Below it only what probes the stack's end goes. */
const RED_ZONE = 128;
/** Thread-local variables of a program and of the C library's thread block are as near. */
const NEAR_THREAD_POINTER = 0x1_0000;
/** ModRM and SIB of an address that is a 32-bit number. */
const RM_SIB = 4;
const SIB_NUMBER = 0x25;

/** Opcodes behind 0F that calculate with floating-point numbers; the rest of their rows moves bits. */
function isFloatingPoint(opcode: number): boolean {
  switch (opcode) {
    case 0x2a: // cvtsi2sd
    case 0x2c: // cvttsd2si
    case 0x2d:
    case 0x2e: // ucomisd
    case 0x2f:
    case 0x51: // sqrt
    case 0xc2: // cmp
    case 0xd0: // addsub
    case 0x7c: // hadd
    case 0x7d:
    case 0xe6: // cvt
      return true;
    default:
      return opcode >= 0x58 && opcode <= 0x5f; // add, mul, cvt, sub, min, div, max
  }
}

/**
 * True if the instruction that was decoded last may fault: it stands at `start` in `bytes`, and `rare` is what `decodeFlow` returned. `hasFrame`
 * tells whether rbp is the frame pointer there; it is asked only where it matters.
 */
export function mayFault(
  bytes: Uint8Array,
  start: number,
  rare: Instruction | undefined,
  hasFrame: () => boolean,
): boolean {
  if (common.isNop) return false;
  if (rare !== undefined) return mayRareFault(bytes, start, rare, hasFrame);
  const { modrm, flow } = common;
  if (flow === Flow.leaRelative) return false;
  if (modrm < 0) return mayOpcodeFault(bytes, start);
  const opcode = bytes[modrm - 1];
  if (modrm - 2 >= start && bytes[modrm - 2] === TWO_BYTE) {
    if (isFloatingPoint(opcode)) return true;
  } else if ((opcode & 0xfe) === 0xf6 && (bytes[modrm] & 0x30) === 0x30) return true; // div, idiv
  if (bytes[modrm] >> 6 === 3) return false;
  if (hasFsPrefix(bytes, start)) return !isNumberAddress(bytes, modrm, NEAR_THREAD_POINTER);
  if (common.displacement >= 0) return false;
  if (common.base === STACK_POINTER) return common.baseOffset < -RED_ZONE;
  return common.base !== FRAME_POINTER || !hasFrame();
}

/** Of those without ModRM: strings, and what traps. */
function mayOpcodeFault(bytes: Uint8Array, start: number): boolean {
  let at = start;
  while (isPrefix(bytes[at])) at++;
  const opcode = bytes[at];
  if (opcode === TWO_BYTE) return bytes[at + 1] === UD2;
  return opcode === INT3 || (opcode & 0xfe) === 0xa4 || (opcode & 0xfe) === 0xaa;
}

/** True if the instruction at `start` may take long: strings, system calls. A function's time is told with them, never without. */
export function takesLong(bytes: Uint8Array, start: number): boolean {
  let at = start;
  while (isPrefix(bytes[at])) at++;
  const opcode = bytes[at];
  if (opcode === TWO_BYTE) return bytes[at + 1] === SYSCALL || bytes[at + 1] === SYSENTER;
  return opcode === INT || (opcode & 0xfc) === 0xa4 || (opcode >= 0xaa && opcode <= 0xaf);
}

function hasFsPrefix(bytes: Uint8Array, start: number): boolean {
  for (let at = start; isPrefix(bytes[at]); at++) if (bytes[at] === FS_PREFIX) return true;
  return false;
}

function isNumberAddress(bytes: Uint8Array, modrm: number, most: number): boolean {
  const isNumber = (bytes[modrm] & 0xc7) === RM_SIB && bytes[modrm + 1] === SIB_NUMBER;
  return isNumber && Math.abs(int32At(bytes, modrm + 2)) <= most;
}

function mayRareFault(
  bytes: Uint8Array,
  start: number,
  instruction: Instruction,
  hasFrame: () => boolean,
): boolean {
  const { mnemonic, flowControl, opCount } = instruction;
  if (flowControl === FlowControl.Interrupt || flowControl === FlowControl.Exception) return true;
  if (instruction.isPrivileged) return true;
  switch (mnemonic) {
    case Mnemonic.Div:
    case Mnemonic.Idiv:
    case Mnemonic.Syscall:
    case Mnemonic.Sysenter:
    case Mnemonic.Rdtsc: // PR_SET_TSC
    case Mnemonic.Rdtscp:
      return true;
    case Mnemonic.Lea:
    case Mnemonic.Nop:
    case Mnemonic.Prefetcht0:
    case Mnemonic.Prefetcht1:
    case Mnemonic.Prefetcht2:
    case Mnemonic.Prefetchnta:
    case Mnemonic.Prefetchw:
    case Mnemonic.Prefetch:
      return false;
  }
  if (isRareFloatingPoint(bytes, start)) return true;
  for (let operand = 0; operand < opCount; operand++) {
    switch (instruction.opKind(operand)) {
      case OpKind.Register:
      case OpKind.NearBranch16:
      case OpKind.NearBranch32:
      case OpKind.NearBranch64:
      case OpKind.FarBranch16:
      case OpKind.FarBranch32:
      case OpKind.Immediate8:
      case OpKind.Immediate8_2nd:
      case OpKind.Immediate16:
      case OpKind.Immediate32:
      case OpKind.Immediate64:
      case OpKind.Immediate8to16:
      case OpKind.Immediate8to32:
      case OpKind.Immediate8to64:
      case OpKind.Immediate32to64:
        break;
      case OpKind.Memory:
        if (mayAddressFault(instruction, hasFrame)) return true;
        break;
      default:
        return true; // strings
    }
  }
  return false;
}

function mayAddressFault(instruction: Instruction, hasFrame: () => boolean): boolean {
  const { memoryBase, memoryIndex, memorySegment } = instruction;
  if (memoryIndex !== Register.None) return true;
  const displacement = Number(BigInt.asIntN(64, instruction.memoryDisplacement));
  if (memorySegment === Register.FS)
    return memoryBase !== Register.None || Math.abs(displacement) > NEAR_THREAD_POINTER;
  if (memorySegment === Register.GS) return true;
  if (memoryBase === Register.RIP) return false;
  if (memoryBase === Register.RSP) return displacement < -RED_ZONE;
  return memoryBase !== Register.RBP || !hasFrame();
}

/** What VEX and EVEX encode of maps 0F, 0F38 (fused multiply and add) and 0F3A (round, products). */
function isRareFloatingPoint(bytes: Uint8Array, start: number): boolean {
  let at = start;
  while (isPrefix(bytes[at])) at++;
  const opcode = bytes[at];
  if (opcode === TWO_BYTE) {
    const next = bytes[at + 1];
    if (next === 0x3a) return isRounding(bytes[at + 2]);
    return isFloatingPoint(next);
  }
  if (opcode === 0xc5) return isFloatingPoint(bytes[at + 2]);
  if (opcode !== 0xc4 && opcode !== 0x62) return false;
  const map = bytes[at + 1] & (opcode === 0xc4 ? 0x1f : 7);
  const inMap = bytes[at + (opcode === 0xc4 ? 3 : 4)];
  if (map === 1) return isFloatingPoint(inMap) || (opcode === 0x62 && (inMap & 0xf8) === 0x78);
  if (map === 2) return (inMap >= 0x96 && inMap <= 0xbf) || inMap === 0x13;
  return map !== 3 || isRounding(inMap);
}

/** Of map 0F3A: round, products, and what AVX-512 has of the kind. */
function isRounding(opcode: number): boolean {
  return (opcode >= 0x08 && opcode <= 0x0b) || opcode === 0x1d || (opcode & 0xfe) === 0x40;
}
