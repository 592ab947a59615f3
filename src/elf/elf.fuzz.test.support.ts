import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { CannotError } from '../errors/index.js';
import { compile } from './gcc.test.support.js';
import { parseElf, type ByteSource } from './index.js';

const SOURCE = `
#include <stdio.h>
int *table[]; int a, b;
int twice(int x) { return x * 2; }
static __attribute__((noinline, used)) int hidden(int x) { return x + twice(x) + *table[x & 1]; }
int *table[] = {&a, &b};
int main(int argc, char **argv) { printf("%d\\n", hidden(argc)); return 0; }
`;

/** Whole files of every kind that is read: tables of both hashes, packed relocations, compilers' sections, no sections. */
function wholeFiles(): readonly Uint8Array[] {
  const packed = compile(SOURCE, '-O1', '-fpatchable-function-entry=5', '-Wl,-z,pack-relative-relocs');
  const library = compile(SOURCE, '-shared', '-fPIC', '-Wl,--hash-style=sysv');
  const fixed = compile(SOURCE, '-no-pie', '-O2', '-pg', '-mfentry', '-mrecord-mcount', '-fno-pic');
  const stripped = [packed, library].map((bytes) => {
    const copy = bytes.slice();
    // e_shoff, e_shnum and e_shstrndx, as `sstrip` leaves them.
    copy.fill(0, 40, 48);
    copy.fill(0, 60, 64);
    return copy;
  });
  return [packed, library, fixed, new Uint8Array(readFileSync('/bin/true')), ...stripped];
}

/** Offsets that steer the parser: headers of the file, of segments and sections, and where each section begins. */
function steering(bytes: Uint8Array): number[] {
  const { sections } = parseElf(bytes, 'whole');
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const headers = Number(view.getBigUint64(40, true));
  const range = (from: number, length: number): number[] => Array.from({ length }, (_, i) => from + i);
  const found = [
    range(0, 64 + 14 * 56),
    ...sections.map((section) => (section.hasBytes ? range(section.offset, 64) : [])),
    headers === 0 ? [] : range(headers, sections.length * 64),
  ];
  return found.flat().filter((offset) => offset < bytes.length);
}

/** Values that programs get wrong: nothing, one, all ones, the largest of each sign, and the file's own length. */
function oddNumbers(length: number): readonly bigint[] {
  return [
    0n,
    1n,
    8n,
    0x7fffffffn,
    0xffffffffn,
    2n ** 53n - 1n,
    2n ** 63n,
    2n ** 64n - 1n,
    BigInt(length),
    BigInt(length - 1),
  ];
}

/** The file gets shorter while it is read. */
class Shrinking implements ByteSource {
  readonly size: number;
  #reads = 0;

  constructor(
    private readonly bytes: Uint8Array,
    private readonly after: number,
  ) {
    this.size = bytes.length;
  }

  read(into: Uint8Array, offset: number): number {
    const end = this.#reads++ < this.after ? this.bytes.length : this.bytes.length / 3;
    const piece = this.bytes.subarray(offset, Math.max(offset, Math.min(end, offset + into.length)));
    into.set(piece);
    return piece.length;
  }
}

function exercise(from: Uint8Array | ByteSource): void {
  const elf = parseElf(from, 'fuzzed');
  elf.mentions('.cold', 'printf');
  elf.readTables();
  if (elf.mcountLocations.length > elf.bytes.length)
    throw new Error('more places are recorded than there are bytes');
  for (const { name, kind, binding, addressNumber, size } of elf.symbols) {
    if (`${name}${kind}${binding}` === '') throw new Error('a symbol says nothing');
    const offset = elf.codeOffset(addressNumber, size);
    if (offset >= 0 && offset + size > elf.bytes.length) throw new Error('code lies beyond what is loaded');
  }
  for (const { address, addressNumber, offset } of elf.segments) {
    const bytes = elf.bytesAt(address, 64);
    if (bytes !== undefined && bytes.length !== 64) throw new Error('bytes are missing');
    elf.importAt(address);
    elf.pointerAt(address);
    elf.int32At(addressNumber);
    elf.addressOf(offset);
    elf.pageAt(offset);
  }
}

/** Damaged files are read or refused, and nothing else: from memory, and from a file that gets shorter meanwhile. */
export function fuzzElf(rounds: number, seed: number): void {
  const cases = wholeFiles().map((bytes) => ({
    bytes,
    places: steering(bytes),
    odd: oddNumbers(bytes.length),
  }));
  const edit = fc.record({
    isSteering: fc.boolean(),
    at: fc.nat(),
    kind: fc.constantFrom('byte', 'half', 'word'),
    value: fc.nat(255),
    odd: fc.nat(9),
  });
  fc.assert(
    fc.property(
      fc.nat(cases.length - 1),
      fc.array(edit, { minLength: 1, maxLength: 10 }),
      fc.nat(40),
      (which, edits, shrinksAfter) => {
        const { bytes, places, odd } = cases[which];
        const copy = bytes.slice();
        const view = new DataView(copy.buffer);
        for (const { isSteering, at, kind, value, odd: index } of edits) {
          const offset = isSteering ? places[at % places.length] : at % copy.length;
          if (kind === 'word' && offset + 8 <= copy.length) view.setBigUint64(offset, odd[index], true);
          else if (kind === 'half' && offset + 4 <= copy.length)
            view.setUint32(offset, Number(odd[index] & 0xffffffffn), true);
          else copy[offset] = value;
        }
        for (const from of [copy, new Shrinking(copy, shrinksAfter)]) {
          try {
            exercise(from);
          } catch (error) {
            if (!(error instanceof CannotError)) throw error;
          }
        }
      },
    ),
    { numRuns: rounds, seed },
  );
}
