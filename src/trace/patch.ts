// Changing sites: whole spans at a time, each read, compared with what must be there, and written back in one go. Every
// thread is held while changes are applied.
import type { WholeSite } from '../agent/index.js';
import { isSafepokeError } from '../errors/index.js';
import { PAGE, pageOf } from '../linux/index.js';
import type { TargetMemory } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';

function siteBytes(all: Uint8Array, i: number): Uint8Array {
  return all.subarray(i * SITE_LENGTH, (i + 1) * SITE_LENGTH);
}

/** Sites in ascending order of address, each with the bytes that must stand there now and those that are to. */
export class SiteChanges {
  readonly addresses: Float64Array;
  /** SITE_LENGTH bytes for each site, one site's behind the other's. */
  readonly expected: Uint8Array;
  readonly wanted: Uint8Array;

  constructor(addresses: Float64Array, expected: Uint8Array, wanted: Uint8Array) {
    this.addresses = addresses;
    this.expected = expected;
    this.wanted = wanted;
  }

  static of(
    changes: readonly {
      readonly address: number;
      readonly expected: Uint8Array;
      readonly wanted: Uint8Array;
    }[],
  ): SiteChanges {
    const addresses = Float64Array.from(changes, ({ address }) => address);
    const expected = new Uint8Array(changes.length * SITE_LENGTH);
    const wanted = new Uint8Array(changes.length * SITE_LENGTH);
    changes.forEach((change, i) => {
      expected.set(change.expected, i * SITE_LENGTH);
      wanted.set(change.wanted, i * SITE_LENGTH);
    });
    return new SiteChanges(addresses, expected, wanted);
  }

  get length(): number {
    return this.addresses.length;
  }

  /** The bytes that are to stand at site `i`. */
  wantedOf(i: number): Uint8Array {
    return siteBytes(this.wanted, i);
  }

  /** What undoes them. */
  reversed(): SiteChanges {
    return new SiteChanges(this.addresses, this.wanted, this.expected);
  }

  /** The others than those of these indices. */
  without(indices: ReadonlySet<number>): SiteChanges {
    if (indices.size === 0) return this;
    const kept = Array.from(this.addresses.keys()).filter((i) => !indices.has(i));
    return SiteChanges.of(
      kept.map((i) => ({
        address: this.addresses[i],
        expected: siteBytes(this.expected, i),
        wanted: siteBytes(this.wanted, i),
      })),
    );
  }
}

/** Sites further apart than this are written separately: copying bytes that stay costs less than a system call. */
const MAX_GAP = PAGE;
const MAX_SPAN = 4 << 20;

/** A run of sites that are near each other, with the bytes that stand there and those that are to. */
interface Span {
  /** Indices of its first site, and behind its last. */
  readonly from: number;
  readonly to: number;
  readonly start: number;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
  /** Indices of the sites that had other bytes than expected. */
  readonly foreign: readonly number[];
}

/**
 * Writes sites so that none is ever half written, whatever ends in between; or does not, where it cannot. We write page by page, and may
 * be killed between two.
 */
export type WriteWhole = (sites: readonly WholeSite[]) => void;

/**
 * Changes made ready while nobody is held: every site has been looked at. While threads are held it is enough to see that not one
 * byte of a span has changed since; where one has, its sites are looked at again. A change whose memory is no more (its library
 * was unloaded) needs nothing, and so does one that is made already (the library was loaded again).
 */
export class PreparedChanges {
  /** Indices of those that were not made since a signal handler ran that did not end. */
  readonly left = new Set<number>();
  readonly changes: SiteChanges;
  readonly #memory: TargetMemory;
  readonly #writeWhole: WriteWhole | undefined;
  readonly #spans: readonly Span[];

  constructor(memory: TargetMemory, changes: SiteChanges, writeWhole?: WriteWhole) {
    this.#memory = memory;
    this.#writeWhole = writeWhole;
    this.changes = changes;
    this.#spans = [...spansOf(memory, changes)].map(({ from, to, bytes }) =>
      spanOf(changes, from, to, bytes),
    );
  }

  /** Others in the same memory, made ready now. */
  others(changes: SiteChanges): PreparedChanges {
    return changes === this.changes ? this : new PreparedChanges(this.#memory, changes, this.#writeWhole);
  }

  /**
   * Applies the changes and returns the indices of those that were left alone since other bytes than the expected ones stood
   * there.
   *
   * @throws CannotError MEMORY
   */
  apply(): Set<number> {
    const { changes } = this;
    const foreign = new Set<number>();
    for (const prepared of this.#spans) {
      const { from, to, start, before } = prepared;
      const now = this.#memory.readSome(start, before.length);
      if (now.length < before.length) continue;
      const span = Buffer.compare(now, before) === 0 ? prepared : spanOf(changes, from, to, now);
      for (const index of span.foreign) foreign.add(index);
      if (Buffer.compare(span.before, span.after) === 0) continue;
      this.#writeWhole?.(acrossPages(span, changes));
      try {
        this.#memory.changeCode(start, span.before, span.after);
      } catch (error) {
        if (!isSafepokeError(error) || error.code !== 'HANDLER_BUSY') throw error;
        // Each site is as it was or as it is to be: those that are as they were are left so.
        const left = new Set(changes.addresses.keys());
        for (const index of appliedOnes(this.#memory, changes)) left.delete(index);
        for (const index of left) this.left.add(index);
        return foreign;
      }
    }
    return foreign;
  }
}

/** The sites of a span that lie across the end of a page, as they are to be. */
function acrossPages({ from, to, start, before, after }: Span, { addresses }: SiteChanges): WholeSite[] {
  const across: WholeSite[] = [];
  for (let i = from; i < to; i++) {
    if (addresses[i] % PAGE <= PAGE - SITE_LENGTH) continue;
    const at = addresses[i] - start;
    const bytes = after.subarray(at, at + SITE_LENGTH);
    if (Buffer.compare(bytes, before.subarray(at, at + SITE_LENGTH)) !== 0)
      across.push({ address: addresses[i], bytes });
  }
  return across;
}

/** Applies changes that are not prepared. @throws CannotError MEMORY */
export function applyChanges(memory: TargetMemory, changes: SiteChanges): Set<number> {
  return new PreparedChanges(memory, changes).apply();
}

/**
 * Address and length of the span from one site up to before another. It begins at the start of a page: the kernel writes page by
 * page, and should we be killed in between, no site within a page may be half changed.
 */
function extent({ addresses }: SiteChanges, from: number, to: number): [number, number] {
  const start = pageOf(addresses[from]);
  return [start, addresses[to - 1] + SITE_LENGTH - start];
}

/** Looks at each site of a span in which `before` stands. */
function spanOf(changes: SiteChanges, from: number, to: number, before: Uint8Array): Span {
  const { addresses, expected, wanted } = changes;
  const [start] = extent(changes, from, to);
  const after = before.slice();
  const foreign: number[] = [];
  for (let i = from; i < to; i++) {
    const at = addresses[i] - start;
    const bytes = i * SITE_LENGTH;
    if (isSame(before, at, expected, bytes)) {
      for (let k = 0; k < SITE_LENGTH; k++) after[at + k] = wanted[bytes + k];
    } else if (!isSame(before, at, wanted, bytes)) {
      foreign.push(i);
    }
  }
  return { from, to, start, before, after, foreign };
}

/** True if each change's wanted bytes stand in memory, as far as there is memory. */
export function areApplied(memory: TargetMemory, changes: SiteChanges): boolean {
  return appliedOnes(memory, changes).size === changes.length;
}

/** Indices of the changes whose wanted bytes stand in memory, or whose memory is no more. */
export function appliedOnes(memory: TargetMemory, changes: SiteChanges): Set<number> {
  const others = new Set(changes.addresses.keys());
  for (const { from, to, bytes } of spansOf(memory, changes)) {
    const [start] = extent(changes, from, to);
    for (let i = from; i < to; i++) {
      if (!isSame(bytes, changes.addresses[i] - start, changes.wanted, i * SITE_LENGTH)) others.delete(i);
    }
  }
  return others;
}

/** The changes in spans, each with the bytes that stand there; those left out whose memory is not there. */
function* spansOf(
  memory: TargetMemory,
  changes: SiteChanges,
): Generator<{ from: number; to: number; bytes: Uint8Array }> {
  const read = (from: number, to: number): Uint8Array | undefined => {
    const [start, length] = extent(changes, from, to);
    const bytes = memory.readSome(start, length);
    return bytes.length === length ? bytes : undefined;
  };
  for (let from = 0; from < changes.length;) {
    const to = spanEnd(changes.addresses, from);
    const whole = read(from, to);
    if (whole !== undefined) {
      yield { from, to, bytes: whole };
    } else {
      for (let i = from; i < to; i++) {
        const single = read(i, i + 1);
        if (single !== undefined) yield { from: i, to: i + 1, bytes: single };
      }
    }
    from = to;
  }
}

/** Where the run of sites ends that are near each other and begin with `from`: the index behind its last. */
function spanEnd(addresses: Float64Array, from: number): number {
  let to = from + 1;
  while (
    to < addresses.length &&
    addresses[to] - addresses[to - 1] < MAX_GAP &&
    addresses[to] - addresses[from] < MAX_SPAN
  ) {
    to++;
  }
  return to;
}

function isSame(bytes: Uint8Array, at: number, expected: Uint8Array, from: number): boolean {
  for (let i = 0; i < SITE_LENGTH; i++) if (bytes[at + i] !== expected[from + i]) return false;
  return true;
}

const JMP_REL32 = 0xe9;

/** Where the `jmp rel32` at `address` leads; undefined if the bytes are no such jump. */
export function jumpTarget(address: number, bytes: Uint8Array): number | undefined {
  if (bytes.length < SITE_LENGTH || bytes[0] !== JMP_REL32) return undefined;
  return address + SITE_LENGTH + new DataView(bytes.buffer, bytes.byteOffset).getInt32(1, true);
}

/** Puts the bytes of `jmp target` at `address` into `into` from index `at` on. */
export function putJump(into: Uint8Array, at: number, address: number, target: number): void {
  const distance = target - (address + SITE_LENGTH);
  into[at] = JMP_REL32;
  for (let i = 1; i < SITE_LENGTH; i++) into[at + i] = (distance >> (8 * (i - 1))) & 0xff;
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
