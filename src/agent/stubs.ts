// A code region: the recorder, then a head of 16 bytes for each site, then the bodies: each site's displaced instructions
// followed by a jump back.
import { CannotError } from '../errors/index.js';
import { roundToPage } from '../linux/index.js';
import { assemble, type Assembly } from '../x86/index.js';
import type { AgentGeometry } from './layout.js';
import {
  HEAD_SIZE,
  THREAD_POINTER_LABEL,
  recorderListing,
  type RecorderEntry,
  type ThreadPointerSource,
} from './recorder.js';

/** How a site's head records. */
export type HeadKind =
  /** Entry and exit; the return address is on top of the stack. */
  | 'entry'
  /** Entry and exit; the return address is above the frame pointer (behind `push rbp; mov rbp, rsp`). */
  | 'frame'
  /** Entry only. */
  | 'leaf'
  /** Records nothing: puts true return addresses back before an unwinder walks the stack. */
  | 'hook';

/** One site, as the region needs it. */
export interface StubSite {
  readonly head: HeadKind;
  /** Most bytes that `body` may need. */
  readonly bodyBytes: number;
  /**
   * Writes code that does what the displaced instructions did and goes on behind the site, to run at `address`, into `into` from
   * index `at` on. Returns its length. A number for an address: there may be 10^5 sites.
   */
  emitBody(address: number, into: Uint8Array, at: number): number;
}

/** A region's code, ready to be written at its address. */
export interface CodeRegion {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  /** How many of the bytes are code; the rest is filling. */
  readonly used: number;
  /** Address of the first head; that of site i is HEAD_SIZE * i further on. */
  readonly heads: bigint;
  /** Address of the body of each site. */
  readonly bodies: Float64Array;
  /** Offsets in `bytes` at which the recorder learns the thread pointer. */
  readonly threadPointerReads: readonly number[];
}

/** Bytes of a head that one aligned store changes: its first branch, and the beginning of the second. */
export const HEAD_SWITCH_BYTES = 8;

const CALL_REL32 = 0xe8;
const JMP_REL32 = 0xe9;
const INT3 = 0xcc;
const BRANCH_LENGTH = 5;
const BODY_ALIGNMENT = 8;

/** Generous bound on the emitted recorder; asserted when it is emitted. */
const RECORDER_BYTES = 8192;

const ENTRY_OF: Readonly<Record<HeadKind, RecorderEntry>> = {
  entry: 'entry',
  frame: 'entry_frame',
  leaf: 'leaf',
  hook: 'park',
};

/**
 * What the first bytes of a head become: as emitted, or a jump past the recorder to the body. Only these bytes differ, within which
 * there is one branch in either state, and they are aligned to their number: one store changes them, whoever executes them. (AMD64
 * Architecture Programmer's Manual, vol. 2, 7.6.1: a naturally aligned quadword is fetched whole.)
 */
export function headSwitch(region: CodeRegion, index: number, on: boolean): bigint {
  const at = Number(region.heads - region.address) + index * HEAD_SIZE;
  const bytes = region.bytes.slice(at, at + HEAD_SWITCH_BYTES);
  if (!on) putBranch(bytes, 0, JMP_REL32, region.bodies[index] - (Number(region.address) + at));
  return new DataView(bytes.buffer).getBigUint64(0, true);
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
  let bytes = RECORDER_BYTES + sites.length * HEAD_SIZE;
  for (const site of sites) bytes += site.bodyBytes + BODY_ALIGNMENT;
  return roundToPage(bytes);
}

function putBranch(bytes: Uint8Array, at: number, opcode: number, target: number): void {
  const distance = target - (at + BRANCH_LENGTH);
  bytes[at] = opcode;
  bytes[at + 1] = distance & 0xff;
  bytes[at + 2] = (distance >> 8) & 0xff;
  bytes[at + 3] = (distance >> 16) & 0xff;
  bytes[at + 4] = (distance >> 24) & 0xff;
}

/** The recorder of a region at `address`: the same length and labels whichever way it learns the thread pointer. */
export function emitRecorder(
  address: bigint,
  firstIndex: number,
  places: { readonly control: bigint; readonly data: bigint },
  geometry: AgentGeometry,
  threadPointer: ThreadPointerSource,
): Assembly {
  const heads = address + BigInt(RECORDER_BYTES);
  const listing = recorderListing({ ...places, heads, firstIndex }, geometry, threadPointer);
  const recorder = assemble(listing, address);
  if (recorder.bytes.length > RECORDER_BYTES) throw new Error('the recorder outgrew its place');
  return recorder;
}

/**
 * Emits a region at `address` (page aligned). `size` is what `regionBytes` said.
 *
 * @throws CannotError of `body`, where a displaced instruction cannot reach what it refers to
 */
export function emitRegion(
  address: bigint,
  size: number,
  sites: readonly StubSite[],
  firstIndex: number,
  places: { readonly control: bigint; readonly data: bigint },
  geometry: AgentGeometry,
): CodeRegion {
  const headsOffset = RECORDER_BYTES;
  const heads = address + BigInt(headsOffset);
  const recorder = emitRecorder(address, firstIndex, places, geometry, 'memory');
  const bytes = new Uint8Array(size).fill(INT3);
  bytes.set(recorder.bytes);
  const at = (label: RecorderEntry): number => recorder.labels.get(label) ?? 0;
  const entryAt = {
    entry: at(ENTRY_OF.entry),
    frame: at(ENTRY_OF.frame),
    leaf: at(ENTRY_OF.leaf),
    hook: at(ENTRY_OF.hook),
  };
  const exitAt = at('exit');
  const bodies = new Float64Array(sites.length);
  const base = Number(address);
  let cursor = headsOffset + sites.length * HEAD_SIZE;
  for (let i = 0; i < sites.length; i++) {
    const site = sites[i];
    cursor += -cursor & (BODY_ALIGNMENT - 1);
    const length = cursor + site.bodyBytes > size ? Infinity : site.emitBody(base + cursor, bytes, cursor);
    if (length > site.bodyBytes) {
      throw new CannotError('STUB_TOO_LONG', {
        tried: 'emit the code for the traced functions',
        why: 'relocated instructions took more room than planned',
        next: 'report this with the program, or leave out functions with -N',
      });
    }
    bodies[i] = base + cursor;
    const head = headsOffset + i * HEAD_SIZE;
    putBranch(bytes, head, CALL_REL32, entryAt[site.head]);
    putBranch(bytes, head + BRANCH_LENGTH, site.head === 'entry' ? CALL_REL32 : JMP_REL32, cursor);
    putBranch(bytes, head + 2 * BRANCH_LENGTH, JMP_REL32, exitAt);
    cursor += length;
  }
  const threadPointerReads = [...recorder.labels]
    .filter(([label]) => label.startsWith(THREAD_POINTER_LABEL))
    .map(([, offset]) => offset);
  return { address, bytes, used: cursor, heads, bodies, threadPointerReads };
}
