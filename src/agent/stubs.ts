// A code region: the recorder, then a stub for each site. A stub does what the displaced instructions did and goes back behind the site;
// where a function begins, and right before each instruction by which it is left, it calls the recorder.
//
//     entry:  call entry            exit:  add rsp, 8      displaced, as at entries
//             push rbx                     pop rbx
//             mov rbx, rdi                 call exit
//             jmp behind the site          ret
//
// A call of the recorder stands at the beginning of a cell of 16 bytes; which cell it is tells function and kind.
import { CannotError } from '../errors/index.js';
import { roundToPage } from '../linux/index.js';
import { KIND_BITS, KIND_ENTRY, KIND_EXIT, KIND_LEAF, KIND_TAIL } from '../recording/index.js';
import { CELL_SIZE, assemble, type Assembly, type RecordedEvent, type Recording } from '../x86/index.js';
import type { AgentGeometry } from './layout.js';
import {
  ASK_LABEL,
  FIND_LABEL,
  THREAD_POINTER_LABEL,
  recorderListing,
  type RecorderEntry,
  type ThreadPointerSource,
} from './recorder.js';

/** One site, as the region needs it. */
export interface StubSite {
  /** The function whose calls it records. */
  readonly functionIndex: number;
  /** Most bytes that its stub may need, from the beginning of a cell on. */
  readonly stubBytes: number;
  /** How many bytes behind the beginning of a cell the stub begins. */
  readonly stubShift: number;
  /**
   * Writes the stub, to run at `address`, into `into` from index `at` on; `call` is told of calls of the recorder, and where they go. Returns
   * its length. Numbers for addresses: there may be 10^5 sites.
   */
  emitStub(address: number, into: Uint8Array, at: number, call: Recording['call']): number;
}

/** A region's code, ready to be written at its address. */
export interface CodeRegion {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  /** How many of the bytes are code; the rest is filling. */
  readonly used: number;
  /** Address of each site's stub. */
  readonly stubs: Float64Array;
  /** Number of the first cell, among those of all regions. */
  readonly firstCell: number;
  /** For each cell what it records, as a record tells it: (function << KIND_BITS) | kind; 0: it is none. */
  readonly cells: Uint32Array;
  /** Cells at which calls begin, by the site. */
  readonly entryCells: ReadonlyMap<number, number>;
  /** Offsets in `bytes` at which the recorder learns the thread pointer: in its fast paths, and where it looks for a lane. */
  readonly threadPointerReads: readonly number[];
  readonly findRead: number;
  /** Offset of what asks the kernel instead. */
  readonly askThread: number;
}

/** Bytes of a cell that one aligned store changes: its call. */
export const SWITCH_BYTES = 8;

const INT3 = 0xcc;
/** nopl 0x0(%rax,%rax,1), as long as a call: Intel SDM, vol. 2B, "NOP". */
const NOP_OF_CALL = [0x0f, 0x1f, 0x44, 0x00, 0x00] as const;

/** Generous bound on the emitted recorder; asserted when it is emitted. */
const RECORDER_BYTES = 4096;

const KIND_OF: Readonly<Record<RecordedEvent, number>> = {
  entry: KIND_ENTRY,
  frame: KIND_ENTRY,
  leaf: KIND_LEAF,
  'deep-entry': KIND_ENTRY,
  'deep-leaf': KIND_LEAF,
  return: KIND_EXIT,
  'deep-return': KIND_EXIT,
  'deep-tail': KIND_TAIL,
  tail: KIND_TAIL,
};
const LABEL_OF: Readonly<Record<RecordedEvent, RecorderEntry>> = {
  entry: 'entry',
  frame: 'entry_frame',
  leaf: 'leaf',
  'deep-entry': 'entry_deep',
  'deep-leaf': 'leaf_deep',
  return: 'exit',
  'deep-return': 'exit_deep',
  'deep-tail': 'exit_deep',
  tail: 'exit',
};
const EVENTS = Object.keys(LABEL_OF) as RecordedEvent[];
const BEGINNINGS: ReadonlySet<RecordedEvent> = new Set(['entry', 'frame', 'leaf', 'deep-entry', 'deep-leaf']);

/**
 * What the first bytes of an entry's cell become: as emitted, or what does nothing. Either is one instruction, and they are aligned to
 * their number: one store changes them, whoever executes them. (AMD64 Architecture Programmer's Manual, vol. 2, 7.6.1: a naturally
 * aligned quadword is fetched whole.)
 */
export function cellSwitch(region: CodeRegion, cell: number, on: boolean): bigint {
  const at = RECORDER_BYTES + cell * CELL_SIZE;
  const bytes = region.bytes.slice(at, at + SWITCH_BYTES);
  if (!on) bytes.set(NOP_OF_CALL);
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

/** Offset in a region of its cell of that number, counted from its own first. */
export function cellOffset(cell: number): number {
  return RECORDER_BYTES + cell * CELL_SIZE;
}

/** Code that wants stubs: sites whose addresses lie between `low` and `high`. */
export interface Cluster {
  readonly low: number;
  readonly high: number;
  readonly firstIndex: number;
  readonly sites: readonly StubSite[];
}

/** Bytes to map for a region with these sites. */
export function regionBytes(sites: readonly StubSite[]): number {
  let bytes = RECORDER_BYTES + CELL_SIZE;
  for (const site of sites) bytes += site.stubBytes + CELL_SIZE;
  return roundToPage(bytes);
}

/** The recorder of a region at `address`: the same length and labels whichever way it learns the thread pointer. */
export function emitRecorder(
  address: bigint,
  firstCell: number,
  places: { readonly control: bigint; readonly data: bigint },
  geometry: AgentGeometry,
  threadPointer: ThreadPointerSource,
): Assembly {
  const cells = address + BigInt(RECORDER_BYTES);
  const listing = recorderListing({ ...places, cells, firstCell }, geometry, threadPointer);
  const recorder = assemble(listing, address);
  if (recorder.bytes.length > RECORDER_BYTES) throw new Error('the recorder outgrew its place');
  return recorder;
}

/**
 * Emits a region at `address` (page aligned). `size` is what `regionBytes` said.
 *
 * @throws CannotError of `emitStub`, where a displaced instruction cannot reach what it refers to
 */
export function emitRegion(
  address: bigint,
  size: number,
  sites: readonly StubSite[],
  firstCell: number,
  places: { readonly control: bigint; readonly data: bigint },
  geometry: AgentGeometry,
): CodeRegion {
  const recorder = emitRecorder(address, firstCell, places, geometry, 'memory');
  const bytes = new Uint8Array(size).fill(INT3);
  bytes.set(recorder.bytes);
  const base = Number(address);
  const ways = new Map<RecordedEvent, number>();
  for (const event of EVENTS) ways.set(event, base + (recorder.labels.get(LABEL_OF[event]) ?? 0));
  const cells = new Uint32Array((size - RECORDER_BYTES) / CELL_SIZE);
  const stubs = new Float64Array(sites.length);
  const entryCells = new Map<number, number>();
  const firstAddress = base + RECORDER_BYTES;
  let i = 0;
  const call: Recording['call'] = (at, event) => {
    const cell = (at - firstAddress) / CELL_SIZE;
    cells[cell] = ((sites[i].functionIndex << KIND_BITS) | KIND_OF[event]) >>> 0;
    if (BEGINNINGS.has(event)) entryCells.set(i, cell);
    return ways.get(event) ?? 0;
  };
  let used = RECORDER_BYTES;
  for (; i < sites.length; i++) {
    const site = sites[i];
    const start = used + (-used & (CELL_SIZE - 1));
    const at = start + site.stubShift;
    const room = site.stubBytes - site.stubShift;
    const length = start + site.stubBytes > size ? Infinity : site.emitStub(base + at, bytes, at, call);
    if (length > room) {
      throw new CannotError('STUB_TOO_LONG', {
        tried: 'emit the code for the traced functions',
        why: 'relocated instructions took more room than planned',
        next: 'report this with the program, or leave out functions with -N',
      });
    }
    stubs[i] = base + at;
    used = at + length;
  }
  const threadPointerReads = [...recorder.labels]
    .filter(([label]) => label.startsWith(THREAD_POINTER_LABEL))
    .map(([, offset]) => offset);
  const [findRead, askThread] = [FIND_LABEL, ASK_LABEL].map((label) => recorder.labels.get(label) ?? 0);
  const reads = { threadPointerReads, findRead, askThread };
  return { address, bytes, used, stubs, firstCell, cells, entryCells, ...reads };
}
