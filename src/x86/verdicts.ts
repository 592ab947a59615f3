// The verdict on each function of a file: as numbers, since there may be a million, and as bytes, to be kept.
import { ending } from '../errors/index.js';
import type { ElfFile } from '../elf/index.js';
import { CodeRanges, Trait } from './code-ranges.js';
import { Mark } from './code-regions.js';
import { CompilerSites } from './compiler-sites.js';
import { endbrLength, measureDisplaced, type DisplacedExtent } from './displaced.js';
import { withSharedDecoders } from './instruction-flow.js';
import { ModuleLandings } from './landings.js';
import { DEPTH_UNIT, mayRunFault, placeBehind, type FunctionCode, type PlacedSite } from './site-behind.js';
import { SITE_LENGTH, type FunctionRange, type RefusalReason, type SiteKind } from './sites.js';

/** Longer functions are not copied as a whole for the sake of a loop at their entry. */
const LONGEST_COPIED = 4096;

/** What stands for each verdict in the table. The order is that of the kept bytes: with it changes `VERDICTS_VERSION`. */
const CODES: readonly (SiteKind | RefusalReason)[] = [
  'relocated',
  'patchable',
  'fentry',
  'call-site',
  'too-short',
  'branched-into',
  're-entered',
  'computed-jump',
  'cold-fragment',
  'ifunc-resolver',
  'call-in-prologue',
  'not-relocatable',
  'not-code',
  'overlaps',
  'may-fault',
];
const SITE_KINDS = 4;
/** Raised with every change of what the analysis answers or how it is written down. */
export const VERDICTS_VERSION = 3;

const IS_WHOLE = 1;
const OWN_RETURN = 2;
/** Bits of the flags above which the depth stands. */
const DEPTH_SHIFT = 2;
/** Bytes of each verdict: code, flags and depth, and three numbers of 16 bits. */
const BYTES = 8;
const MOST_IN_16_BITS = 0xffff;

/** Where the site of a function would be, by offsets from its address. */
export interface EntryVerdict {
  readonly kind: SiteKind;
  readonly offset: number;
  readonly length: number;
  readonly count: number;
  readonly isWhole: boolean;
  readonly usesOwnReturn: boolean;
  /** As `SiteCandidate.depth`. */
  readonly depth: number;
}

/** One verdict for each function of a file, in their order. */
export class Verdicts {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;

  private constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Analyses the file. `functions`: all that are known of it, ascending. */
  static of(
    elf: ElfFile,
    functions: readonly FunctionRange[],
    landings = ModuleLandings.of(elf, functions),
  ): Verdicts {
    const verdicts = new Verdicts(new Uint8Array(functions.length * BYTES));
    withSharedDecoders(() => {
      const judge = new EntryJudge(elf, functions, landings);
      functions.forEach((range, i) => {
        ending.lookAt(i);
        verdicts.#set(i, judge.judge(range));
      });
    });
    return verdicts;
  }

  /** What `toBytes` gave for a file with `count` functions; undefined if the bytes are anything else. */
  static fromBytes(bytes: Uint8Array, count: number): Verdicts | undefined {
    if (bytes.length !== count * BYTES) return undefined;
    const verdicts = new Verdicts(bytes);
    for (let i = 0; i < count; i++) {
      const code = bytes[i * BYTES];
      if (code >= CODES.length) return undefined;
      const verdict = verdicts.at(i);
      if (typeof verdict === 'string') continue;
      const { length, count: instructions, depth, offset } = verdict;
      if (length < SITE_LENGTH || instructions < 1 || instructions > length) return undefined;
      // What has pushed something stands before the site.
      if (depth > 0 && offset === 0) return undefined;
    }
    return verdicts;
  }

  toBytes(): Uint8Array {
    return this.#bytes;
  }

  get count(): number {
    return this.#bytes.length / BYTES;
  }

  /** How many functions can have a site. */
  get sites(): number {
    let sites = 0;
    for (let at = 0; at < this.#bytes.length; at += BYTES) if (this.#bytes[at] < SITE_KINDS) sites++;
    return sites;
  }

  at(index: number): EntryVerdict | RefusalReason {
    const at = index * BYTES;
    const code = CODES[this.#bytes[at]];
    if (this.#bytes[at] >= SITE_KINDS) return code as RefusalReason;
    const flags = this.#bytes[at + 1];
    return {
      kind: code as SiteKind,
      offset: this.#view.getUint16(at + 2, true),
      length: this.#view.getUint16(at + 4, true),
      count: this.#view.getUint16(at + 6, true),
      isWhole: (flags & IS_WHOLE) !== 0,
      usesOwnReturn: (flags & OWN_RETURN) !== 0,
      depth: (flags >>> DEPTH_SHIFT) * DEPTH_UNIT,
    };
  }

  #set(index: number, verdict: EntryVerdict | RefusalReason): void {
    const at = index * BYTES;
    if (typeof verdict === 'string') {
      this.#bytes[at] = CODES.indexOf(verdict);
      return;
    }
    const { kind, offset, length, count, isWhole, usesOwnReturn, depth } = verdict;
    this.#bytes[at] = CODES.indexOf(kind);
    const flags = (isWhole ? IS_WHOLE : 0) | (usesOwnReturn ? OWN_RETURN : 0);
    this.#bytes[at + 1] = flags | ((depth / DEPTH_UNIT) << DEPTH_SHIFT);
    this.#view.setUint16(at + 2, offset, true);
    this.#view.setUint16(at + 4, length, true);
    this.#view.setUint16(at + 6, count, true);
  }
}

/** Judges the entry of one function after the other. */
class EntryJudge {
  readonly #compilerSites: CompilerSites;
  /** Functions of which other ranges are parts. */
  readonly #hasParts = new Set<number>();

  constructor(
    elf: ElfFile,
    functions: readonly FunctionRange[],
    private readonly landings: ModuleLandings,
  ) {
    this.#compilerSites = new CompilerSites(elf, functions);
    const { owners, count } = landings.ranges;
    for (let i = 0; i < count; i++) if (owners[i] !== i) this.#hasParts.add(owners[i]);
  }

  judge(range: FunctionRange): EntryVerdict | RefusalReason {
    const { landings } = this;
    const { addressNumber: start, size } = range;
    const { ranges, regions } = landings;
    if (range.kind === 'ifunc') return 'ifunc-resolver';
    const region = regions.at(start);
    if (region === undefined || start + Math.max(size, 1) > region.end) return 'not-code';
    const index = ranges.startingAt(start);
    const has = (trait: number): boolean => index >= 0 && ranges.has(index, trait);
    if (range.kind === 'fragment' || has(Trait.fragment)) return 'cold-fragment';
    const { bytes } = region;
    const first = start - region.start;
    const prepared = this.#compilerSites.find(range, bytes, first);
    if (prepared !== undefined) {
      const { kind, offset } = prepared;
      const why = this.#obstacle(start + offset);
      if (why !== undefined) return why;
      return has(Trait.reentered)
        ? 're-entered'
        : verdictOn(kind, { ...prepared, offset, depth: 0 }, false, has(Trait.ownReturn));
    }
    const offset = endbrLength(bytes, first);
    const end = first + size;
    const padded = this.#paddedEnd(ranges, start + size) - region.start;
    const code: FunctionCode = { range: index, bytes, base: region.start, first, end, padded };
    const extent = measureDisplaced(bytes, first + offset, end, padded);
    if (typeof extent === 'string') return extent;
    if (has(Trait.undecodable)) return 'not-relocatable';
    if (has(Trait.openJump)) return 'computed-jump';
    const isWhole = has(Trait.reentered);
    let placed: PlacedSite | undefined = { ...extent, offset, depth: 0 };
    if (!isWhole && mayRunFault(landings, code, first + offset, extent.count)) {
      placed = placeBehind(landings, code, first + offset);
      if (placed === undefined) return this.#obstacle(start + offset) ?? 'may-fault';
    }
    const why = this.#obstacle(start + placed.offset);
    if (why !== undefined) return why;
    if (isWhole) {
      const whole = this.#whole(index, bytes, first, offset, region.start);
      if (whole === undefined) return 're-entered';
      // What may fault is in the copy too: nobody has the address of an instruction of such a function, and a turn of its loop is no call.
      placed = { ...whole, offset, depth: 0 };
    }
    return verdictOn('relocated', placed, isWhole, has(Trait.ownReturn));
  }

  /** Why the five bytes at an address cannot be changed. Behind them everybody may land, on what has always stood there. */
  #obstacle(site: number): RefusalReason | undefined {
    if (this.landings.startsWithin(site + 1, site + SITE_LENGTH)) return 'overlaps';
    return this.landings.landsWithin(site + 1, site + SITE_LENGTH) ? 'branched-into' : undefined;
  }

  /** Where padding behind a function ends at the latest: the next range, or the end of the code. */
  #paddedEnd({ starts, count }: CodeRanges, end: number): number {
    const next = this.landings.firstRangeFrom(end);
    const region = this.landings.regions.at(end - 1);
    return Math.min(next < count ? starts[next] : Infinity, region?.end ?? end);
  }

  /** All instructions of a function from its site on, if it can be copied so that nobody ever comes back into the original. */
  #whole(
    index: number,
    bytes: Uint8Array,
    first: number,
    offset: number,
    base: number,
  ): DisplacedExtent | undefined {
    const { ranges, regions } = this.landings;
    const site = first + offset;
    const end = ranges.ends[index] - base;
    const wanted = end - site;
    if (wanted < SITE_LENGTH || wanted > LONGEST_COPIED) return undefined;
    if (ranges.has(index, Trait.indirect | Trait.fallsThrough) || this.#hasParts.has(index)) return undefined;
    const region = regions.at(base);
    for (let at = site + 1; at < end; at++) {
      const marks = region?.marks[at] ?? 0;
      if ((marks & Mark.foreign) !== 0) return undefined;
      // A jump behind a prefix leads to no instruction of which there is a copy.
      if ((marks & Mark.known) !== 0 && (marks & Mark.instruction) === 0) return undefined;
    }
    const extent = measureDisplaced(bytes, site, end, end, wanted);
    return typeof extent === 'string' ? undefined : extent;
  }
}

function verdictOn(
  kind: SiteKind,
  { offset, length, count, depth }: PlacedSite,
  isWhole: boolean,
  usesOwnReturn: boolean,
): EntryVerdict | RefusalReason {
  if (offset > MOST_IN_16_BITS || length > MOST_IN_16_BITS) return 'not-relocatable';
  return { kind, offset, length, count, isWhole, usesOwnReturn, depth };
}
