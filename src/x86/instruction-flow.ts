import { Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register } from './iced.js';
import { FRAME_POINTER, OTHER_BASE, STACK_POINTER, common, decodeCommon } from './common-instructions.js';
import { Flow } from './flow.js';

const UNKNOWN = 0xff;
/** Filled in as codes are met: asking the decoder again for each instruction would double the time of a sweep. */
const flowByCode = new Uint8Array(Object.keys(Code).length).fill(UNKNOWN);

const LEA_OPCODE = 0x8d;

/** How an instruction, just decoded, directs the flow. */
export function flowOf(instruction: Instruction): Flow {
  const { code } = instruction;
  const known = flowByCode[code];
  if (known !== UNKNOWN) return known as Flow;
  const flow = classify(instruction, code);
  flowByCode[code] = flow;
  return flow;
}

function classify(instruction: Instruction, code: Code): Flow {
  if (code === Code.INVALID) return Flow.invalid;
  if (code === Code.Lea_r64_m || code === Code.Lea_r32_m) return Flow.leaRelative;
  switch (instruction.flowControl) {
    case FlowControl.UnconditionalBranch:
      return Flow.jump;
    case FlowControl.ConditionalBranch:
      return Flow.conditionalJump;
    case FlowControl.XbeginXabortXend:
      return instruction.code === Code.Xbegin_rel32 ? Flow.conditionalJump : Flow.next;
    case FlowControl.IndirectBranch:
      return Flow.indirectJump;
    case FlowControl.IndirectCall:
      return Flow.indirectCall;
    case FlowControl.Call:
      // The decoder counts system calls among calls; they come back like any other instruction.
      return code === Code.Call_rel32_64 ? Flow.call : Flow.next;
    case FlowControl.Return:
    case FlowControl.Exception:
      return Flow.end;
    default:
      return Flow.next;
  }
}

/** Where a direct jump or call that ends at `end` in `bytes` goes, as an index into `bytes`. */
export function branchTarget(bytes: Uint8Array, start: number, end: number): number {
  let at = start;
  while (isPrefix(bytes[at])) at++;
  const opcode = bytes[at];
  // 70-7F: jcc rel8. E0-E3: loop, jrcxz. EB: jmp rel8. All other direct branches end in a rel32.
  const isShort = (opcode & 0xf0) === 0x70 || (opcode & 0xfc) === 0xe0 || opcode === 0xeb;
  return end + (isShort ? (bytes[end - 1] << 24) >> 24 : int32At(bytes, end - 4));
}

/** Legacy prefixes and REX. */
export function isPrefix(byte: number): boolean {
  switch (byte) {
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3:
      return true;
    default:
      return (byte & 0xf0) === 0x40;
  }
}

/**
 * The address that `lea r, [rip+disp32]` loads, as an index into `bytes`; undefined for every other form of `lea`. Its
 * ModRM (mod 0, rm 5) and displacement are the last 5 bytes.
 */
export function leaTarget(bytes: Uint8Array, end: number): number | undefined {
  return isRelativeLea(bytes, end) ? end + int32At(bytes, end - 4) : undefined;
}

function isRelativeLea(bytes: Uint8Array, end: number): boolean {
  return bytes[end - 6] === LEA_OPCODE && (bytes[end - 5] & 0xc7) === 0x05;
}

export function int32At(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
}

/** The one instruction that all sweeps decode into: making one for each costs more than decoding. */
const scratch = new Instruction();

/** A decoder over a piece of a file. To make one for each function, and free it, costs more than to decode the function. */
interface DecodedPiece {
  readonly buffer: ArrayBufferLike;
  readonly from: number;
  readonly to: number;
  readonly decoder: Decoder;
}

/** A file is read in blocks of this size (`BLOCK_BYTES` in src/elf/sparse-bytes.ts): no piece goes on into one that is not read yet. */
const PIECE_BYTES = 256 * 1024;
/** Functions and their cold fragments, far behind, are swept in turn: a piece for each, and some to spare. */
const MOST_PIECES = 4;

/** Newest first; undefined outside of `withSharedDecoders`. */
let pieces: DecodedPiece[] | undefined;

/** While `action` runs, whose code must not change meanwhile, decoders serve more than one function. */
export function withSharedDecoders<T>(action: () => T): T {
  if (pieces !== undefined) return action();
  pieces = [];
  try {
    return action();
  } finally {
    for (const { decoder } of pieces) decoder.free();
    pieces = undefined;
  }
}

function pieceWith(shared: DecodedPiece[], bytes: Uint8Array, start: number, limit: number): DecodedPiece {
  const { buffer } = bytes;
  const from = bytes.byteOffset + start;
  const end = bytes.byteOffset + limit;
  for (const piece of shared)
    if (piece.buffer === buffer && from >= piece.from && end <= piece.to) return piece;
  const to = Math.min(buffer.byteLength, Math.ceil(end / PIECE_BYTES) * PIECE_BYTES);
  const decoder = new Decoder(64, new Uint8Array(buffer, from, to - from), DecoderOptions.None);
  const piece = { buffer, from, to, decoder };
  shared.unshift(piece);
  if (shared.length > MOST_PIECES) shared.pop()?.decoder.free();
  return piece;
}

/**
 * Decodes the instruction at `start` in `bytes` into `common`, by its tables if they know it, else by iced-x86, which then
 * returns it: valid until the next call. What does not end by `limit` is invalid, as if nothing stood behind.
 */
export function decodeFlow(bytes: Uint8Array, start: number, limit: number): Instruction | undefined {
  if (decodeCommon(bytes, start, limit)) return undefined;
  const instruction = decodeRare(bytes, start, limit);
  common.end = start + instruction.length;
  common.flow = flowOf(instruction);
  common.displacement =
    common.flow === Flow.leaRelative && isRelativeLea(bytes, common.end) ? common.end - 4 : -1;
  common.isNop = isNop(instruction);
  common.endsFrame = instruction.mnemonic === Mnemonic.Pop || instruction.mnemonic === Mnemonic.Leave;
  common.modrm = -1;
  common.base = baseOf(instruction);
  if (common.base !== OTHER_BASE)
    common.baseOffset = Number(BigInt.asIntN(64, instruction.memoryDisplacement));
  return instruction;
}

function baseOf(instruction: Instruction): number {
  const base = instruction.memoryBase;
  if ((base !== Register.RSP && base !== Register.RBP) || instruction.memoryIndex !== Register.None)
    return OTHER_BASE;
  return base === Register.RSP ? STACK_POINTER : FRAME_POINTER;
}

/** One instruction as iced-x86 has it, as if it lay at address 0. */
export function decodeRare(bytes: Uint8Array, start: number, limit: number): Instruction {
  if (pieces !== undefined) {
    const { decoder, from } = pieceWith(pieces, bytes, start, limit);
    decoder.position = bytes.byteOffset + start - from;
    decoder.ip = 0n;
    decoder.decodeOut(scratch);
    const isWhole = start + scratch.length <= limit;
    if (isWhole && (scratch.code !== Code.INVALID || limit - start >= LONGEST_INSTRUCTION)) return scratch;
  }
  // It is copied: as much as an instruction may have, not all that is there.
  const end = Math.min(limit, start + LONGEST_INSTRUCTION);
  const decoder = new Decoder(64, bytes.subarray(start, end), DecoderOptions.None);
  decoder.ip = 0n;
  decoder.decodeOut(scratch);
  decoder.free();
  return scratch;
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

/**
 * Decodes `bytes` as if they lay at address 0 and calls `visit` with each instruction and where it starts and ends,
 * until that returns false. The instruction is only valid during the call.
 */
export function forEachInstruction(
  bytes: Uint8Array,
  visit: (instruction: Instruction, start: number, end: number, decoder: Decoder) => boolean,
): void {
  if (pieces === undefined || bytes.length === 0) {
    decodeAlone(bytes, 0, visit);
    return;
  }
  const { decoder, from } = pieceWith(pieces, bytes, 0, bytes.length);
  decoder.position = bytes.byteOffset - from;
  decoder.ip = 0n;
  for (let start = 0; start < bytes.length;) {
    decoder.decodeOut(scratch);
    const end = start + scratch.length;
    if (end > bytes.length || (scratch.code === Code.INVALID && bytes.length - start < LONGEST_INSTRUCTION)) {
      // The last one is cut off: as if nothing stood behind the bytes.
      decodeAlone(bytes, start, visit);
      return;
    }
    if (!visit(scratch, start, end, decoder)) return;
    start = end;
  }
}

/** Intel SDM volume 2A, 2.3.11. */
const LONGEST_INSTRUCTION = 15;

function decodeAlone(
  bytes: Uint8Array,
  first: number,
  visit: (instruction: Instruction, start: number, end: number, decoder: Decoder) => boolean,
): void {
  const decoder = new Decoder(64, bytes.subarray(first), DecoderOptions.None);
  decoder.ip = BigInt(first);
  try {
    for (let start = first; start < bytes.length;) {
      decoder.decodeOut(scratch);
      // An invalid instruction has a length of at least 1 as well.
      const end = start + scratch.length;
      if (!visit(scratch, start, end, decoder)) return;
      start = end;
    }
  } finally {
    decoder.free();
  }
}
