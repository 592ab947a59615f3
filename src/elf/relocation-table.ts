import * as abi from './abi.js';
import type { DynamicTable } from './dynamic-table.js';
import { u64OrNaN, type ElfBytes } from './elf-bytes.js';
import { lowerBound } from './lower-bound.js';

/** Several times those of the largest programs; a packed table makes 63 of one word, and may name the same place again. */
const MOST_RELOCATIONS = 2 ** 24;
const RELR_SIZE = 8;

/** The relocation of one 8-byte slot against a symbol. */
export interface SymbolSlot {
  /** Index into the dynamic symbol table. */
  readonly symbol: number;
  readonly addend: number;
}

/** What the loader writes into the 8-byte words of a module, for a load bias of zero. Addresses are numbers. */
export class RelocationTable {
  /** Addresses of the words that point into the module itself, ascending, and what they hold at the same index. */
  readonly relativeAddresses: Float64Array;
  readonly relativeValues: Float64Array;
  readonly symbolSlots: ReadonlyMap<number, SymbolSlot>;

  private constructor(addresses: Float64Array, values: Float64Array, slots: Map<number, SymbolSlot>) {
    this.relativeAddresses = addresses;
    this.relativeValues = values;
    this.symbolSlots = slots;
  }

  static read(
    file: ElfBytes,
    dynamic: DynamicTable | undefined,
    wordAt: (address: number) => number | undefined,
  ): RelocationTable {
    const addresses: number[] = [];
    const values: number[] = [];
    const slots = new Map<number, SymbolSlot>();
    for (const table of dynamic?.relocations ?? []) {
      for (const { view } of file.pieces('a relocation table', table, abi.RELA_SIZE)) {
        for (let at = 0; at < view.byteLength; at += abi.RELA_SIZE) {
          const type = view.getUint32(at + abi.RELA.type, true);
          const address = u64OrNaN(view, at + abi.RELA.offset);
          const addend = u64OrNaN(view, at + abi.RELA.addend);
          if (Number.isNaN(address)) continue;
          if (type === abi.R_X86_64_RELATIVE && !Number.isNaN(addend)) {
            addresses.push(address);
            values.push(addend);
          } else if (
            type === abi.R_X86_64_64 ||
            type === abi.R_X86_64_GLOB_DAT ||
            type === abi.R_X86_64_JUMP_SLOT
          ) {
            slots.set(address, { symbol: view.getUint32(at + abi.RELA.symbol, true), addend });
          }
        }
        if (addresses.length + slots.size > MOST_RELOCATIONS) tooMany(file);
      }
    }
    readPacked(file, dynamic, wordAt, addresses, values);
    return new RelocationTable(...sortedByAddress(addresses, values), slots);
  }

  /** What the loader writes at `address` if it is a pointer into the module itself. */
  relativeValueAt(address: number): number | undefined {
    const index = lowerBound(this.relativeAddresses, address);
    return this.relativeAddresses[index] === address ? this.relativeValues[index] : undefined;
  }
}

function tooMany(file: ElfBytes): never {
  return file.damaged(`it has more than ${MOST_RELOCATIONS} relocations`);
}

/**
 * DT_RELR: an even word is an address and relocates the word there; an odd one is a bitmap for the 63 words that follow
 * the last. The value to be relocated stands in the place itself.
 */
function readPacked(
  file: ElfBytes,
  dynamic: DynamicTable | undefined,
  wordAt: (address: number) => number | undefined,
  addresses: number[],
  values: number[],
): void {
  const table = dynamic?.relativeRelocations;
  if (table === undefined) return;
  const relocate = (address: number): void => {
    const value = wordAt(address);
    if (value === undefined) return;
    addresses.push(address);
    values.push(value);
  };
  let next = 0;
  for (const { view } of file.pieces('the packed relocation table', table, RELR_SIZE)) {
    for (let at = 0; at < view.byteLength; at += RELR_SIZE) {
      const low = view.getUint32(at, true);
      const high = view.getUint32(at + 4, true);
      if ((low & 1) === 0) {
        const address = u64OrNaN(view, at);
        if (Number.isNaN(address)) continue;
        relocate(address);
        next = address + 8;
        continue;
      }
      for (let bit = 1; bit < 64; bit++) {
        const set = bit < 32 ? (low >>> bit) & 1 : (high >>> (bit - 32)) & 1;
        if (set === 1) relocate(next + (bit - 1) * 8);
      }
      next += 63 * 8;
      if (addresses.length > MOST_RELOCATIONS) tooMany(file);
    }
  }
}

function sortedByAddress(addresses: number[], values: number[]): [Float64Array, Float64Array] {
  // Linkers sort these (combreloc), so the sort is rarely needed.
  let sorted = true;
  for (let i = 1; i < addresses.length && sorted; i++) sorted = addresses[i - 1] <= addresses[i];
  if (sorted) return [Float64Array.from(addresses), Float64Array.from(values)];
  const order = Uint32Array.from(addresses.keys()).sort((a, b) => addresses[a] - addresses[b]);
  return [Float64Array.from(order, (i) => addresses[i]), Float64Array.from(order, (i) => values[i])];
}
