import type { ElfFile } from './elf-file.js';

/** Reads an ELF64 little-endian x86-64 file. Throws `CannotError` (and nothing else) when it is not one or is damaged. */
export declare function parseElf(bytes: Uint8Array, name: string): ElfFile;
