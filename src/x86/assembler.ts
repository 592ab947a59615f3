// Assembles listings that a person can read beside the machine code they become. The encodings are iced-x86's; this file
// only reads the text: one instruction a line, Intel syntax, `label:`, `; comment`.
//
//   operands   registers; numbers (12, -8, 0x7f); labels; memory `qword [rbx + rcx*8 + 16]`, `dword [rip_label]`
//              `fs:[0]`: an absolute address in the thread's own segment
//              `[rel label]`, `[rel 0x4000]`: counted from the instruction, so that the code runs wherever it lies
//   sizes      byte, word, dword, qword in front of a memory operand; without one the other operand decides, else qword
//   prefix     `lock`
//   movq       `mov` of a sign-extended number of 32 bits to a register of 64, for who looks at the bytes; `mov` has all 64
//
// Branches to labels take the shortest form that reaches; branches to numbers are to absolute addresses.
import {
  BlockEncoder,
  BlockEncoderOptions,
  Code,
  Decoder,
  DecoderOptions,
  Formatter,
  FormatterSyntax,
  Instruction,
  MemoryOperand,
  Register,
} from './iced.js';

/** Result of `assemble`. */
export interface Assembly {
  readonly bytes: Uint8Array;
  /** Offset in `bytes` of each label. */
  readonly labels: ReadonlyMap<string, number>;
}

type Operand =
  | { readonly kind: 'register'; readonly register: Register; readonly bits: number }
  | { readonly kind: 'immediate'; readonly value: bigint }
  | { readonly kind: 'label'; readonly name: string }
  | {
      readonly kind: 'memory';
      readonly memory: (addressOf: AddressOf) => MemoryOperand;
      readonly bits: number | undefined;
    };

/** Where a label stands. */
type AddressOf = (label: string) => bigint;

/** A line that was understood. */
interface ParsedLine {
  readonly mnemonic: string;
  readonly operands: readonly Operand[];
  readonly lock: boolean;
  /** Found when it is first needed. */
  code: Code | undefined;
}

/** Every region of a session has the same recorder but for a few addresses: its lines are read once. */
const parsedLines = new Map<string, ParsedLine>();

const codes = Code as unknown as Readonly<Record<string, Code | undefined>>;
const registers = Register as unknown as Readonly<Record<string, Register | undefined>>;

const SIZES: Readonly<Partial<Record<string, number>>> = { byte: 8, word: 16, dword: 32, qword: 64 };

const REGISTER_BITS = new Map<string, number>();
for (const name of ['AX', 'CX', 'DX', 'BX', 'SP', 'BP', 'SI', 'DI']) {
  REGISTER_BITS.set(`R${name}`, 64).set(`E${name}`, 32).set(name, 16);
}
for (const name of ['AL', 'CL', 'DL', 'BL', 'AH', 'CH', 'DH', 'BH', 'SPL', 'BPL', 'SIL', 'DIL'])
  REGISTER_BITS.set(name, 8);
for (let n = 8; n <= 15; n++) {
  REGISTER_BITS.set(`R${n}`, 64).set(`R${n}D`, 32).set(`R${n}W`, 16).set(`R${n}L`, 8);
}

/** Mnemonics whose iced name is not simply the capitalised word. */
const RENAMED: Readonly<Record<string, string>> = {
  ret: 'Retnq',
  pushfq: 'Pushfq',
  popfq: 'Popfq',
  jz: 'Je',
  jnz: 'Jne',
};

/** Instruction pointers in the block stand for positions until it is encoded; far below any real address. */
const FIRST_VIRTUAL_IP = 0x10n;

/** A mistake in a listing of ours: never a user's fault. */
function listingError(line: string, why: string): Error {
  return new Error(`in the listing, "${line.trim()}": ${why}`);
}

function parseNumber(text: string): bigint | undefined {
  if (!/^[+-]?(0x[0-9a-f]+|\d+)$/i.test(text)) return undefined;
  const negative = text.startsWith('-');
  const magnitude = BigInt(text.replace(/^[+-]/, ''));
  return negative ? -magnitude : magnitude;
}

function parseMemory(inside: string, bits: number | undefined, segment: Register, line: string): Operand {
  const relative = /^rel\s+([\w.]+)$/.exec(inside.trim());
  if (relative) {
    const number = parseNumber(relative[1]);
    const memory = (addressOf: AddressOf): MemoryOperand =>
      new MemoryOperand(Register.RIP, Register.None, 1, number ?? addressOf(relative[1]), 8, false, segment);
    return { kind: 'memory', memory, bits };
  }
  let base = Register.None;
  let index = Register.None;
  let scale = 1;
  let displacement = 0n;
  for (const raw of inside.replaceAll('-', '+-').split('+')) {
    const term = raw.trim();
    if (term === '') continue;
    const scaled = /^(\w+)\s*\*\s*([1248])$/.exec(term);
    const name = (scaled ? scaled[1] : term).toUpperCase();
    const number = parseNumber(term.replaceAll(' ', ''));
    if (scaled) {
      index = registers[name] ?? Register.None;
      scale = Number(scaled[2]);
    } else if (REGISTER_BITS.has(name)) {
      if (base === Register.None) base = registers[name] ?? Register.None;
      else index = registers[name] ?? Register.None;
    } else if (number !== undefined) {
      displacement += number;
    } else {
      throw listingError(line, `"${term}" is not a register or number`);
    }
  }
  // Without registers iced wants to know the size of the address, which it encodes in 4 bytes all the same.
  const isAbsolute = base === Register.None && index === Register.None;
  const displacementSize = isAbsolute ? 8 : displacement === 0n ? 0 : 1;
  // The encoder takes the operand with it: each instruction needs one of its own.
  const memory = (): MemoryOperand =>
    new MemoryOperand(base, index, scale, displacement, displacementSize, false, segment);
  return { kind: 'memory', memory, bits };
}

function parseOperand(text: string, line: string): Operand {
  const memory = /^(?:(byte|word|dword|qword)\s+)?(fs:)?\[(.*)\]$/.exec(text);
  if (memory) {
    const segment = (memory[2] as string | undefined) === undefined ? Register.None : Register.FS;
    return parseMemory(memory[3], SIZES[memory[1]], segment, line);
  }
  const bits = REGISTER_BITS.get(text.toUpperCase());
  if (bits !== undefined) {
    return { kind: 'register', register: registers[text.toUpperCase()] ?? Register.None, bits };
  }
  const value = parseNumber(text);
  if (value !== undefined) return { kind: 'immediate', value };
  if (/^[\w.]+$/.test(text)) return { kind: 'label', name: text };
  throw listingError(line, `"${text}" is no operand`);
}

/** iced's names for what an operand can be, best (shortest) first. */
function operandNames(operand: Operand, bits: number): string[] {
  switch (operand.kind) {
    case 'register':
      return [`r${operand.bits}`, `rm${operand.bits}`];
    case 'memory':
      return [`rm${operand.bits ?? bits}`, 'm', `m${operand.bits ?? bits}`];
    case 'immediate':
    case 'label': {
      const value = operand.kind === 'immediate' ? operand.value : 0n;
      const names: string[] = [];
      if (value >= -128n && value <= 127n) names.push('imm8');
      if (value >= -0x8000_0000n && value <= 0x7fff_ffffn) names.push('imm32');
      if (bits === 32 && value <= 0xffff_ffffn) names.push('imm32');
      names.push('imm64', 'imm16');
      return names;
    }
  }
}

function findCode(mnemonic: string, operands: readonly Operand[], line: string): Code {
  const name = RENAMED[mnemonic] ?? mnemonic.charAt(0).toUpperCase() + mnemonic.slice(1);
  const bits =
    operands
      .map((o) => (o.kind === 'register' ? o.bits : o.kind === 'memory' ? o.bits : undefined))
      .find((b) => b !== undefined) ?? 64;
  let forms = [name];
  for (const operand of operands) {
    forms = forms.flatMap((form) => operandNames(operand, bits).map((o) => `${form}_${o}`));
  }
  if (operands.length === 1 && operands[0].kind === 'immediate' && mnemonic === 'push')
    forms.unshift('Pushq_imm32');
  if (mnemonic === 'movq') forms = ['Mov_rm64_imm32'];
  for (const form of forms) {
    const code = codes[form];
    if (code !== undefined) return code;
  }
  throw listingError(line, `no such instruction (tried ${forms.slice(0, 6).join(', ')})`);
}

function create(code: Code, operands: readonly Operand[], line: string, addressOf: AddressOf): Instruction {
  const [a, b, c] = operands as readonly (Operand | undefined)[];
  if (a === undefined) return Instruction.create(code);
  if (b === undefined) {
    if (a.kind === 'register') return Instruction.createReg(code, a.register);
    if (a.kind === 'memory') return Instruction.createMem(code, a.memory(addressOf));
    if (a.kind === 'immediate') return Instruction.createI32(code, Number(a.value));
  } else if (c === undefined) {
    if (a.kind === 'register' && b.kind === 'register')
      return Instruction.createRegReg(code, a.register, b.register);
    if (a.kind === 'register' && b.kind === 'memory')
      return Instruction.createRegMem(code, a.register, b.memory(addressOf));
    if (a.kind === 'memory' && b.kind === 'register')
      return Instruction.createMemReg(code, a.memory(addressOf), b.register);
    if (a.kind === 'register' && b.kind === 'immediate') {
      if (code === Code.Mov_r64_imm64)
        return Instruction.createRegU64(code, a.register, BigInt.asUintN(64, b.value));
      return Instruction.createRegI32(code, a.register, Number(BigInt.asIntN(32, b.value)));
    }
    if (a.kind === 'memory' && b.kind === 'immediate') {
      return Instruction.createMemI32(code, a.memory(addressOf), Number(BigInt.asIntN(32, b.value)));
    }
  } else if (a.kind === 'register' && b.kind === 'register' && c.kind === 'immediate') {
    return Instruction.createRegRegI32(code, a.register, b.register, Number(BigInt.asIntN(32, c.value)));
  }
  throw listingError(line, 'these operands do not go together');
}

const BRANCH = /^(j[a-z]+|call)$/;

function branchCode(mnemonic: string, line: string): Code {
  if (mnemonic === 'jrcxz') return Code.Jrcxz_rel8_64;
  const name = RENAMED[mnemonic] ?? mnemonic.charAt(0).toUpperCase() + mnemonic.slice(1);
  const code = codes[`${name}_rel32_64`];
  if (code === undefined) throw listingError(line, `no branch "${mnemonic}"`);
  return code;
}

function parseLine(text: string, raw: string): ParsedLine {
  const known = parsedLines.get(text);
  if (known !== undefined) return known;
  const lock = text.startsWith('lock ');
  const line = lock ? text.slice(5).trim() : text;
  const space = line.search(/\s/);
  const mnemonic = (space < 0 ? line : line.slice(0, space)).toLowerCase();
  const rest = space < 0 ? '' : line.slice(space).trim();
  const operands = rest === '' ? [] : rest.split(',').map((o) => parseOperand(o.trim(), raw));
  const parsed: ParsedLine = { mnemonic, operands, lock, code: undefined };
  parsedLines.set(text, parsed);
  return parsed;
}

/**
 * Assembles `listing` to run at `origin`.
 *
 * @throws Error where the listing has a line that is not an instruction, or a branch cannot reach its target.
 */
export function assemble(listing: string, origin: bigint): Assembly {
  const encoder = new BlockEncoder(64, BlockEncoderOptions.None);
  const labelPositions = new Map<string, number>();
  const parsed: { line: string; instruction: ParsedLine }[] = [];
  for (const raw of listing.split('\n')) {
    let line = raw.replace(/;.*$/, '').trim();
    const label = /^([\w.]+):/.exec(line);
    if (label) {
      if (labelPositions.has(label[1])) throw listingError(raw, 'this label stands twice');
      labelPositions.set(label[1], parsed.length);
      line = line.slice(label[0].length).trim();
    }
    if (line === '') continue;
    parsed.push({ line: raw, instruction: parseLine(line, raw) });
  }
  // Every label, one at the very end included, must stand before an instruction.
  parsed.push({ line: 'nop', instruction: parseLine('nop', 'nop') });
  const virtualIp = (position: number): bigint => FIRST_VIRTUAL_IP + BigInt(position) * 16n;
  parsed.forEach(({ line, instruction: words }, position) => {
    const addressOf = (label: string): bigint => {
      const at = labelPositions.get(label);
      if (at === undefined) throw listingError(line, `no label "${label}"`);
      return virtualIp(at);
    };
    const { mnemonic, operands, lock } = words;
    let instruction: Instruction;
    const target = operands[0] as Operand | undefined;
    if (mnemonic === 'nop') {
      instruction = Instruction.create(Code.Nopd);
    } else if (
      BRANCH.test(mnemonic) &&
      target !== undefined &&
      (target.kind === 'label' || target.kind === 'immediate')
    ) {
      const address = target.kind === 'immediate' ? target.value : addressOf(target.name);
      instruction = Instruction.createBranch(branchCode(mnemonic, line), address);
    } else {
      words.code ??= findCode(mnemonic, operands, line);
      instruction = create(words.code, operands, line, addressOf);
    }
    instruction.ip = virtualIp(position);
    if (lock) instruction.hasLockPrefix = true;
    encoder.add(instruction);
    instruction.free();
  });
  const bytes = encoder.encode(origin);
  encoder.free();
  const offsets = instructionOffsets(bytes);
  if (offsets.length !== parsed.length)
    throw new Error('the encoder replaced an instruction: a branch is out of reach');
  const labels = new Map<string, number>();
  for (const [name, position] of labelPositions) labels.set(name, offsets[position]);
  // The closing nop only carried labels.
  return { bytes: bytes.subarray(0, offsets[parsed.length - 1]), labels };
}

function instructionOffsets(bytes: Uint8Array): number[] {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  const instruction = new Instruction();
  const offsets: number[] = [];
  while (decoder.canDecode) {
    offsets.push(decoder.position);
    decoder.decodeOut(instruction);
  }
  instruction.free();
  decoder.free();
  return offsets;
}

/** Disassembles for tests and documents: one `offset  instruction` a line, Intel syntax. */
export function disassemble(bytes: Uint8Array, origin: bigint): string {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = origin;
  const formatter = new Formatter(FormatterSyntax.Intel);
  const lines: string[] = [];
  while (decoder.canDecode) {
    const instruction = decoder.decode();
    const offset = Number(instruction.ip - origin);
    lines.push(`${offset.toString(16).padStart(4, '0')}  ${formatter.format(instruction)}`);
    instruction.free();
  }
  decoder.free();
  formatter.free();
  return lines.join('\n');
}
