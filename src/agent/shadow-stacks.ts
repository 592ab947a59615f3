// Shadow stacks seen from outside.
import type { TargetMemory } from '../target/index.js';
import type { ShadowPlaces } from './journal.js';
import { LANE, SHADOW } from './layout.js';

/** An entry: a call whose return address was swapped. */
export interface ShadowEntry {
  /** 0: the entry is void. */
  readonly slot: bigint;
  readonly returnAddress: bigint;
  readonly trampoline: bigint;
  readonly parked: boolean;
}

/** Address of the sentinel of a lane's shadow stack. */
export function shadowBase(places: ShadowPlaces, lane: number): number {
  return places.data + places.shadowStacks + lane * places.shadowStride;
}

/** Entries of a lane up to the one at `top`, oldest first. */
export function readShadowEntries(
  memory: TargetMemory,
  places: ShadowPlaces,
  lane: number,
  top: number,
): ShadowEntry[] {
  const base = shadowBase(places, lane);
  if (top <= base || top > base + places.shadowStride) return [];
  const bytes = memory.read(base + SHADOW.size, top - base);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const entries: ShadowEntry[] = [];
  for (let at = 0; at < bytes.length; at += SHADOW.size) {
    entries.push({
      slot: view.getBigUint64(at + SHADOW.slot, true),
      returnAddress: view.getBigUint64(at + SHADOW.returnAddress, true),
      trampoline: view.getBigUint64(at + SHADOW.trampoline, true),
      parked: view.getUint32(at + SHADOW.parked, true) !== 0,
    });
  }
  return entries;
}

/**
 * Puts every swapped return address of every lane back. All threads are held and none is inside the recorder. Returns how many
 * there were.
 */
export function restoreReturnAddresses(memory: TargetMemory, places: ShadowPlaces): number {
  let restored = 0;
  const table = memory.read(places.data + places.laneTable, places.lanes * LANE.size);
  const view = new DataView(table.buffer, table.byteOffset);
  for (let lane = 1; lane < places.lanes; lane++) {
    const top = Number(view.getBigUint64(lane * LANE.size + LANE.shadow, true));
    // Newest first: of a chain of tail calls the newest stands in the slot.
    for (const entry of readShadowEntries(memory, places, lane, top).reverse()) {
      if (entry.slot === 0n || entry.parked) continue;
      if (memory.readWord(Number(entry.slot)) !== entry.trampoline) continue;
      memory.writeWord(Number(entry.slot), entry.returnAddress);
      restored++;
    }
  }
  return restored;
}
