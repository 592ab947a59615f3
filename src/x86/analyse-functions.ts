import type { ElfFile } from '../elf/index.js';
import type { FunctionRange, Refusal, SiteCandidate } from './sites.js';

/** The verdict on each function asked for, in the order asked: in exactly one of the two lists. */
export interface Analysis<F extends FunctionRange> {
  readonly candidates: readonly SiteCandidate<F>[];
  readonly refusals: readonly Refusal<F>[];
}

/**
 * Decides for each of `asked` whether and how it can be traced. `all` is every function known of the file, ascending by
 * address, fragments too: they tell where functions begin and which fragments belong to which. Reads nothing but `elf`.
 */
export declare function analyseFunctions<F extends FunctionRange>(
  elf: ElfFile,
  asked: readonly F[],
  all: readonly FunctionRange[],
): Analysis<F>;
