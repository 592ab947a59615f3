// The journal: what was changed in a target and how to undo it, kept in the target itself. It is complete before the first
// site is changed, so that a later session can put everything back if this one is killed.
//
//   header   journal magic, the tracer, where the agent's regions are
//   ranges   {address, length, is code} of each mapping
//   sites    {address, original bytes}
//
// It is found through the shared region, which /proc/PID/maps shows by name: lane 0's header holds its address.
import type { TargetMemory } from '../target/index.js';
import { HEADER, type AgentGeometry } from './layout.js';

/** "journal1" read as a little-endian number: changes with the layout. */
const JOURNAL_MAGIC = 0x316c_616e_7275_6f6an;

/** Offsets in the header. All u64. */
const JOURNAL = {
  magic: 0,
  tracerPid: 8,
  /** Start time of the tracer in clock ticks since boot, for process ids are used again. */
  tracerStart: 16,
  control: 24,
  data: 32,
  lanes: 40,
  laneTable: 48,
  shadowStacks: 56,
  shadowStride: 64,
  rangeCount: 72,
  siteCount: 80,
  size: 88,
} as const;

/** Where the tracer's process id stands, and what stands there when it has left on purpose. */
export const TRACER_OFFSET = JOURNAL.tracerPid;
export const NO_TRACER = 0n;

const RANGE_SIZE = 24;
const SITE_SIZE = 16;
const ORIGINAL_OFFSET = 8;
const ORIGINAL_LENGTH = 5;
/** No honest journal has more: a damaged one must not make us allocate without bound. */
const MAX_RANGES = 4096;
const MAX_SITES = 1 << 24;

/** How the kernel shows the shared region in /proc/PID/maps. */
export const SHARED_NAME = 'safepoke';
export const SHARED_PATH = `/memfd:${SHARED_NAME} (deleted)`;

export interface JournalRange {
  readonly address: number;
  readonly length: number;
  readonly isCode: boolean;
}

export interface JournalSite {
  readonly address: number;
  readonly original: Uint8Array;
}

/** Where shadow stacks are, to put return addresses back. */
export interface ShadowPlaces {
  readonly data: number;
  readonly lanes: number;
  readonly laneTable: number;
  readonly shadowStacks: number;
  readonly shadowStride: number;
}

export interface Journal extends ShadowPlaces {
  readonly tracerPid: number;
  readonly tracerStart: bigint;
  readonly control: number;
  readonly ranges: readonly JournalRange[];
  readonly sites: readonly JournalSite[];
}

/** Bytes that a journal of so many ranges and sites takes. */
export function journalBytes(ranges: number, sites: number): number {
  return JOURNAL.size + ranges * RANGE_SIZE + sites * SITE_SIZE;
}

export function encodeJournal(journal: Journal): Uint8Array {
  const bytes = new Uint8Array(journalBytes(journal.ranges.length, journal.sites.length));
  const view = new DataView(bytes.buffer);
  const put = (offset: number, value: number | bigint): void => {
    view.setBigUint64(offset, BigInt(value), true);
  };
  put(JOURNAL.magic, JOURNAL_MAGIC);
  put(JOURNAL.tracerPid, journal.tracerPid);
  put(JOURNAL.tracerStart, journal.tracerStart);
  put(JOURNAL.control, journal.control);
  put(JOURNAL.data, journal.data);
  put(JOURNAL.lanes, journal.lanes);
  put(JOURNAL.laneTable, journal.laneTable);
  put(JOURNAL.shadowStacks, journal.shadowStacks);
  put(JOURNAL.shadowStride, journal.shadowStride);
  put(JOURNAL.rangeCount, journal.ranges.length);
  put(JOURNAL.siteCount, journal.sites.length);
  let at: number = JOURNAL.size;
  for (const { address, length, isCode } of journal.ranges) {
    put(at, address);
    put(at + 8, length);
    put(at + 16, isCode ? 1 : 0);
    at += RANGE_SIZE;
  }
  for (const { address, original } of journal.sites) {
    put(at, address);
    bytes.set(original, at + ORIGINAL_OFFSET);
    at += SITE_SIZE;
  }
  return bytes;
}

/** Reads the journal of the agent whose shared region is mapped at `shared`; undefined if there is none that we understand. */
export function readJournal(memory: TargetMemory, shared: number): Journal | undefined {
  const address = Number(memory.readWord(shared + HEADER.journal) ?? 0n);
  const head = memory.readSome(address, JOURNAL.size);
  if (address === 0 || head.length < JOURNAL.size) return undefined;
  const view = new DataView(head.buffer, head.byteOffset);
  const get = (offset: number): number => Number(view.getBigUint64(offset, true));
  if (view.getBigUint64(JOURNAL.magic, true) !== JOURNAL_MAGIC) return undefined;
  const rangeCount = get(JOURNAL.rangeCount);
  const siteCount = get(JOURNAL.siteCount);
  if (rangeCount > MAX_RANGES || siteCount > MAX_SITES) return undefined;
  const length = rangeCount * RANGE_SIZE + siteCount * SITE_SIZE;
  const rest = memory.readSome(address + JOURNAL.size, length);
  if (rest.length < length) return undefined;
  const restView = new DataView(rest.buffer, rest.byteOffset);
  const restGet = (offset: number): number => Number(restView.getBigUint64(offset, true));
  const ranges = Array.from({ length: rangeCount }, (_, i) => ({
    address: restGet(i * RANGE_SIZE),
    length: restGet(i * RANGE_SIZE + 8),
    isCode: restGet(i * RANGE_SIZE + 16) !== 0,
  }));
  const sites = Array.from({ length: siteCount }, (_, i) => {
    const at = rangeCount * RANGE_SIZE + i * SITE_SIZE;
    const original = rest.slice(at + ORIGINAL_OFFSET, at + ORIGINAL_OFFSET + ORIGINAL_LENGTH);
    return { address: restGet(at), original };
  });
  return {
    tracerPid: get(JOURNAL.tracerPid),
    tracerStart: view.getBigUint64(JOURNAL.tracerStart, true),
    control: get(JOURNAL.control),
    data: get(JOURNAL.data),
    lanes: get(JOURNAL.lanes),
    laneTable: get(JOURNAL.laneTable),
    shadowStacks: get(JOURNAL.shadowStacks),
    shadowStride: get(JOURNAL.shadowStride),
    ranges,
    sites,
  };
}

/** The places of a session's shadow stacks. */
export function shadowPlaces(data: number, geometry: AgentGeometry): ShadowPlaces {
  const { lanes, laneTable, shadowStacks, shadowStride } = geometry;
  return { data, lanes, laneTable, shadowStacks, shadowStride };
}
