import { Code, Decoder, DecoderOptions, FlowControl, Instruction } from 'iced-x86';

/** What the instruction behind another one needs: how each code of the decoder directs the flow. */
export const Flow = {
  next: 0,
  jump: 1,
  conditionalJump: 2,
  call: 3,
  indirectJump: 4,
  indirectCall: 5,
  /** `ret`, `ud2`: nothing behind it is reached from it. */
  end: 6,
  invalid: 7,
  /** Address of something into a register, perhaps of code. */
  leaRelative: 8,
} as const;
export type Flow = (typeof Flow)[keyof typeof Flow];

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
  const isRipRelative = bytes[end - 6] === LEA_OPCODE && (bytes[end - 5] & 0xc7) === 0x05;
  return isRipRelative ? end + int32At(bytes, end - 4) : undefined;
}

export function int32At(bytes: Uint8Array, at: number): number {
  return bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
}

/** The one instruction that all sweeps decode into: making one for each costs more than decoding. */
const scratch = new Instruction();

/**
 * Decodes `bytes` as if they lay at address 0 and calls `visit` with each instruction and where it starts and ends,
 * until that returns false. The instruction is only valid during the call.
 */
export function forEachInstruction(
  bytes: Uint8Array,
  visit: (instruction: Instruction, start: number, end: number, decoder: Decoder) => boolean,
): void {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  try {
    for (let start = 0; start < bytes.length;) {
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
