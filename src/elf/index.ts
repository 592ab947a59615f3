export { parseElf } from './parse-elf.js';
export { lowerBound } from './lower-bound.js';
export type {
  ElfFile,
  ElfSection,
  ElfSegment,
  ElfSymbol,
  ElfType,
  SymbolBinding,
  SymbolKind,
} from './elf-file.js';
