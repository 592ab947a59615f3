export { parseElf } from './parse-elf.js';
export type {
  ElfFile,
  ElfSection,
  ElfSegment,
  ElfSymbol,
  ElfType,
  SymbolBinding,
  SymbolKind,
} from './elf-file.js';
