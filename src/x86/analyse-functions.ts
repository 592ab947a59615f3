import type { ElfFile } from '../elf/index.js';
import { CodeMap, type SweptFunction } from './code-map.js';
import { CompilerSites, type CompilerSite } from './compiler-sites.js';
import { describeDisplaced, endbrLength } from './displaced.js';
import type { ExitRefusal, FunctionExits } from './exit-sites.js';
import { ExitFinder } from './find-exits.js';
import { withSharedDecoders } from './instruction-flow.js';
import type {
  DisplacedInstruction,
  FunctionRange,
  ProfilerCall,
  Refusal,
  RefusalReason,
  SiteCandidate,
  SiteKind,
} from './sites.js';
import { refusalByName } from './unsafe-names.js';

/** The verdict on each function asked for, in the order asked: in exactly one of the two lists. */
export interface Analysis<F extends FunctionRange> {
  readonly candidates: readonly SiteCandidate<F>[];
  readonly refusals: readonly Refusal<F>[];
  /** For each candidate where it is left, or why it is traced by its entry only; empty unless asked for. */
  readonly exits: readonly (FunctionExits | ExitRefusal)[];
}

/**
 * Decides for each of `asked` whether and how it can be traced. `all` is every function known of the file, ascending by
 * address, fragments too: they tell where functions begin and which fragments belong to which. Reads nothing but `elf`.
 *
 * A site that the compiler prepared is used as it is. Any other function is decoded from end to end, with its cold
 * fragments and unnamed code that it jumps to, so that no jump can lead into the bytes that the site replaces. Not seen
 * are jumps from functions that were not asked for (hand-written assembly may do that), and from cold parts in files
 * without local symbols that only an exception reaches.
 */
export function analyseFunctions<F extends FunctionRange>(
  elf: ElfFile,
  asked: readonly F[],
  all: readonly FunctionRange[],
  withExits = false,
): Analysis<F> {
  return withSharedDecoders(() => analyse(elf, asked, all, withExits));
}

function analyse<F extends FunctionRange>(
  elf: ElfFile,
  asked: readonly F[],
  all: readonly FunctionRange[],
  withExits: boolean,
): Analysis<F> {
  const map = new CodeMap(elf, all);
  const compilerSites = new CompilerSites(elf, all, (address) => map.indexAt(address));
  // First everything is swept, since a jump into one function may stand in another; then each is judged.
  const examined = asked.map((range) => examine(elf, map, compilerSites, range));
  const candidates: SiteCandidate<F>[] = [];
  const refusals: Refusal<F>[] = [];
  for (let index = 0; index < asked.length; index++) {
    const range = asked[index];
    const verdict = judge(elf, map, range, examined[index]);
    if (typeof verdict === 'string') refusals.push({ function: range, reason: verdict });
    else candidates.push(verdict);
  }
  if (!withExits) return { candidates, refusals, exits: [] };
  for (const { function: range, kind, addressNumber } of candidates)
    if (kind !== 'relocated') map.sweep(range, addressNumber);
  const finder = new ExitFinder(elf, map);
  const found = candidates.map((candidate) => finder.find(candidate, map.partsOf(candidate.function)));
  return { candidates, refusals, exits: found };
}

/** A site that still has to be compared with where code jumps to. */
interface PossibleSite {
  /** Of the function, in the file. */
  readonly start: number;
  /** Of the site, in the function. */
  readonly offset: number;
  readonly length: number;
  readonly count: number;
  readonly prepared: CompilerSite | undefined;
  readonly swept: SweptFunction | undefined;
}

function examine(
  elf: ElfFile,
  map: CodeMap,
  compilerSites: CompilerSites,
  range: FunctionRange,
): PossibleSite | RefusalReason {
  if (range.kind === 'fragment') return 'cold-fragment';
  if (range.kind === 'ifunc') return 'ifunc-resolver';
  const byName = refusalByName(range.names);
  if (byName !== undefined) return byName;
  const { addressNumber, size } = range;
  const { bytes } = elf;
  const start = elf.codeOffset(addressNumber, Math.max(size, 1));
  if (start < 0) return 'not-code';

  const prepared = compilerSites.find(range, start);
  if (prepared !== undefined) {
    const { offset, length, count } = prepared;
    return { start, offset, length, count, prepared, swept: undefined };
  }
  const offset = endbrLength(bytes, start);
  const displaced = describeDisplaced(bytes, start + offset, addressNumber - start, start + size);
  if (typeof displaced === 'string') return displaced;
  const swept = map.sweep(range, addressNumber + offset);
  if (!swept.decodable) return 'not-relocatable';
  if (!swept.tablesFound) return 'jump-table';
  const last = displaced[displaced.length - 1];
  return { start, offset, length: last.offset + last.length, count: displaced.length, prepared, swept };
}

function judge<F extends FunctionRange>(
  elf: ElfFile,
  map: CodeMap,
  range: F,
  site: PossibleSite | RefusalReason,
): SiteCandidate<F> | RefusalReason {
  if (typeof site === 'string') return site;
  const { start, offset, length, count, prepared, swept } = site;
  const address = range.addressNumber + offset;
  if (map.functionStartsWithin(address + 1, address + length)) return 'overlaps';
  if (swept !== undefined && map.leadsInto(address + 1, address + length)) return 'branched-into';
  const reentered = swept?.reentered ?? false;
  return new Candidate(elf, range, start + offset, address, length, count, reentered, prepared);
}

/** Keeps little and finds the rest in the file when it is asked for: there may be 10^5 of them. */
class Candidate<F extends FunctionRange> implements SiteCandidate<F> {
  readonly function: F;

  constructor(
    private readonly elf: ElfFile,
    range: F,
    readonly originalAt: number,
    readonly addressNumber: number,
    readonly displacedLength: number,
    readonly displacedCount: number,
    readonly reentered: boolean,
    private readonly prepared: CompilerSite | undefined,
  ) {
    this.function = range;
  }

  get kind(): SiteKind {
    return this.prepared?.kind ?? 'relocated';
  }

  get address(): bigint {
    return BigInt(this.addressNumber);
  }

  get original(): Uint8Array {
    return this.elf.bytes.subarray(this.originalAt, this.originalAt + this.displacedLength);
  }

  get displaced(): readonly DisplacedInstruction[] {
    if (this.prepared?.displaced !== undefined) return this.prepared.displaced;
    const { elf, originalAt, addressNumber, displacedLength } = this;
    const end = originalAt + displacedLength;
    const displaced = describeDisplaced(elf.bytes, originalAt, addressNumber - originalAt, end);
    return typeof displaced === 'string' ? [] : displaced;
  }

  get profilerCall(): ProfilerCall | undefined {
    return this.prepared?.profilerCall;
  }
}
