// Where functions leave, and which bytes there can become a jump to a stub. docs/design/landing.md has the rules.
import { CodeRanges, Trait } from './code-ranges.js';
import { Mark, type CodeRegion } from './code-regions.js';
import { common } from './common-instructions.js';
import { Flow } from './flow.js';
import { decodeFlow } from './instruction-flow.js';
import type { ModuleLandings } from './landings.js';
import { SITE_LENGTH } from './sites.js';

/** `return`: by `ret`. `tail`: by a jump out of the function; of a conditional one the side that is taken. */
export type ExitKind = 'return' | 'tail';

/**
 * How an exit fits. The first are one jump of five bytes, the last two a short jump to a `hole` with such a jump.
 *
 *     at        the exit itself, with padding behind it          ret; nop...
 *     behind    back over what goes straight to the exit         add rsp,8; pop rbx; ret
 *     branches  the same over conditional jumps too              je 1f; pop rbx; ret
 *     entry     the exit stands in the entry's site, or behind it in a straight line: one site, whose stub records both
 *     copy      the entry's stub runs the whole function, which calls nothing: one site
 *     hole      the hole is padding
 *     made      the hole is bytes that an entry's site displaces besides its own five
 */
export type ExitFit = 'at' | 'behind' | 'branches' | 'entry' | 'copy' | 'hole' | 'made';

/** One exit of a function. Addresses are those of the file. */
export interface ExitSite {
  readonly kind: ExitKind;
  readonly fit: ExitFit;
  readonly isConditional: boolean;
  /** The instruction that leaves, and its length. */
  readonly exit: number;
  readonly exitLength: number;
  /** First byte that changes; for `entry` and `copy` the entry's site. */
  readonly address: number;
  /** Bytes that change there: 5, or 2 where there is a hole. */
  readonly length: number;
  /** Bytes from `address` to behind the exit: what the stub does in their place. */
  readonly displacedLength: number;
  readonly displacedCount: number;
  /** Where the five-byte jump stands that the short one leads to. */
  readonly hole: number | undefined;
  /** For `made`: address of the function at whose entry the hole is; its entry has to be a site too. */
  readonly holeOf: number | undefined;
  /** One instruction within eight aligned bytes: a single store changes it, whoever executes it. */
  readonly isOneStore: boolean;
}

/** Why the exits of a function cannot all be sites. */
export type NoExitReason =
  | 'undecodable'
  | 'computed-jump'
  | 'falls-through'
  | 'entered-inside'
  | 'leaves-inside'
  | 'own-return'
  | 'odd-stack'
  | 'no-room';

export const NO_EXIT_EXPLANATIONS: Readonly<Record<NoExitReason, string>> = {
  undecodable: 'its instructions cannot all be decoded',
  'computed-jump': 'it has a jump of which it cannot be told whether it leaves',
  'falls-through': 'it goes on into what stands behind it',
  'entered-inside': 'another function jumps into its middle, and leaves by its end',
  'leaves-inside': 'it jumps into the middle of another function, and leaves by its end',
  'own-return': 'it reads or changes its own return address',
  'odd-stack': 'its stack pointer, where it leaves, is not known to be what it was at its entry',
  'no-room': 'code leads to one of its exits, which is too short for a jump, or to what stands before it',
};

/** Where a function is entered: the bytes of the entry's site, and how far they may grow. */
export interface EntryWindow {
  readonly address: number;
  /** Bytes that the site displaces. */
  readonly length: number;
  /** False for a site that a compiler prepared as a call: nothing can be added to it. */
  readonly mayGrow: boolean;
  /** True if the stub runs the whole function: all exits are in it. */
  readonly isWhole: boolean;
  /** Bytes of the whole function from `address` on, where it can be run as a copy; undefined where it cannot. */
  readonly whole: () => number | undefined;
}

/** How far back before an exit a window may begin. */
const MOST_BACK = 64;
/** Of padding behind an exit: more is not looked at. */
const MOST_PADDING = 64;
const SHORT_JUMP = 2;
/** A short jump reaches so far, from behind it. */
const REACH_BACK = -128;
const REACH_ON = 127;
/** Ownership is settled when no function changes; each round can only add functions whose neighbours gave bytes back. */
const MOST_ROUNDS = 4;
const STORE = 8;
const INT3 = 0xcc;
const NOP = 0x90;

/** An exit that was found, and what became of it. */
interface Found {
  readonly kind: ExitKind;
  readonly isConditional: boolean;
  readonly range: number;
  readonly exit: number;
  readonly length: number;
}

/** The exits of all functions of a file. */
export class ExitPlan {
  constructor(
    private readonly ranges: CodeRanges,
    private readonly sites: ReadonlyMap<number, readonly ExitSite[]>,
    private readonly reasons: ReadonlyMap<number, NoExitReason>,
    private readonly grown: ReadonlyMap<number, number>,
  ) {}

  /** All exits of the function at an address, or why they do not all fit. A function that never returns has none, and fits. */
  exitsOf(address: number): readonly ExitSite[] | NoExitReason {
    const index = this.ranges.startingAt(address);
    return this.reasons.get(index) ?? this.sites.get(index) ?? [];
  }

  /** Bytes that the entry's site of the function at an address displaces, with what exits and holes add to it; undefined: as it was. */
  entryLength(address: number): number | undefined {
    return this.grown.get(this.ranges.startingAt(address));
  }
}

/**
 * Finds for each function all of its exits, and for each a window. `entryOf` tells where the function of a range has its entry's site;
 * undefined: it cannot be traced. Every byte has one owner: entries first, then exits in the order of addresses, then holes. A
 * function of which one exit does not fit gives its bytes back, and those that had no room are tried again, until nothing changes.
 */
export function planExits(
  landings: ModuleLandings,
  entryOf: (range: number) => EntryWindow | undefined,
): ExitPlan {
  return new ExitPlanner(landings, entryOf).plan();
}

class ExitPlanner {
  readonly #ranges: CodeRanges;
  readonly #entries = new Map<number, EntryWindow>();
  readonly #found = new Map<number, Found[]>();
  readonly #reasons = new Map<number, NoExitReason>();
  readonly #sites = new Map<number, ExitSite[]>();
  /** Length of entries that exits or holes have made longer. */
  readonly #grown = new Map<number, number>();
  /** What the entries were that the function at hand has made longer. */
  #before: [range: number, length: number | undefined][] = [];
  /** Places for a jump of five bytes in padding, ascending. */
  #holes: number[] = [];
  #region: CodeRegion | undefined;

  constructor(
    private readonly landings: ModuleLandings,
    entryOf: (range: number) => EntryWindow | undefined,
  ) {
    this.#ranges = landings.ranges;
    for (let i = 0; i < this.#ranges.count; i++) {
      const entry = this.#ranges.has(i, Trait.fragment) ? undefined : entryOf(i);
      if (entry === undefined) continue;
      this.#entries.set(i, entry);
      this.#own(entry.address, SITE_LENGTH, true);
    }
  }

  plan(): ExitPlan {
    this.#find();
    this.#reject();
    this.#findHoles();
    let left = [...this.#ranges.owners.keys()].filter(
      (i) => this.#ranges.owners[i] === i && !this.#ranges.has(i, Trait.fragment) && !this.#reasons.has(i),
    );
    for (let round = 0; round < MOST_ROUNDS && left.length > 0; round++) {
      const failed = left.filter((i) => !this.#fit(i));
      if (failed.length === left.length) break;
      left = failed;
    }
    for (const i of left) this.#reasons.set(i, 'no-room');
    return new ExitPlan(this.#ranges, this.#sites, this.#reasons, this.#grown);
  }

  #find(): void {
    const { ends, leaving, indirect, jumpKinds, depths } = this.landings;
    const ranges = this.#ranges;
    /** Ranges that lead out of themselves. */
    const leads = new Set<number>();
    for (const { range } of leaving) leads.add(range);
    for (const { range } of indirect) leads.add(range);
    for (let k = 0; k < ends.ranges.length; k++)
      if (this.#isReturn(ends.addresses[k])) leads.add(ends.ranges[k]);
    for (let k = 0; k < ends.ranges.length; k++) {
      const exit = ends.addresses[k];
      if (!this.#isReturn(exit)) continue;
      this.#add({
        kind: 'return',
        isConditional: false,
        range: ends.ranges[k],
        exit,
        length: ends.lengths[k],
      });
    }
    for (const { range, address, length, target, isConditional } of leaving) {
      if (range < 0) continue;
      const to = ranges.indexAt(target);
      if (to >= 0 && ranges.owners[to] === ranges.owners[range]) continue;
      // Two functions may share a part: one that never returns is no exit of either.
      if (to >= 0 && ranges.has(to, Trait.fragment)) {
        if (leads.has(to)) this.#refuse(range, 'leaves-inside');
        continue;
      }
      // clang ends functions so where it knows that nobody comes: behind them is nothing of theirs, and something is on the stack.
      const isEnd =
        target === ranges.ends[range] && this.landings.depths.isCallFrame(range, address) === false;
      if (isEnd) continue;
      // Code of nobody may be a part of this function as well as of any other, unless it is an entry of the PLT.
      if (to < 0 && !this.#isStub(target)) this.#refuse(range, 'leaves-inside');
      this.#add({ kind: 'tail', isConditional, range, exit: address, length });
    }
    indirect.forEach(({ range, address, length }, k) => {
      if (jumpKinds[k] === 'table') return;
      const isTail = depths.isCallFrame(range, address);
      // With something on the stack it goes on within the function: to a label whose address was taken.
      if (isTail === false) return;
      if (isTail === undefined || jumpKinds[k] === 'open' || this.#hasLabels(ranges.owners[range])) {
        this.#refuse(range, 'computed-jump');
        return;
      }
      this.#add({ kind: 'tail', isConditional: false, range, exit: address, length });
    });
  }

  #add(found: Found): void {
    const owner = this.#ranges.owners[found.range];
    const known = this.#found.get(owner);
    if (known === undefined) this.#found.set(owner, [found]);
    else known.push(found);
    // At an exit the stack pointer is the slot that the entry saw.
    if (this.landings.depths.isCallFrame(found.range, found.exit) !== true) this.#refuse(owner, 'odd-stack');
  }

  #refuse(range: number, reason: NoExitReason): void {
    const owner = this.#ranges.owners[range];
    if (!this.#reasons.has(owner)) this.#reasons.set(owner, reason);
  }

  #reject(): void {
    const ranges = this.#ranges;
    const reasons: readonly (readonly [number, NoExitReason])[] = [
      [Trait.undecodable, 'undecodable'],
      [Trait.openJump, 'computed-jump'],
      [Trait.fallsThrough, 'falls-through'],
      [Trait.enteredInside, 'entered-inside'],
      [Trait.leavesInside, 'leaves-inside'],
      [Trait.ownReturn, 'own-return'],
    ];
    for (let i = 0; i < ranges.count; i++)
      for (const [trait, reason] of reasons) if (ranges.has(i, trait)) this.#refuse(i, reason);
  }

  /** True for `ret` in all its forms; `ud2`, `iretq` and the like leave nobody who is waited for. */
  #isReturn(address: number): boolean {
    const region = this.landings.regions.at(address);
    if (region === undefined) return false;
    let at = address - region.start;
    while (region.bytes[at] === 0xf2 || region.bytes[at] === 0xf3 || region.bytes[at] === 0x66) at++;
    return region.bytes[at] === 0xc3 || region.bytes[at] === 0xc2;
  }

  /** True for `jmp *slot(%rip)`, and what older linkers put there: an entry of the PLT. */
  #isStub(address: number): boolean {
    const region = this.landings.regions.at(address);
    if (region === undefined) return true;
    const { bytes } = region;
    let at = address - region.start;
    if (bytes[at] === 0xf3 && bytes[at + 1] === 0x0f && bytes[at + 2] === 0x1e) at += 4;
    if (bytes[at] === 0xf2) at++;
    return (bytes[at] === 0xff && bytes[at + 1] === 0x25) || bytes[at] === 0x68;
  }

  /** True if the address of something within a function was taken, other than by tables that its jumps are known to read. */
  #hasLabels(owner: number): boolean {
    const { starts, ends } = this.#ranges;
    const region = this.#regionAt(starts[owner]);
    const end = ends[owner] - region.start;
    for (let at = starts[owner] - region.start + SITE_LENGTH; at < end; at++)
      if ((region.marks[at] & (Mark.called | Mark.entry)) === Mark.called) return true;
    return false;
  }

  /** Padding behind what does not come back, in pieces of five bytes that nobody owns and on which nobody lands. */
  #findHoles(): void {
    const holes: number[] = [];
    for (const list of this.#found.values())
      for (const { exit, length, isConditional } of list) {
        if (isConditional) continue;
        const region = this.#regionAt(exit);
        const first = exit + length - region.start;
        const end = first + this.#padding(region, first);
        // A window at the exit itself takes padding first: holes are counted from the end.
        for (let at = end - SITE_LENGTH; at >= first; at -= SITE_LENGTH) holes.push(region.start + at);
      }
    this.#holes = holes.sort((a, b) => a - b);
  }

  /** Bytes of padding at an index: `nop` in its forms and `int3`, up to where somebody lands. */
  #padding(region: CodeRegion, from: number): number {
    const { bytes, marks } = region;
    const limit = Math.min(from + MOST_PADDING, bytes.length);
    let at = from;
    while (at < limit) {
      let next = at + 1;
      if (bytes[at] !== INT3 && bytes[at] !== NOP) {
        decodeFlow(bytes, at, bytes.length);
        if (common.flow === Flow.invalid || !common.isNop) break;
        next = common.end;
      }
      for (let i = at; i < next; i++) if ((marks[i] & Mark.landing) !== 0) return i - from;
      at = next;
    }
    return Math.min(at, limit) - from;
  }

  /** Finds windows for all exits of a function; gives everything back if one has none. */
  #fit(owner: number): boolean {
    const list = this.#found.get(owner) ?? [];
    const entry = this.#entries.get(owner);
    const sites: ExitSite[] = [];
    this.#before = [];
    if (entry?.isWhole === true) return this.#copy(owner, entry, list, entry.length);
    for (const found of list) {
      const site = this.#fitOne(found, owner, entry);
      if (site === undefined) {
        this.#release(sites);
        const length = this.#grown.has(owner) ? undefined : entry?.whole();
        return entry !== undefined && length !== undefined && this.#copy(owner, entry, list, length);
      }
      sites.push(site);
    }
    this.#sites.set(owner, sites);
    return true;
  }

  /** All exits within a copy of the function. */
  #copy(owner: number, entry: EntryWindow, list: readonly Found[], length: number): boolean {
    if (length > entry.length) this.#grow(owner, length);
    const sites = list.map((found) => this.#site(found, 'copy', entry.address, length, 0));
    this.#sites.set(owner, sites);
    return true;
  }

  #grow(range: number, length: number): void {
    const known = this.#grown.get(range);
    if (known !== undefined && known >= length) return;
    this.#before.push([range, known]);
    this.#grown.set(range, length);
  }

  #release(sites: readonly ExitSite[]): void {
    for (const { fit, address, length, hole } of sites) {
      if (fit !== 'entry' && fit !== 'copy') this.#own(address, length, false);
      if (hole !== undefined) this.#own(hole, SITE_LENGTH, false);
    }
    for (const [range, length] of this.#before.reverse()) {
      if (length === undefined) this.#grown.delete(range);
      else this.#grown.set(range, length);
    }
  }

  #fitOne(found: Found, owner: number, entry: EntryWindow | undefined): ExitSite | undefined {
    return (
      this.#together(found, owner, entry) ??
      this.#straight(found, owner, entry, false) ??
      this.#short(found, owner, entry, false) ??
      this.#straight(found, owner, entry, true) ??
      this.#short(found, owner, entry, true)
    );
  }

  /** The entry's site, if the exit stands in it, or so close behind that no other window fits between. */
  #together(found: Found, owner: number, entry: EntryWindow | undefined): ExitSite | undefined {
    if (entry === undefined || found.range !== owner || !entry.mayGrow || found.isConditional)
      return undefined;
    const { exit, length } = found;
    const region = this.#regionAt(exit);
    // Else a window of its own is better: entry and exit can then be changed one at a time.
    if (exit >= entry.address + SITE_LENGTH && this.#window(found, entry, false) !== undefined)
      return undefined;
    if (exit - entry.address > MOST_BACK) return undefined;
    let count = 0;
    let at = entry.address - region.start;
    const last = exit - region.start;
    while (at < last) {
      if (at + region.start > entry.address && this.#isKnown(region, at)) return undefined;
      if (!this.#isPlain(region, at, false)) return undefined;
      count++;
      at = common.end;
    }
    if (at !== last || (exit > entry.address && this.#isKnown(region, last))) return undefined;
    const displaced = exit + length - entry.address;
    if (displaced > entry.length) this.#grow(owner, displaced);
    return this.#site(found, 'entry', entry.address, displaced, count + 1);
  }

  /** A jump of five bytes at the exit, or before it. */
  #straight(
    found: Found,
    owner: number,
    entry: EntryWindow | undefined,
    withBranches: boolean,
  ): ExitSite | undefined {
    const window = this.#window(found, found.range === owner ? entry : undefined, withBranches);
    if (window === undefined) return undefined;
    const { address, count } = window;
    this.#own(address, SITE_LENGTH, true);
    const fit = count === 1 ? 'at' : withBranches ? 'branches' : 'behind';
    return this.#site(found, fit, address, found.exit + found.length - address, count);
  }

  #window(
    found: Found,
    entry: EntryWindow | undefined,
    withBranches: boolean,
  ): { address: number; count: number } | undefined {
    const region = this.#regionAt(found.exit);
    const { start } = region;
    const exit = found.exit - start;
    const behind = exit + found.length;
    const end = behind + (found.isConditional ? 0 : this.#padding(region, behind));
    const first = this.#ranges.starts[found.range] - start;
    const barrier = entry === undefined ? first : Math.max(first, entry.address + SITE_LENGTH - start);
    let at = exit;
    for (let count = 1; ; count++) {
      if (at + SITE_LENGTH <= end && at >= barrier && this.#isFree(region, at, SITE_LENGTH))
        return { address: start + at, count };
      // Whoever lands here would pass by a window that begins before.
      if (this.#isKnown(region, at)) return undefined;
      const before = this.#previous(region, at, barrier);
      if (before < 0 || exit - before > MOST_BACK || !this.#isPlain(region, before, withBranches))
        return undefined;
      at = before;
    }
  }

  /** A short jump to a hole: one that is there, or one that is made for it. */
  #short(
    found: Found,
    owner: number,
    entry: EntryWindow | undefined,
    mayMake: boolean,
  ): ExitSite | undefined {
    const region = this.#regionAt(found.exit);
    const { start } = region;
    const exit = found.exit - start;
    const behind = exit + found.length;
    const end = behind + (found.isConditional ? 0 : this.#padding(region, behind));
    const first = this.#ranges.starts[found.range] - start;
    const barrier =
      entry === undefined || found.range !== owner
        ? first
        : Math.max(first, entry.address + SITE_LENGTH - start);
    let at = exit;
    for (let count = 1; ; count++) {
      if (at + SHORT_JUMP <= end && at >= barrier && this.#isFree(region, at, SHORT_JUMP)) {
        const address = start + at;
        const displaced = found.exit + found.length - address;
        this.#own(address, SHORT_JUMP, true);
        const hole = mayMake ? undefined : this.#hole(address + SHORT_JUMP);
        if (hole !== undefined) {
          this.#own(hole, SITE_LENGTH, true);
          return this.#site(found, 'hole', address, displaced, count, hole);
        }
        const made = mayMake ? this.#makeHole(found.range, owner, address + SHORT_JUMP) : undefined;
        if (made !== undefined)
          return this.#site(found, 'made', address, displaced, count, made.hole, made.of);
        this.#own(address, SHORT_JUMP, false);
      }
      if (this.#isKnown(region, at)) return undefined;
      const before = this.#previous(region, at, barrier);
      if (before < 0 || exit - before > MOST_BACK || !this.#isPlain(region, before, false)) return undefined;
      at = before;
    }
  }

  /** A free hole that a short jump which ends at `from` reaches. */
  #hole(from: number): number | undefined {
    const holes = this.#holes;
    let low = 0;
    let high = holes.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (holes[middle] < from + REACH_BACK) low = middle + 1;
      else high = middle;
    }
    for (; low < holes.length && holes[low] <= from + REACH_ON; low++) {
      const region = this.#regionAt(holes[low]);
      const at = holes[low] - region.start;
      if (this.#isFree(region, at, SITE_LENGTH) && !this.#isLanding(region, at)) return holes[low];
    }
    return undefined;
  }

  /** Five bytes behind an entry's own five, displaced with them: of this function, or of a neighbour. */
  #makeHole(range: number, owner: number, from: number): { hole: number; of: number } | undefined {
    for (const candidate of [owner, range + 1, range - 1, range + 2, range - 2]) {
      const entry = this.#entries.get(candidate);
      if (entry === undefined || !entry.mayGrow || entry.isWhole) continue;
      const hole = entry.address + SITE_LENGTH;
      if (hole - from < REACH_BACK || hole - from > REACH_ON) continue;
      const region = this.#regionAt(entry.address);
      const first = entry.address - region.start;
      if (
        !this.#isFree(region, first + SITE_LENGTH, SITE_LENGTH) ||
        this.#isLanding(region, first + SITE_LENGTH)
      )
        continue;
      let at = first;
      while (at < first + 2 * SITE_LENGTH && this.#isPlain(region, at, false)) {
        at = common.end;
        if (at < first + 2 * SITE_LENGTH && this.#isLanding(region, at)) break;
      }
      if (at < first + 2 * SITE_LENGTH) continue;
      this.#own(hole, SITE_LENGTH, true);
      this.#grow(candidate, at - first);
      return { hole, of: this.#ranges.starts[candidate] };
    }
    return undefined;
  }

  #site(
    { kind, isConditional, exit, length: exitLength }: Found,
    fit: ExitFit,
    address: number,
    displacedLength: number,
    displacedCount: number,
    hole?: number,
    holeOf?: number,
  ): ExitSite {
    const length = hole === undefined ? SITE_LENGTH : SHORT_JUMP;
    const isOneStore =
      displacedCount === 1 && Math.floor(address / STORE) === Math.floor((address + length - 1) / STORE);
    return {
      kind,
      fit,
      isConditional,
      exit,
      exitLength,
      address,
      length,
      displacedLength,
      displacedCount,
      hole,
      holeOf,
      isOneStore,
    };
  }

  #regionAt(address: number): CodeRegion {
    const last = this.#region;
    if (last !== undefined && address >= last.start && address < last.end) return last;
    const region = this.landings.regions.at(address);
    if (region === undefined) throw new Error(`no code at 0x${address.toString(16)}, where it was decoded`);
    this.#region = region;
    return region;
  }

  /** Index of the instruction that ends at `at`; -1 if none begins at or behind `barrier`. */
  #previous({ marks }: CodeRegion, at: number, barrier: number): number {
    for (let before = at - 1; before >= barrier && before >= at - 15; before--)
      if ((marks[before] & Mark.instruction) !== 0) return before;
    return -1;
  }

  /** Decodes the instruction at `at`: true if it does nothing but go on, or jump where a stub can send it. */
  #isPlain({ bytes }: CodeRegion, at: number, withBranches: boolean): boolean {
    decodeFlow(bytes, at, bytes.length);
    const { flow } = common;
    // Threads wait behind a system call, in the middle of the window: syscall, sysenter.
    if (bytes[at] === 0x0f && (bytes[at + 1] === 0x05 || bytes[at + 1] === 0x34)) return false;
    if (flow === Flow.conditionalJump) return withBranches && (bytes[at] & 0xfc) !== 0xe0;
    return flow === Flow.next || flow === Flow.leaRelative;
  }

  #isKnown({ marks }: CodeRegion, at: number): boolean {
    return (marks[at] & Mark.known) !== 0;
  }

  #isLanding({ marks }: CodeRegion, at: number): boolean {
    return (marks[at] & Mark.landing) !== 0;
  }

  /** True if nobody owns any of the bytes, and nothing lands behind the first. */
  #isFree({ marks }: CodeRegion, at: number, length: number): boolean {
    if (at + length > marks.length || (marks[at] & Mark.owned) !== 0) return false;
    for (let i = at + 1; i < at + length; i++)
      if ((marks[i] & (Mark.owned | Mark.landing)) !== 0) return false;
    return true;
  }

  #own(address: number, length: number, isOwned: boolean): void {
    const region = this.#regionAt(address);
    const first = address - region.start;
    for (let i = first; i < Math.min(first + length, region.marks.length); i++) {
      if (isOwned) region.marks[i] |= Mark.owned;
      else region.marks[i] &= ~Mark.owned;
    }
  }
}
