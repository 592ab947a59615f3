import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { Decoder, Instruction } from 'iced-x86';
import { CannotError } from '../errors/index.js';
import { parseElf } from '../elf/index.js';
import { functionsOf } from '../symbols/index.js';
import { describeDisplaced } from './displaced.js';
import { analyseFunctions, relocateSite, type RelocatedCode, type SiteCandidate } from './index.js';

const LOAD_BIAS = 0x5555_5555_4000n;
const SITE = 0x1_0000n;

/** A site over instructions written by hand, in a function of their own. */
function siteOver(...code: number[]): SiteCandidate {
  const bytes = Uint8Array.from([...code, ...Array<number>(32).fill(0x90)]);
  const displaced = describeDisplaced(bytes, 0, Number(SITE));
  if (typeof displaced === 'string') assert.fail(displaced);
  const last = displaced[displaced.length - 1];
  const displacedLength = last.offset + last.length;
  return {
    function: {
      name: 'f',
      names: ['f'],
      address: SITE,
      addressNumber: Number(SITE),
      size: bytes.length,
      kind: 'function',
    },
    kind: 'relocated',
    address: SITE,
    addressNumber: Number(SITE),
    displacedLength,
    originalAt: 0,
    displacedCount: displaced.length,
    original: bytes.slice(0, displacedLength),
    displaced,
    isWhole: false,
    usesOwnReturn: false,
    depth: 0,
    profilerCall: undefined,
  };
}

/** Instructions as text, at most `count`; what is addressed relative to rip is shown as an address. */
function disassemble(bytes: Uint8Array, address: bigint, count: number): string[] {
  const decoder = new Decoder(64, bytes, 0);
  decoder.ip = address;
  const lines: string[] = [];
  const instruction = new Instruction();
  while (lines.length < count && decoder.canDecode) {
    decoder.decodeOut(instruction);
    lines.push(instruction.toString().replace(/ (?:short|near ptr)|^bnd /g, ''));
  }
  instruction.free();
  decoder.free();
  return lines;
}

function hexAddress(address: bigint): string {
  return `${address.toString(16).toUpperCase().padStart(16, '0')}h`;
}

/** The constant that `push [rip+disp32]` at `offset` pushes. */
function pushedAt({ bytes }: RelocatedCode, offset: number): bigint {
  assert.deepEqual([...bytes.subarray(offset, offset + 2)], [0xff, 0x35]);
  const view = new DataView(bytes.buffer);
  return view.getBigUint64(offset + 6 + view.getInt32(offset + 2, true), true);
}

function checkEquivalent(site: SiteCandidate, stub: bigint, bias: bigint): void {
  const relocated = relocateSite(site, stub, bias);
  const original = disassemble(site.original, site.address + bias, site.displaced.length);
  const back = site.address + bias + BigInt(site.displacedLength);
  assert.equal(relocated.boundaries.length, site.displaced.length);
  for (const [index, displaced] of site.displaced.entries()) {
    const { newOffset, originalOffset } = relocated.boundaries[index];
    assert.equal(originalOffset, displaced.offset);
    const copy = (count: number, skip = 0): string[] =>
      disassemble(relocated.bytes.subarray(newOffset + skip), stub + BigInt(newOffset + skip), count);
    const target = hexAddress((displaced.target ?? 0n) + bias);
    switch (displaced.form) {
      case 'nop':
        break;
      case 'verbatim':
      case 'rip-relative':
        assert.equal(copy(1)[0], original[index]);
        break;
      case 'branch':
        if (/^(?:loop|j[er]?cxz)/.test(original[index])) assert.equal(copy(3)[2], `jmp ${target}`);
        else assert.equal(copy(1)[0], original[index]);
        break;
      case 'call':
        assert.equal(pushedAt(relocated, newOffset), back);
        assert.equal(copy(1, 6)[0], `jmp ${target}`);
        break;
      case 'indirect-call':
        assert.equal(pushedAt(relocated, newOffset), back);
        assert.equal(
          copy(1, 6)[0],
          original[index].replace(/^(?:notrack )?call/, (text) => text.replace('call', 'jmp')),
        );
    }
  }
  const last = site.displaced[site.displaced.length - 1];
  if (last.endsFlow || last.form === 'call' || last.form === 'indirect-call') return;
  const view = new DataView(relocated.bytes.buffer);
  const end = relocated.bytes.length;
  assert.equal(relocated.bytes[end - 5], 0xe9);
  assert.equal(stub + BigInt(end) + BigInt(view.getInt32(end - 4, true)), back);
}

const HANDWRITTEN: [what: string, code: number[]][] = [
  ['plain instructions', [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10]],
  ['a load relative to rip', [0x48, 0x8b, 0x05, 0x10, 0x20, 0x00, 0x00]],
  ['a compare relative to rip with an immediate behind', [0x80, 0x3d, 0x10, 0x20, 0x00, 0x00, 0x07]],
  ['a short conditional jump', [0x85, 0xff, 0x74, 0x30, 0x48, 0x89, 0xf8]],
  ['a near conditional jump', [0x85, 0xff, 0x0f, 0x84, 0x30, 0x01, 0x00, 0x00]],
  ['a short jump', [0x90, 0x90, 0x90, 0xeb, 0x40]],
  ['a near jump', [0xe9, 0x40, 0x01, 0x00, 0x00]],
  ['a jump behind a bnd prefix', [0xf2, 0xe9, 0x40, 0x01, 0x00, 0x00]],
  ['loop', [0xe2, 0x40, 0x48, 0x89, 0xf8]],
  ['jrcxz', [0xe3, 0x40, 0x48, 0x89, 0xf8]],
  ['jecxz', [0x67, 0xe3, 0x40, 0x48, 0x89, 0xf8]],
  ['a direct call', [0xe8, 0x40, 0x01, 0x00, 0x00]],
  ['a direct call behind room for a frame', [0x48, 0x83, 0xec, 0x08, 0xe8, 0x40, 0x01, 0x00, 0x00]],
  ['a call through a slot', [0xff, 0x15, 0x40, 0x01, 0x00, 0x00]],
  ['a call through a register', [0x48, 0x89, 0xf8, 0xff, 0xd0]],
  ['a call through an extended register', [0x49, 0x89, 0xf8, 0x41, 0xff, 0xd0]],
  ['a call through memory', [0x90, 0x90, 0xff, 0x50, 0x18]],
  ['a return', [0xb8, 0x01, 0x00, 0x00, 0x00]],
  ['a transaction', [0xc7, 0xf8, 0x40, 0x01, 0x00, 0x00]],
  ['nops', [0x66, 0x90, 0x0f, 0x1f, 0x44, 0x00, 0x00]],
];

for (const [what, code] of HANDWRITTEN) {
  test(`${what}: does elsewhere what it does in place`, () => {
    const site = siteOver(...code);
    fc.assert(
      fc.property(fc.integer({ min: -(2 ** 30), max: 2 ** 30 }), (distance) => {
        checkEquivalent(site, SITE + LOAD_BIAS + BigInt(distance), LOAD_BIAS);
      }),
      { numRuns: 50 },
    );
  });
}

test('a relocated entry reads as its listing says', () => {
  const site = siteOver(0x85, 0xff, 0x74, 0x30, 0xe2, 0x10);
  const { bytes, boundaries } = relocateSite(site, 0x2_0000n, 0n);
  assert.deepEqual(disassemble(bytes, 0x2_0000n, 99), [
    'test edi,edi',
    'je 0000000000010034h',
    'loop 000000000002000Ch',
    'jmp 0000000000020011h',
    'jmp 0000000000010016h',
    'jmp 0000000000010006h',
  ]);
  assert.deepEqual(boundaries, [
    { originalOffset: 0, newOffset: 0 },
    { originalOffset: 2, newOffset: 2 },
    { originalOffset: 4, newOffset: 8 },
  ]);
});

test('a call is made by pushing where it returns to', () => {
  const { bytes } = relocateSite(siteOver(0xe8, 0x40, 0x01, 0x00, 0x00), 0x2_0000n, 0n);
  assert.deepEqual(disassemble(bytes, 0x2_0000n, 2), ['push qword ptr [2000Bh]', 'jmp 0000000000010145h']);
  assert.equal(new DataView(bytes.buffer).getBigUint64(11, true), SITE + 5n);
});

test('a stub out of reach is an error that says so', () => {
  assert.throws(
    () => relocateSite(siteOver(0x48, 0x8b, 0x05, 0, 0, 0, 0), SITE + (1n << 32n), 0n),
    (error) => error instanceof CannotError && error.code === 'out-of-reach',
  );
});

test('the entries of a large program do elsewhere what they do in place', () => {
  const elf = parseElf(new Uint8Array(readFileSync(process.execPath)), 'node');
  const functions = functionsOf(elf);
  const step = Math.ceil(functions.length / 4000);
  const asked = functions.filter((candidate, index) => candidate.kind === 'function' && index % step === 0);
  const { candidates } = analyseFunctions(elf, asked, functions);
  assert.ok(candidates.length > asked.length * 0.9);
  for (const [index, site] of candidates.entries()) {
    // Below the program and above it in turn, at odd addresses.
    const distance = index % 2 === 0 ? 0x1000_0001n : -0x1000_0003n;
    checkEquivalent(site, site.address + LOAD_BIAS + distance, LOAD_BIAS);
  }
});
