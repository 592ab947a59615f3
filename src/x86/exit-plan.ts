// Entries and exits of all functions of a file, in one map of who owns which byte.
import type { ElfFile } from '../elf/index.js';
import { Trait } from './code-ranges.js';
import { planExits, type EntryWindow, type ExitPlan } from './exit-sites.js';
import { withSharedDecoders } from './instruction-flow.js';
import { ModuleLandings } from './landings.js';
import { describeDisplaced } from './displaced.js';
import type { DisplacedInstruction, FunctionRange, RefusalReason } from './sites.js';
import { EntryJudge, Verdicts, type EntryVerdict } from './verdicts.js';

/** What is known of a file: who lands where, where functions are entered, where they leave. */
export interface ModulePlan {
  readonly landings: ModuleLandings;
  /** In the order of the functions. */
  readonly verdicts: Verdicts;
  readonly exits: ExitPlan;
}

/** Analyses a whole file. `functions`: all that are known of it, ascending by address. Reads nothing but `elf`. */
export function planModule(elf: ElfFile, functions: readonly FunctionRange[]): ModulePlan {
  return withSharedDecoders(() => {
    const landings = ModuleLandings.of(elf, functions);
    const verdicts = Verdicts.of(elf, functions, landings);
    const judge = new EntryJudge(elf, functions, landings);
    const { ranges } = landings;
    const entryOf = (index: number): EntryWindow | undefined => {
      const named = ranges.functions[index];
      const verdict: EntryVerdict | RefusalReason =
        named >= 0 ? verdicts.at(named) : judge.judge(unnamed(ranges.starts[index], ranges.ends[index]));
      if (typeof verdict === 'string') return undefined;
      return {
        address: ranges.starts[index] + verdict.offset,
        length: verdict.length,
        mayGrow: verdict.kind !== 'call-site',
        isWhole: verdict.isWhole,
        whole: () => (verdict.kind === 'relocated' ? judge.wholeLength(index, verdict.offset) : undefined),
      };
    };
    return { landings, verdicts, exits: planExits(landings, entryOf) };
  });
}

/**
 * The instructions that a site or an exit displaces: those in `length` bytes at an address of the file. Empty where they are no whole
 * instructions.
 */
export function displacedAt(
  { landings }: ModulePlan,
  address: number,
  length: number,
): readonly DisplacedInstruction[] {
  const region = landings.regions.at(address);
  if (region === undefined || address + length > region.end) return [];
  const at = address - region.start;
  const found = describeDisplaced(region.bytes, at, region.start, at + length, at + length, length);
  return typeof found === 'string' ? [] : found;
}

/** A function that only the unwind table knows: nobody can ask for it, but its bytes count. */
function unnamed(start: number, end: number): FunctionRange {
  return {
    name: '',
    names: [],
    address: BigInt(start),
    addressNumber: start,
    size: end - start,
    kind: 'function',
  };
}

/** How many functions of a file have exits, and by what. */
export interface ExitShares {
  /** All but fragments, those that only the unwind table knows too. */
  readonly functions: number;
  /** Of which the worst of their exits fits so; functions without an exit are with `at`. */
  readonly fits: Readonly<Record<'at' | 'behind' | 'hole' | 'branches' | 'made' | 'copy', number>>;
  /** Of the others, why. */
  readonly reasons: ReadonlyMap<string, number>;
  /** Functions of which entry and exits fit. */
  readonly both: number;
  /** Exits that are one store, and all. */
  readonly oneStore: number;
  readonly exits: number;
}

const ORDER = ['at', 'entry', 'behind', 'hole', 'branches', 'made', 'copy'] as const;

/** Counts what `planModule` has found, of the functions at addresses that count. */
export function exitShares(
  { landings, exits }: ModulePlan,
  hasEntry: (address: number) => boolean,
  counts: (address: number) => boolean = () => true,
): ExitShares {
  const { ranges } = landings;
  const fits = { at: 0, behind: 0, hole: 0, branches: 0, made: 0, copy: 0 };
  const reasons = new Map<string, number>();
  let functions = 0;
  let both = 0;
  let oneStore = 0;
  let count = 0;
  for (let i = 0; i < ranges.count; i++) {
    if (ranges.has(i, Trait.fragment) || !counts(ranges.starts[i])) continue;
    functions++;
    const found = exits.exitsOf(ranges.starts[i]);
    if (typeof found === 'string') {
      reasons.set(found, (reasons.get(found) ?? 0) + 1);
      continue;
    }
    count += found.length;
    oneStore += found.filter(({ isOneStore }) => isOneStore).length;
    const worst = found.reduce((most, { fit }) => Math.max(most, ORDER.indexOf(fit)), 0);
    const fit = ORDER[worst];
    fits[fit === 'entry' ? 'behind' : fit]++;
    if (hasEntry(ranges.starts[i])) both++;
  }
  return { functions, fits, reasons, both, oneStore, exits: count };
}
