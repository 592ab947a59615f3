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
const PAGE = 4096;
const MAX_GAP = PAGE;
const MAX_SPAN = 4 << 20;

/**
 * Applies the changes, which are in ascending order of address, and returns those that were left alone since other bytes
 * than the expected ones stood there.
 *
 * @throws CannotError MEMORY
 */
export function applyChanges(memory: TargetMemory, changes: readonly SiteChange[]): SiteChange[] {
  const foreign: SiteChange[] = [];
  for (const { from, to } of spans(changes)) {
    // From the start of a page: the kernel writes page by page, and should we be killed in between, no site may be half changed.
    const start = changes[from].address - (changes[from].address % PAGE);
    const span = memory.read(start, changes[to].address + SITE_LENGTH - start);
    let changed = 0;
    for (let i = from; i <= to; i++) {
      const { address, expected, wanted } = changes[i];
      if (!equalAt(span, address - start, expected)) {
        foreign.push(changes[i]);
        continue;
      }
      span.set(wanted, address - start);
      changed++;
    }
    if (changed > 0) memory.write(start, span);
  }
  return foreign;
}

/** True if each change's wanted bytes stand in memory. */
export function areApplied(memory: TargetMemory, changes: readonly SiteChange[]): boolean {
  for (const { from, to } of spans(changes)) {
    const start = changes[from].address;
    const bytes = memory.readSome(start, changes[to].address + SITE_LENGTH - start);
    for (let i = from; i <= to; i++) {
      if (!equalAt(bytes, changes[i].address - start, changes[i].wanted)) return false;
    }
  }
  return true;
}

/** Runs of changes that are near each other: indices of their first and last. */
function* spans(changes: readonly SiteChange[]): Generator<{ from: number; to: number }> {
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
