/**
 * A site is the bytes at a function's entry that become a 5-byte `jmp rel32` to the function's stub. The stub records,
 * runs what stood there (`relocateSite`), and jumps back behind it. Addresses are those of the file; a running process
 * adds the module's load bias.
 */

/** Length of `jmp rel32`. */
export const SITE_LENGTH = 5;

/** What the analysis must know of a function; a `FunctionSymbol` of src/symbols is one. */
export interface FunctionRange {
  readonly name: string;
  /** All names at the address, `name` among them. */
  readonly names: readonly string[];
  readonly address: bigint;
  readonly addressNumber: number;
  readonly size: number;
  /** False where `size` is only the distance to the next symbol. */
  readonly sizeKnown?: boolean;
  readonly kind: 'function' | 'ifunc' | 'fragment';
}

/**
 * - `patchable`: nops that the compiler left for the purpose (`-fpatchable-function-entry`)
 * - `fentry`: a 5-byte nop at the entry (`-pg -mfentry -mnop-mcount`)
 * - `call-site`: a live call of `__fentry__` or `mcount` (`-pg`)
 * - `relocated`: the function's first instructions, which the stub runs in their place
 */
export type SiteKind = 'patchable' | 'fentry' | 'call-site' | 'relocated';

/** Where the call of a `call-site` went, and where the traced function's return address is at that moment. */
export interface ProfilerCall {
  readonly symbol: string;
  /** Address of the callee (perhaps a PLT entry) of a direct call. */
  readonly target: bigint | undefined;
  /** Address of the 8-byte slot that an indirect call (`call *slot(%rip)`) reads. */
  readonly slot: bigint | undefined;
  /** `entry`: at [rsp] before the call. `rbp`: at [rbp+8]. */
  readonly frame: 'entry' | 'rbp';
}

/** An instruction that the site displaces, and what must be adapted when it runs elsewhere. */
export interface DisplacedInstruction {
  /** From the site's address. */
  readonly offset: number;
  readonly length: number;
  /**
   * `nop`: not copied. `verbatim`: copied. `rip-relative`: its 32-bit displacement at `fixOffset` (from the
   * instruction's start) is adapted. `branch`: a jump, re-encoded to `target`. `call`: a direct call to `target`, always
   * the last one: the stub pushes the original return address and jumps. `indirect-call`: the same through a register
   * or memory.
   */
  readonly form: 'nop' | 'verbatim' | 'rip-relative' | 'branch' | 'call' | 'indirect-call';
  readonly fixOffset: number;
  readonly target: bigint | undefined;
  /** True if the instruction behind it is never reached from it: `jmp`, `ret`. */
  readonly endsFlow: boolean;
}

/** A function that can be traced, and how. */
export interface SiteCandidate<F extends FunctionRange = FunctionRange> {
  readonly function: F;
  readonly kind: SiteKind;
  /** First byte of the site: the function's address, or behind its `endbr64` and what may fault, or its profiler call. */
  readonly address: bigint;
  readonly addressNumber: number;
  /** Bytes from `address` to the instruction at which the original code goes on; at least `SITE_LENGTH`. */
  readonly displacedLength: number;
  /** The `displacedLength` bytes at `address` in the file. The first `SITE_LENGTH` are overwritten. */
  readonly original: Uint8Array;
  /** Index of the site in the bytes of the file. */
  readonly originalAt: number;
  /** Number of `displaced`. */
  readonly displacedCount: number;
  readonly displaced: readonly DisplacedInstruction[];
  /**
   * True if the stub runs the whole function, as a loop begins at its entry: jumps within `displacedLength` go to their copy, so that
   * a turn of the loop is no call.
   */
  readonly isWhole: boolean;
  /** True if the function reads or changes its own return address, which must be what the caller pushed. */
  readonly usesOwnReturn: boolean;
  /** Bytes that the function has pushed at the site, which stands behind instructions that may fault; else 0. */
  readonly depth: number;
  /** For `call-site` only. */
  readonly profilerCall: ProfilerCall | undefined;
}

/** Why a function cannot be traced; the strings are stable. `REFUSAL_EXPLANATIONS` has a line on each. */
export type RefusalReason =
  | 'too-short'
  | 'branched-into'
  | 're-entered'
  | 'computed-jump'
  | 'cold-fragment'
  | 'ifunc-resolver'
  | 'call-in-prologue'
  | 'may-fault'
  | 'not-relocatable'
  | 'returns-twice'
  | 'unsafe-context'
  | 'not-code'
  | 'overlaps';

export const REFUSAL_EXPLANATIONS: Readonly<Record<RefusalReason, string>> = {
  'too-short': 'its code is shorter than the 5 bytes of a jump',
  'branched-into': 'code jumps into the middle of its first instructions, which the site would replace',
  're-entered':
    'a loop of it begins at its entry, where turns cannot be told from calls, and is too large to be copied',
  'computed-jump': 'it computes a jump whose targets could not be found, so that its jumps are not all known',
  'cold-fragment': 'it is a part of another function that was moved away: jumps lead to it, and no call',
  'ifunc-resolver': 'the code is a resolver that the loader runs; the function is what it returns',
  'call-in-prologue': 'a call among its first instructions would return into the middle of the site',
  'may-fault':
    'its first instructions may fault, and the program could not tell where; no place behind them can have the site',
  'not-relocatable': 'its instructions cannot all be decoded, or its first ones cannot run elsewhere',
  'returns-twice': 'it returns more than once, and not always from where it is left',
  'unsafe-context': 'it runs where a stack or a return address is not what a function finds',
  'not-code': 'its bytes are not in an executable part of the file',
  overlaps: 'another function begins within the bytes that the site would replace',
};

/** A function that cannot be traced, and why. */
export interface Refusal<F extends FunctionRange = FunctionRange> {
  readonly function: F;
  readonly reason: RefusalReason;
}
