/**
 * `function`: an ordinary one. `ifunc`: the code at this address is a resolver that the loader runs; what it returns is
 * the function. `fragment`: part of another function that the compiler moved away (`.cold`): nobody calls it.
 */
export type FunctionKind = 'function' | 'ifunc' | 'fragment';

/** One function of one module: all symbols at one address. */
export interface FunctionSymbol {
  /** The best name as the symbol table has it (mangled). */
  readonly name: string;
  /** `name` as a person writes it, with the argument list; the same as `name` for C. Computed when asked for. */
  readonly demangled: string;
  /** The other names at this address. */
  readonly aliases: readonly string[];
  /** `name` and `aliases`. */
  readonly names: readonly string[];
  /** Address in the file: add the load bias of the module in a process. */
  readonly address: bigint;
  readonly addressNumber: number;
  /** Bytes; up to the next symbol or the end of the section where the symbol table does not say. */
  readonly size: number;
  /** False where `size` was inferred. */
  readonly sizeKnown: boolean;
  readonly kind: FunctionKind;
  /** For a fragment: the name of the function that it belongs to, as the symbol tells it. */
  readonly fragmentOf: string | undefined;
  readonly global: boolean;
  /** Base name of the file: "libc.so.6". */
  readonly module: string;
}
