import type { ElfFile } from '../elf/index.js';
import type { FunctionSymbol } from './function-symbol.js';

/** The functions of a file, ascending by address, one per address. `module` is the base name of `elf.name` unless given. */
export declare function functionsOf(elf: ElfFile, module?: string): FunctionSymbol[];

/** The function of an ascending list whose bytes contain `address`. */
export declare function functionAt(
  functions: readonly FunctionSymbol[],
  address: bigint,
): FunctionSymbol | undefined;
