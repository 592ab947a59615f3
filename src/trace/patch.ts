// Changing sites: whole spans at a time, each read, compared with what must be there, and written back in one go. Every
// thread is held while this runs.
import type { TargetMemory } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';

/** A site with the bytes that must stand there now, and those that are to. */
export interface SiteChange {
  readonly address: number;
  readonly expected: Uint8Array;
  readonly wanted: Uint8Array;
}

/** Sites further apart than this are written separately: copying bytes that stay costs less than a system call. */
const MAX_GAP = 4096;
const MAX_SPAN = 4 << 20;

/**
 * Applies the changes, which are in ascending order of address, and returns those that were left alone since other bytes
 * than the expected ones stood there. A change whose memory is no more (its library was unloaded) needs nothing, and so does
 * one that is made already (the library was loaded again).
 *
 * @throws CannotError MEMORY
 */
export function applyChanges(memory: TargetMemory, changes: readonly SiteChange[]): SiteChange[] {
  const foreign: SiteChange[] = [];
  for (const { from, to, bytes: span } of spans(memory, changes)) {
    const start = changes[from].address;
    let changed = 0;
    for (let i = from; i <= to; i++) {
      const { address, expected, wanted } = changes[i];
      if (!equalAt(span, address - start, expected)) {
        if (!equalAt(span, address - start, wanted)) foreign.push(changes[i]);
        continue;
      }
      span.set(wanted, address - start);
      changed++;
    }
    if (changed > 0) memory.write(start, span);
  }
  return foreign;
}

/** True if each change's wanted bytes stand in memory, as far as there is memory. */
export function areApplied(memory: TargetMemory, changes: readonly SiteChange[]): boolean {
  for (const { from, to, bytes } of spans(memory, changes)) {
    const start = changes[from].address;
    for (let i = from; i <= to; i++) {
      if (!equalAt(bytes, changes[i].address - start, changes[i].wanted)) return false;
    }
  }
  return true;
}

/** Changes from index `from` to `to`, which are near each other, and what stands in memory from the first to the last. */
interface Span {
  readonly from: number;
  readonly to: number;
  readonly bytes: Uint8Array;
}

/** The changes in spans, those left out whose memory is not there. */
function* spans(memory: TargetMemory, changes: readonly SiteChange[]): Generator<Span> {
  const read = (from: number, to: number): Span | undefined => {
    const length = changes[to].address + SITE_LENGTH - changes[from].address;
    const bytes = memory.readSome(changes[from].address, length);
    return bytes.length === length ? { from, to, bytes } : undefined;
  };
  for (const { from, to } of runs(changes)) {
    const span = read(from, to);
    if (span !== undefined) {
      yield span;
      continue;
    }
    for (let i = from; i <= to; i++) {
      const single = read(i, i);
      if (single !== undefined) yield single;
    }
  }
}

/** Runs of changes that are near each other: indices of their first and last. */
function* runs(changes: readonly SiteChange[]): Generator<{ from: number; to: number }> {
  let from = 0;
  while (from < changes.length) {
    let to = from;
    while (
      to + 1 < changes.length &&
      changes[to + 1].address - changes[to].address < MAX_GAP &&
      changes[to + 1].address - changes[from].address < MAX_SPAN
    ) {
      to++;
    }
    yield { from, to };
    from = to + 1;
  }
}

function equalAt(bytes: Uint8Array, offset: number, expected: Uint8Array): boolean {
  for (let i = 0; i < expected.length; i++) if (bytes[offset + i] !== expected[i]) return false;
  return true;
}

const JMP_REL32 = 0xe9;

/** Where the `jmp rel32` at `address` leads; undefined if the bytes are no such jump. */
export function jumpTarget(address: number, bytes: Uint8Array): number | undefined {
  if (bytes.length < SITE_LENGTH || bytes[0] !== JMP_REL32) return undefined;
  return address + SITE_LENGTH + new DataView(bytes.buffer, bytes.byteOffset).getInt32(1, true);
}

/** The bytes of `jmp target` at `address`. */
export function jumpTo(address: number, target: number): Uint8Array {
  const bytes = new Uint8Array(SITE_LENGTH);
  bytes[0] = JMP_REL32;
  new DataView(bytes.buffer).setInt32(1, target - (address + SITE_LENGTH), true);
  return bytes;
}

const INT3 = 0xcc;

/**
 * Takes a jump of ours away on whose first byte somebody's breakpoint stands: the other bytes become the original ones, the
 * breakpoint stays. Nobody traces the process but we, so the breakpoint is the kernel's (a uprobe), which goes on with the
 * instruction of the file, and puts the first byte of the file back when the probe goes. False: something else stands there.
 */
export function restoreUnderBreakpoint(
  memory: TargetMemory,
  address: number,
  original: Uint8Array,
  isOurs: (address: number) => boolean,
): boolean {
  const bytes = memory.readSome(address, SITE_LENGTH);
  if (bytes.length < SITE_LENGTH || bytes[0] !== INT3) return false;
  const target = jumpTarget(address, Uint8Array.of(JMP_REL32, ...bytes.subarray(1)));
  if (target === undefined || !isOurs(target)) return false;
  memory.write(address + 1, original.subarray(1));
  return true;
}
