import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FRAME_POINTER, OTHER_BASE, STACK_POINTER, common, decodeCommon } from './common-instructions.js';
import { Code, Decoder, DecoderOptions, Instruction, Mnemonic, Register } from './iced.js';
import { flowOf, isNop } from './instruction-flow.js';

const LONGEST = 15;
const PREFIXES = [[], [0x66], [0xf2], [0xf3], [0x64], [0x64, 0x66], [0x66, 0xf3], [0xf2, 0x66], [0x66, 0x66]];
const REX = [[], [0x40], [0x41], [0x44], [0x48], [0x4f]];
/** Bases rsp and (without a displacement of 8 bits, none) rbp; an index or none. */
const SIB = [0x24, 0x25, 0x8d];

const code = new Uint8Array(LONGEST + 1);
const instruction = new Instruction();

/** Decodes what is in `code` with both, and compares them if the fast one knew it. */
function compare(): boolean {
  if (!decodeCommon(code, 0, LONGEST)) return false;
  // A decoder has a copy of the bytes that it was made with.
  const own = new Decoder(64, code, DecoderOptions.None);
  own.decodeOut(instruction);
  const what = Buffer.from(code.subarray(0, common.end)).toString('hex');
  assert.notEqual(instruction.code, Code.INVALID, what);
  assert.equal(common.end, instruction.length, what);
  assert.equal(common.flow, flowOf(instruction), what);
  assert.equal(common.isNop, isNop(instruction), what);
  assert.equal(common.endsFrame, [Mnemonic.Pop, Mnemonic.Leave].includes(instruction.mnemonic), what);
  const isRelative = instruction.isIpRelMemoryOperand && instruction.memoryBase === Register.RIP;
  assert.equal(common.displacement >= 0, isRelative, what);
  if (isRelative) {
    const offsets = own.getConstantOffsets(instruction);
    assert.equal(common.displacement, offsets.displacementOffset, what);
    assert.equal(offsets.displacementSize, 4, what);
    offsets.free();
  }
  const isAlone = instruction.memoryIndex === Register.None;
  const { memoryBase } = instruction;
  const bases = new Map([
    [Register.RSP, STACK_POINTER],
    [Register.RBP, FRAME_POINTER],
  ]);
  const base = isAlone ? (bases.get(memoryBase) ?? OTHER_BASE) : OTHER_BASE;
  assert.equal(common.base, base, what);
  if (base !== OTHER_BASE)
    assert.equal(common.baseOffset, Number(BigInt.asIntN(64, instruction.memoryDisplacement)), what);
  own.free();
  return true;
}

test('every instruction that the tables know is what iced-x86 says, whatever its prefixes and operands', () => {
  let known = 0;
  const tail = Uint8Array.from({ length: LONGEST + 1 }, (_, i) => 0x81 + i);
  for (const prefixes of PREFIXES) {
    for (const rex of REX) {
      for (const escape of [[], [0x0f]]) {
        for (let opcode = 0; opcode < 256; opcode++) {
          const head = [...prefixes, ...rex, ...escape, opcode];
          code.set(tail);
          code.set(head);
          // Opcodes that are not known at all are not known with any operand.
          for (let modrm = 0; modrm < 256; modrm++) {
            code[head.length] = modrm;
            const hasSib = modrm >> 6 !== 3 && (modrm & 7) === 4;
            for (const sib of hasSib ? SIB : [0x91]) {
              code[head.length + 1] = sib;
              if (compare()) known++;
            }
          }
        }
      }
    }
  }
  assert.ok(known > 100_000);
});

test('whatever the bytes are, what the tables know is what iced-x86 says', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: LONGEST, maxLength: LONGEST }), (bytes) => {
      code.set(bytes);
      compare();
    }),
    { numRuns: 20_000 },
  );
});

test('an instruction that does not end by the limit is not known', () => {
  const mov = Uint8Array.of(0x48, 0xc7, 0x45, 0xf8, 1, 2, 3, 4);
  assert.ok(decodeCommon(mov, 0, mov.length));
  for (let limit = 0; limit < mov.length; limit++) {
    assert.ok(!decodeCommon(mov, 0, limit));
    assert.ok(!decodeCommon(mov.subarray(0, limit), 0, limit));
  }
});
