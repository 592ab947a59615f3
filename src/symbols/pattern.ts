import type { FunctionSymbol } from './function-symbol.js';

/** A parsed `-F` argument. */
export interface Pattern {
  /** As the user wrote it. */
  readonly text: string;
  /** True if functions of the module with this base name can match. */
  matchesModule(module: string): boolean;
  /** True if one of the names (mangled, demangled, demangled without arguments) matches; says nothing of the module. */
  matchesName(name: string): boolean;
}

/**
 * `call*`, `get?`, `[a-z]x` (glob, over the whole name), `/^call/i` (regular expression, anywhere in the name), each
 * optionally after `MODULE!`, MODULE a glob over the module's base name. Throws `UsageError` for a bad one.
 */
export declare function parsePattern(text: string): Pattern;

/** True if the pattern selects the function: its module, and any of its names. */
export declare function matches(pattern: Pattern, candidate: FunctionSymbol): boolean;
