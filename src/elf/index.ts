export { parseElf } from './parse-elf.js';
export type { ByteSource } from './byte-source.js';
export { lowerBound } from './lower-bound.js';
export { DWARF_RBP, DWARF_RSP, UnwindTable } from './unwind-table.js';
export type {
  ElfFile,
  ElfSection,
  ElfSegment,
  ElfSymbol,
  ElfType,
  SymbolBinding,
  SymbolKind,
} from './elf-file.js';
export { writeExecutable, type ExecutableSegment } from './write-executable.js';
export { DYNAMIC_ROOM, writeSharedObject, type SharedObject } from './write-shared-object.js';
export { PF_R, PF_W, PF_X } from './abi.js';
export { withoutVersion } from './symbol-versions.js';
