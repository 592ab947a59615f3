import { lowerBound, type ElfFile } from '../elf/index.js';
import { ending } from '../errors/index.js';
import { CompilerSites, type CompilerSite } from './compiler-sites.js';
import { describeDisplaced } from './displaced.js';
import type { ExitRefusal, FunctionExits } from './exit-sites.js';
import { ExitFinder } from './find-exits.js';
import { withSharedDecoders } from './instruction-flow.js';
import { KeptExits, exitBytes } from './kept-exits.js';
import { ModuleLandings } from './landings.js';
import type {
  DisplacedInstruction,
  FunctionRange,
  ProfilerCall,
  Refusal,
  SiteCandidate,
  SiteKind,
} from './sites.js';
import { refusalByName } from './unsafe-names.js';
import { Verdicts, type EntryVerdict } from './verdicts.js';

/** The verdict on each function asked for, in the order asked: in exactly one of the two lists. */
export interface Analysis<F extends FunctionRange> {
  readonly candidates: readonly SiteCandidate<F>[];
  readonly refusals: readonly Refusal<F>[];
  /** For each candidate where it is left, or why it is traced by its entry only; empty unless asked for. */
  readonly exits: readonly (FunctionExits | ExitRefusal)[];
}

/** What may be kept of a file: the verdicts on entries, or exits. */
export type KeptPart = 'entries' | 'exits';

/** Where what was found in a file may be kept, so that it is analysed once. */
export interface VerdictStore {
  /** What was kept for this file with these functions, as bytes; undefined if nothing that can be believed. */
  load(elf: ElfFile, functions: readonly FunctionRange[], part: KeptPart): Uint8Array | undefined;
  save(elf: ElfFile, functions: readonly FunctionRange[], part: KeptPart, bytes: Uint8Array): void;
}

/** What is known of a file, for as long as somebody has it: a session asks several times. */
interface Known {
  readonly all: readonly FunctionRange[];
  readonly verdicts: Verdicts;
  /** Landings are large, and made only where nothing was kept. */
  landings: ModuleLandings | undefined;
  finder: ExitFinder | undefined;
  kept: KeptExits | undefined;
}

const known = new WeakMap<ElfFile, Known>();
/** Exits are kept as soon as those of so great a part of the functions with sites have been looked for: all or none, as a rule. */
const WORTH_KEEPING = 0.5;

/**
 * Decides for each of `asked` whether and how it can be traced. `all` is every function known of the file, ascending by
 * address, fragments too. Reads nothing but `elf`, and what `store` has kept.
 *
 * The file is analysed as a whole, whatever is asked: the verdict on a function never depends on which others are asked for.
 * Only names are looked at here: who asks for a function by an address alone gets what its code says.
 */
export function analyseFunctions<F extends FunctionRange>(
  elf: ElfFile,
  asked: readonly F[],
  all: readonly FunctionRange[],
  store?: VerdictStore,
  withExits = false,
): Analysis<F> {
  const file = whatIsKnown(elf, all, store);
  const { verdicts } = file;
  const starts = Float64Array.from(all, ({ addressNumber }) => addressNumber);
  const sites = new CompilerSites(elf, all);
  const candidates: SiteCandidate<F>[] = [];
  const refusals: Refusal<F>[] = [];
  /** Numbers of the candidates among all functions. */
  const numbers: number[] = [];
  for (const [i, range] of asked.entries()) {
    ending.lookAt(i);
    const index = lowerBound(starts, range.addressNumber);
    const isKnown = starts[index] === range.addressNumber;
    const byName = range.kind === 'function' ? refusalByName(range.names) : undefined;
    const verdict = byName ?? (isKnown ? verdicts.at(index) : 'not-code');
    if (typeof verdict === 'string') refusals.push({ function: range, reason: verdict });
    else {
      candidates.push(new Candidate(elf, range, verdict, sites));
      numbers.push(index);
    }
  }
  if (!withExits) return { candidates, refusals, exits: [] };
  return { candidates, refusals, exits: exitsOf(file, elf, candidates, numbers, store) };
}

/** The exits of candidates: those that were kept, and for the others what is found. */
function exitsOf(
  file: Known,
  elf: ElfFile,
  candidates: readonly SiteCandidate[],
  numbers: readonly number[],
  store: VerdictStore | undefined,
): (FunctionExits | ExitRefusal)[] {
  const { all, verdicts } = file;
  if (file.kept === undefined) {
    const bytes = store?.load(elf, all, 'exits');
    file.kept = bytes && KeptExits.from(elf, bytes, all.length);
  }
  const { kept } = file;
  let found = 0;
  const exits = withSharedDecoders(() =>
    candidates.map((candidate, i) => {
      ending.lookAt(i);
      const before = kept?.at(numbers[i], candidate);
      if (before !== undefined) return before;
      found++;
      return finderOf(file, elf).find(candidate);
    }),
  );
  if (store !== undefined && found > 0 && found >= WORTH_KEEPING * verdicts.sites) {
    const byNumber = new Map(
      numbers.map((number, i) => [number, { candidate: candidates[i], exits: exits[i] }]),
    );
    store.save(elf, all, 'exits', exitBytes(all.length, byNumber));
  }
  return exits;
}

function finderOf(file: Known, elf: ElfFile): ExitFinder {
  file.landings ??= ModuleLandings.of(elf, file.all);
  file.finder ??= new ExitFinder(elf, file.landings);
  return file.finder;
}

function whatIsKnown(elf: ElfFile, all: readonly FunctionRange[], store: VerdictStore | undefined): Known {
  const before = known.get(elf);
  if (before?.all === all) return before;
  const bytes = store?.load(elf, all, 'entries');
  let verdicts = bytes && Verdicts.fromBytes(bytes, all.length);
  let landings: ModuleLandings | undefined;
  if (verdicts === undefined) {
    landings = ModuleLandings.of(elf, all);
    verdicts = Verdicts.of(elf, all, landings);
    store?.save(elf, all, 'entries', verdicts.toBytes());
  }
  const file: Known = { all, verdicts, landings, finder: undefined, kept: undefined };
  known.set(elf, file);
  return file;
}

/** Keeps little and finds the rest in the file when it is asked for: there may be 10^5 of them. */
class Candidate<F extends FunctionRange> implements SiteCandidate<F> {
  readonly function: F;
  readonly kind: SiteKind;
  readonly addressNumber: number;
  readonly displacedLength: number;
  readonly displacedCount: number;
  readonly isWhole: boolean;
  readonly usesOwnReturn: boolean;
  readonly depth: number;

  constructor(
    private readonly elf: ElfFile,
    range: F,
    verdict: EntryVerdict,
    private readonly sites: CompilerSites,
  ) {
    this.function = range;
    this.kind = verdict.kind;
    this.addressNumber = range.addressNumber + verdict.offset;
    this.displacedLength = verdict.length;
    this.displacedCount = verdict.count;
    this.isWhole = verdict.isWhole;
    this.usesOwnReturn = verdict.usesOwnReturn;
    this.depth = verdict.depth;
  }

  get address(): bigint {
    return BigInt(this.addressNumber);
  }

  get originalAt(): number {
    return this.elf.codeOffset(this.addressNumber, this.displacedLength);
  }

  get original(): Uint8Array {
    const { originalAt } = this;
    return this.elf.bytes.subarray(originalAt, originalAt + this.displacedLength);
  }

  get displaced(): readonly DisplacedInstruction[] {
    const prepared = this.#prepared();
    if (prepared?.displaced !== undefined) return prepared.displaced;
    const { elf, originalAt, addressNumber, displacedLength } = this;
    const end = originalAt + displacedLength;
    const wanted = this.isWhole ? displacedLength : undefined;
    const displaced = describeDisplaced(elf.bytes, originalAt, addressNumber - originalAt, end, end, wanted);
    return typeof displaced === 'string' ? [] : displaced;
  }

  get profilerCall(): ProfilerCall | undefined {
    return this.#prepared()?.profilerCall;
  }

  #prepared(): CompilerSite | undefined {
    if (this.kind === 'relocated') return undefined;
    const { elf } = this;
    const start = elf.codeOffset(this.function.addressNumber, Math.max(this.function.size, 1));
    return start < 0 ? undefined : this.sites.find(this.function, elf.bytes, start);
  }
}
