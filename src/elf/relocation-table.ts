import * as abi from './abi.js';
import type { DynamicTable } from './dynamic-table.js';
import type { ElfBytes } from './elf-bytes.js';
import { lowerBound } from './lower-bound.js';

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
    offsetOf: (address: number) => number | undefined,
  ): RelocationTable {
    const addresses: number[] = [];
    const values: number[] = [];
    const slots = new Map<number, SymbolSlot>();
    for (const table of dynamic?.relocations ?? []) {
      const end = table.offset + table.size - abi.RELA_SIZE;
      for (let at = table.offset; at <= end; at += abi.RELA_SIZE) {
        const type = file.view.getUint32(at + abi.RELA.type, true);
        const address = file.u64OrNaN(at + abi.RELA.offset);
        const addend = file.u64OrNaN(at + abi.RELA.addend);
        if (Number.isNaN(address)) continue;
        if (type === abi.R_X86_64_RELATIVE && !Number.isNaN(addend)) {
          addresses.push(address);
          values.push(addend);
        } else if (
          type === abi.R_X86_64_64 ||
          type === abi.R_X86_64_GLOB_DAT ||
          type === abi.R_X86_64_JUMP_SLOT
        ) {
          slots.set(address, { symbol: file.view.getUint32(at + abi.RELA.symbol, true), addend });
        }
      }
    }
    readPacked(file, dynamic, offsetOf, addresses, values);
    return new RelocationTable(...sortedByAddress(addresses, values), slots);
  }

  /** What the loader writes at `address` if it is a pointer into the module itself. */
  relativeValueAt(address: number): number | undefined {
    const index = lowerBound(this.relativeAddresses, address);
    return this.relativeAddresses[index] === address ? this.relativeValues[index] : undefined;
  }
}

/**
 * DT_RELR: an even word is an address and relocates the word there; an odd one is a bitmap for the 63 words that follow
 * the last. The value to be relocated stands in the place itself.
 */
function readPacked(
  file: ElfBytes,
  dynamic: DynamicTable | undefined,
  offsetOf: (address: number) => number | undefined,
  addresses: number[],
  values: number[],
): void {
  const table = dynamic?.relativeRelocations;
  if (table === undefined) return;
  const relocate = (address: number): void => {
    const offset = offsetOf(address);
    if (offset === undefined || offset + 8 > file.bytes.length) return;
    const value = file.u64OrNaN(offset);
    if (Number.isNaN(value)) return;
    addresses.push(address);
    values.push(value);
  };
  let next = 0;
  for (let at = table.offset; at + 8 <= table.offset + table.size; at += 8) {
    const low = file.view.getUint32(at, true);
    const high = file.view.getUint32(at + 4, true);
    if ((low & 1) === 0) {
      const address = file.u64OrNaN(at);
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
