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

/** A lane with the calls that are open in it, oldest first. */
interface OpenLane {
  readonly stackLow: bigint;
  readonly stackSize: bigint;
  readonly entries: readonly ShadowEntry[];
}

/** Those of so many lanes from `first` on in which a return address is swapped. */
function* openLanes(
  memory: TargetMemory,
  places: ShadowPlaces,
  first = 1,
  count = places.lanes - 1,
): Generator<OpenLane> {
  const table = memory.read(places.data + places.laneTable + first * LANE.size, count * LANE.size);
  const view = new DataView(table.buffer, table.byteOffset);
  for (let lane = first; lane < first + count; lane++) {
    const get = (offset: number): bigint => view.getBigUint64((lane - first) * LANE.size + offset, true);
    const all = readShadowEntries(memory, places, lane, Number(get(LANE.shadow)));
    const entries = all.filter(({ slot, parked }) => slot !== 0n && !parked);
    if (entries.length === 0) continue;
    yield {
      stackLow: get(LANE.stackLow),
      stackSize: get(LANE.stackSize),
      entries,
    };
  }
}

/** True if a return address is swapped in any lane, or a recorder is at work that may swap one. Recording is off; threads may be running. */
export function maySwapReturns(memory: TargetMemory, places: ShadowPlaces): boolean {
  // Marks first: of one that is taken off meanwhile the entry is seen.
  return isAnyBusy(memory, places) || openLanes(memory, places).next().done !== true;
}

function isAnyBusy(memory: TargetMemory, { data, laneTable, lanes }: ShadowPlaces): boolean {
  const table = memory.read(data + laneTable, lanes * LANE.size);
  const view = new DataView(table.buffer, table.byteOffset);
  // Lane 0 is nobody's, and marked by everybody.
  for (let at = LANE.size; at < table.length; at += LANE.size)
    if (view.getBigUint64(at + LANE.busy, true) !== 0n) return true;
  return false;
}

/**
 * True if each swapped return address is on the stack of the thread whose lane says so: then nobody else returns through it. Sites
 * have been restored, so that this stays so; threads may be running.
 */
export function areOnOwnStacks(memory: TargetMemory, places: ShadowPlaces): boolean {
  for (const { stackLow, stackSize, entries } of openLanes(memory, places)) {
    if (entries.some(({ slot }) => slot < stackLow || slot >= stackLow + stackSize)) return false;
  }
  return true;
}

/**
 * Puts swapped return addresses back, of one lane or of all. Their threads are held and not inside the recorder. Returns how many
 * there were.
 */
export function restoreReturnAddresses(memory: TargetMemory, places: ShadowPlaces, lane?: number): number {
  let restored = 0;
  for (const open of lane === undefined ? openLanes(memory, places) : openLanes(memory, places, lane, 1)) {
    // Newest first: of a chain of tail calls the newest stands in the slot.
    for (const entry of [...open.entries].reverse()) {
      if (memory.readWord(Number(entry.slot)) !== entry.trampoline) continue;
      memory.writeWord(Number(entry.slot), entry.returnAddress);
      restored++;
    }
  }
  return restored;
}
