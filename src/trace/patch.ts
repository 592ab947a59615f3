// Changing sites: whole spans at a time, read, compared with what must be there, and each written back in one go. Every
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

  /** The bytes that must stand there before. */
  expectedOf(i: number): Uint8Array {
    return siteBytes(this.expected, i);
  }

  /** What undoes them. */
  reversed(): SiteChanges {
    return new SiteChanges(this.addresses, this.wanted, this.expected);
  }

  /** Those of these indices. */
  only(indices: ReadonlySet<number>): SiteChanges {
    const others = new Set(indices.size === this.length ? [] : this.addresses.keys());
    for (const i of indices) others.delete(i);
    return this.without(others);
  }

  /** The others than those of these indices. What stays is copied in whole pieces: threads may stand still meanwhile. */
  without(indices: ReadonlySet<number>): SiteChanges {
    if (indices.size === 0) return this;
    const gaps = [...indices].filter((i) => i >= 0 && i < this.length).sort((a, b) => a - b);
    const kept = this.length - gaps.length;
    const others = new SiteChanges(
      new Float64Array(kept),
      new Uint8Array(kept * SITE_LENGTH),
      new Uint8Array(kept * SITE_LENGTH),
    );
    let from = 0;
    gaps.concat(this.length).forEach((to, before) => {
      const at = from - before;
      if (to > from) {
        const bytes = [from * SITE_LENGTH, to * SITE_LENGTH] as const;
        others.addresses.set(this.addresses.subarray(from, to), at);
        others.expected.set(this.expected.subarray(...bytes), at * SITE_LENGTH);
        others.wanted.set(this.wanted.subarray(...bytes), at * SITE_LENGTH);
      }
      from = to + 1;
    });
    return others;
  }
}

/** Sites further apart than this are written separately: copying bytes that stay costs less than a system call. */
const MAX_GAP = PAGE;
const MAX_SPAN = 4 << 20;
/** Bytes of spans that are looked at in one go. */
const MAX_BATCH = 256 << 10;

/** A run of sites that are near each other, with the bytes that stand there and those that are to. */
interface Span {
  /** Indices of its first site, and behind its last. */
  readonly from: number;
  readonly to: number;
  readonly start: number;
  /** Kept as it is to be found when the span is written. */
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
  /** Those that lie across the end of a page, where they can be written whole. */
  readonly #across: readonly AcrossPages[];
  /** For any batch of spans when changes are applied: memory that the kernel has found for us already. */
  readonly #room: Uint8Array;

  private constructor(
    memory: TargetMemory,
    changes: SiteChanges,
    writeWhole: WriteWhole | undefined,
    spans: readonly Span[],
    across: readonly AcrossPages[],
    room: Uint8Array,
  ) {
    this.#memory = memory;
    this.#writeWhole = writeWhole;
    this.changes = changes;
    this.#spans = spans;
    this.#across = across;
    this.#room = room;
  }

  static of(memory: TargetMemory, changes: SiteChanges, writeWhole?: WriteWhole): PreparedChanges {
    const spans = [...spansOf(memory, changes)].map(({ from, to, start, bytes }) =>
      spanOf(changes, from, to, start, bytes),
    );
    const largest = spans.reduce((most, { before }) => Math.max(most, before.length), MAX_BATCH);
    const room = new Uint8Array(Math.min(largest, bytesOf(spans)));
    // New memory is there when it is first written to.
    room.fill(0);
    const across = writeWhole === undefined ? [] : spans.flatMap((span) => acrossPages(span, changes));
    return new PreparedChanges(memory, changes, writeWhole, spans, across, room);
  }

  /** Others in the same memory, made ready now. */
  others(changes: SiteChanges): PreparedChanges {
    return changes === this.changes ? this : PreparedChanges.of(this.#memory, changes, this.#writeWhole);
  }

  /** The others than those of these indices, as they are ready already. In little time, where these are few. */
  without(indices: ReadonlySet<number>): PreparedChanges {
    if (indices.size === 0) return this;
    const changes = this.changes.without(indices);
    const spans: Span[] = [];
    let gone = 0;
    for (const span of this.#spans) {
      const from = span.from - gone;
      for (let i = span.from; i < span.to; i++) if (indices.has(i)) gone++;
      const to = span.to - gone;
      if (to - from === span.to - span.from)
        spans.push({ ...span, from, to, foreign: movedBy(span.foreign, from - span.from) });
      else if (to > from) spans.push(spanOf(changes, from, to, span.start, span.before));
    }
    const out = new Set([...indices].map((i) => this.changes.addresses[i]));
    const across = this.#across.filter(({ address }) => !out.has(address));
    return new PreparedChanges(this.#memory, changes, this.#writeWhole, spans, across, this.#room);
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
    this.#writeAcross();
    for (const some of batchesOf(this.#spans)) {
      for (const { start, before, after, foreign: others } of this.#lookAgain(some)) {
        for (const index of others) foreign.add(index);
        if (Buffer.compare(before, after) === 0) continue;
        try {
          this.#memory.changeCode(start, before, after);
        } catch (error) {
          if (!isSafepokeError(error) || error.code !== 'HANDLER_BUSY') throw error;
          // Each site is as it was or as it is to be: those that are as they were are left so.
          const left = new Set(changes.addresses.keys());
          for (const index of appliedOnes(this.#memory, changes)) left.delete(index);
          for (const index of left) this.left.add(index);
          return foreign;
        }
      }
    }
    return foreign;
  }

  /** Writes the sites that lie across the end of a page, all in one go: each time somebody else has to do it for us. */
  #writeAcross(): void {
    const across = this.#across;
    if (this.#writeWhole === undefined || across.length === 0) return;
    const now = new Uint8Array(across.length * SITE_LENGTH);
    this.#memory.readInto(
      across.map(({ address }) => ({ address, length: SITE_LENGTH })),
      now,
    );
    const asBefore = across.filter(
      ({ before, bytes }, i) =>
        Buffer.compare(before, siteBytes(now, i)) === 0 && Buffer.compare(before, bytes) !== 0,
    );
    if (asBefore.length === 0) return;
    this.#writeWhole(asBefore);
    for (const { before, bytes } of asBefore) before.set(bytes);
  }

  /** Spans as they are now; those left out whose memory is no more. All are read at once. */
  #lookAgain(prepared: readonly Span[]): Span[] {
    const ranges = prepared.map(({ start, before }) => ({ address: start, length: before.length }));
    this.#memory.readInto(ranges, this.#room.subarray(0, bytesOf(prepared)));
    const spans: Span[] = [];
    let at = 0;
    for (const span of prepared) {
      const { from, to, start, before } = span;
      const now = this.#room.subarray(at, (at += before.length));
      if (Buffer.compare(now, before) === 0) {
        spans.push(span);
        continue;
      }
      // What cannot be read is zero in `now`, which may be what stands there too.
      const again = this.#memory.readSome(start, before.length);
      if (again.length === before.length) spans.push(spanOf(this.changes, from, to, start, again));
    }
    return spans;
  }
}

function bytesOf(spans: readonly Span[]): number {
  return spans.reduce((sum, { before }) => sum + before.length, 0);
}

/** Spans that are looked at in one go: with as few calls as can be, and each shortly before it is written. */
function batchesOf(spans: readonly Span[]): Span[][] {
  const batches: Span[][] = [];
  let bytes = MAX_BATCH;
  for (const span of spans) {
    bytes += span.before.length;
    if (bytes > MAX_BATCH) {
      batches.push([]);
      bytes = span.before.length;
    }
    batches[batches.length - 1].push(span);
  }
  return batches;
}

function movedBy(indices: readonly number[], distance: number): readonly number[] {
  return distance === 0 ? indices : indices.map((index) => index + distance);
}

/** A site across the end of a page, as it is to be; `before` is the part of its span's own. */
interface AcrossPages extends WholeSite {
  readonly before: Uint8Array;
}

function acrossPages({ from, to, start, before, after }: Span, { addresses }: SiteChanges): AcrossPages[] {
  const across: AcrossPages[] = [];
  for (let i = from; i < to; i++) {
    if (addresses[i] % PAGE <= PAGE - SITE_LENGTH) continue;
    const at = addresses[i] - start;
    across.push({
      address: addresses[i],
      bytes: after.subarray(at, at + SITE_LENGTH),
      before: before.subarray(at, at + SITE_LENGTH),
    });
  }
  return across;
}

/** Applies changes that are not prepared. @throws CannotError MEMORY */
export function applyChanges(memory: TargetMemory, changes: SiteChanges): Set<number> {
  return PreparedChanges.of(memory, changes).apply();
}

/**
 * Address and length of the span from one site up to before another. It begins at the start of a page: the kernel writes page by
 * page, and should we be killed in between, no site within a page may be half changed.
 */
function extent({ addresses }: SiteChanges, from: number, to: number): [number, number] {
  const start = pageOf(addresses[from]);
  return [start, addresses[to - 1] + SITE_LENGTH - start];
}

/** Looks at each site of a span that begins at `start` and in which `before` stands. */
function spanOf(changes: SiteChanges, from: number, to: number, start: number, before: Uint8Array): Span {
  const { addresses, expected, wanted } = changes;
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
  for (const { from, to, start, bytes } of spansOf(memory, changes)) {
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
): Generator<{ from: number; to: number; start: number; bytes: Uint8Array }> {
  const read = (from: number, to: number): { start: number; bytes: Uint8Array } | undefined => {
    const [start, length] = extent(changes, from, to);
    const bytes = memory.readSome(start, length);
    return bytes.length === length ? { start, bytes } : undefined;
  };
  for (let from = 0; from < changes.length;) {
    const to = spanEnd(changes.addresses, from);
    const whole = read(from, to);
    if (whole !== undefined) {
      yield { from, to, ...whole };
    } else {
      for (let i = from; i < to; i++) {
        const single = read(i, i + 1);
        if (single !== undefined) yield { from: i, to: i + 1, ...single };
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

export const JMP_REL32 = 0xe9;
/** The second byte of `0F 8x`, a conditional jump of which we change the distance. */
const isConditional = (opcode: number): boolean => (opcode & 0xf0) === 0x80;

/** Where the branch whose last five bytes are at `address` leads; undefined if they are of none that we write. */
export function jumpTarget(address: number, bytes: Uint8Array): number | undefined {
  if (bytes.length < SITE_LENGTH || (bytes[0] !== JMP_REL32 && !isConditional(bytes[0]))) return undefined;
  return address + SITE_LENGTH + new DataView(bytes.buffer, bytes.byteOffset).getInt32(1, true);
}

export const INT3 = 0xcc;

/** True if bytes that were read are those of a site, but for somebody's breakpoint on the first of them. */
export function isUnderBreakpoint(bytes: Uint8Array, site: Uint8Array): boolean {
  return (
    bytes.length === site.length && bytes[0] === INT3 && site.every((byte, i) => i === 0 || byte === bytes[i])
  );
}

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
