// Shadow stacks seen from outside.
import { CannotError } from '../errors/index.js';
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

/** Entries that are read in one go. */
const ENTRIES_AT_ONCE = 4096;
/** Open calls that are looked at in all: what is written there may be anything, and is not to keep us for ever. */
const MOST_ENTRIES = 1 << 22;

/** Entries of a lane down from the one at `top`, newest first. What cannot be a top has none. */
export function* readShadowEntries(
  memory: TargetMemory,
  places: ShadowPlaces,
  lane: number,
  top: number,
): Generator<ShadowEntry> {
  const base = shadowBase(places, lane);
  if (top <= base || top >= base + places.shadowStride || (top - base) % SHADOW.size !== 0) return;
  for (let end = top + SHADOW.size; end > base + SHADOW.size;) {
    const start = Math.max(base + SHADOW.size, end - ENTRIES_AT_ONCE * SHADOW.size);
    const bytes = memory.read(start, end - start);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    for (let at = bytes.length - SHADOW.size; at >= 0; at -= SHADOW.size) {
      yield {
        slot: view.getBigUint64(at + SHADOW.slot, true),
        returnAddress: view.getBigUint64(at + SHADOW.returnAddress, true),
        trampoline: view.getBigUint64(at + SHADOW.trampoline, true),
        parked: view.getUint32(at + SHADOW.parked, true) !== 0,
      };
    }
    end = start;
  }
}

/** A call that is open in a lane, and the stack of its thread. */
interface OpenCall {
  readonly stackLow: bigint;
  readonly stackSize: bigint;
  readonly entry: ShadowEntry;
}

/** Swapped return addresses of so many lanes from `first` on, the newest of each lane first. */
function* openCalls(
  memory: TargetMemory,
  places: ShadowPlaces,
  first = 1,
  count = places.lanes - 1,
): Generator<OpenCall> {
  const table = memory.read(places.data + places.laneTable + first * LANE.size, count * LANE.size);
  const view = new DataView(table.buffer, table.byteOffset);
  let entries = 0;
  for (let lane = first; lane < first + count; lane++) {
    const get = (offset: number): bigint => view.getBigUint64((lane - first) * LANE.size + offset, true);
    const [stackLow, stackSize] = [get(LANE.stackLow), get(LANE.stackSize)];
    for (const entry of readShadowEntries(memory, places, lane, Number(get(LANE.shadow)))) {
      if (++entries > MOST_ENTRIES) throw tooMany();
      if (entry.slot !== 0n && !entry.parked) yield { stackLow, stackSize, entry };
    }
  }
}

function tooMany(): CannotError {
  return new CannotError('FORGED_ANSWER', {
    tried: 'put swapped return addresses back',
    why: `the process says that there are more than ${MOST_ENTRIES}`,
    next: 'end the process: its memory cannot be believed',
  });
}

/** True if a return address is swapped in any lane, or a recorder is at work that may swap one. Recording is off; threads may be running. */
export function maySwapReturns(memory: TargetMemory, places: ShadowPlaces): boolean {
  // Marks first: of one that is taken off meanwhile the entry is seen.
  return isAnyBusy(memory, places) || openCalls(memory, places).next().done !== true;
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
  for (const { stackLow, stackSize, entry } of openCalls(memory, places))
    if (entry.slot < stackLow || entry.slot >= stackLow + stackSize) return false;
  return true;
}

/**
 * Puts swapped return addresses back, of one lane or of all. Their threads are held and not inside the recorder. Returns how many
 * there were. Only such are believed that lead into our code.
 */
export function restoreReturnAddresses(
  memory: TargetMemory,
  places: ShadowPlaces,
  isOurs: (address: bigint) => boolean,
  lane?: number,
): number {
  let restored = 0;
  // Newest first: of a chain of tail calls the newest stands in the slot.
  const open = lane === undefined ? openCalls(memory, places) : openCalls(memory, places, lane, 1);
  for (const { entry } of open) {
    if (!isOurs(entry.trampoline) || memory.readWord(Number(entry.slot)) !== entry.trampoline) continue;
    memory.writeWord(Number(entry.slot), entry.returnAddress);
    restored++;
  }
  return restored;
}
