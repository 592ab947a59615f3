/**
 * Numbers of the System V ABI (gABI 4.1 with its current drafts) and of its x86-64 supplement 1.0. Offsets are within the
 * structure that the prefix names (Elf64_Ehdr and so on).
 */

export const EHDR_SIZE = 64;
export const EHDR = {
  class: 4,
  data: 5,
  type: 16,
  machine: 18,
  entry: 24,
  programOffset: 32,
  sectionOffset: 40,
  programEntrySize: 54,
  programCount: 56,
  sectionEntrySize: 58,
  sectionCount: 60,
  sectionNames: 62,
} as const;
export const ELFCLASS64 = 2;
export const ELFDATA2LSB = 1;
export const EM_X86_64 = 62;
export const ET_EXEC = 2;
export const ET_DYN = 3;
/** e_phnum: the true count is in sh_info of section 0. */
export const PN_XNUM = 0xffff;
/** e_shstrndx: the true index is in sh_link of section 0. */
export const SHN_XINDEX = 0xffff;

export const PHDR_SIZE = 56;
export const PHDR = { type: 0, flags: 4, offset: 8, address: 16, fileSize: 32, memorySize: 40 } as const;
export const PT_LOAD = 1;
export const PT_DYNAMIC = 2;
export const PT_INTERP = 3;
export const PT_NOTE = 4;
export const PT_TLS = 7;
export const PT_GNU_STACK = 0x6474e551;
export const PT_GNU_EH_FRAME = 0x6474e550;
export const PF_X = 1;
export const PF_W = 2;
export const PF_R = 4;

export const SHDR_SIZE = 64;
export const SHDR = {
  name: 0,
  type: 4,
  flags: 8,
  address: 16,
  offset: 24,
  size: 32,
  link: 40,
  info: 44,
  entrySize: 56,
} as const;
export const SHT_SYMTAB = 2;
export const SHT_NOBITS = 8;
export const SHT_DYNSYM = 11;
export const SHT_NULL = 0;
export const SHF_ALLOC = 2;
export const SHF_EXECINSTR = 4;

export const SYM_SIZE = 24;
export const SYM = { name: 0, info: 4, sectionIndex: 6, value: 8, size: 16 } as const;
export const SHN_UNDEF = 0;
export const SHN_ABS = 0xfff1;
export const STT_NOTYPE = 0;
export const STT_OBJECT = 1;
export const STT_FUNC = 2;
export const STT_GNU_IFUNC = 10;
export const STB_LOCAL = 0;
export const STB_GLOBAL = 1;
export const STB_WEAK = 2;

export const DYN_SIZE = 16;
export const DT_NULL = 0;
export const DT_NEEDED = 1;
export const DT_PLTRELSZ = 2;
export const DT_HASH = 4;
export const DT_STRTAB = 5;
export const DT_SYMTAB = 6;
export const DT_RELA = 7;
export const DT_RELASZ = 8;
export const DT_STRSZ = 10;
export const DT_RELAENT = 9;
export const DT_SYMENT = 11;
export const DT_INIT = 12;
export const DT_SONAME = 14;
export const DT_JMPREL = 23;
export const DT_RELRSZ = 35;
export const DT_FLAGS = 30;
export const DF_STATIC_TLS = 0x10;
export const DT_RELR = 36;
export const DT_FLAGS_1 = 0x6ffffffb;
export const DF_1_INITFIRST = 0x20;
export const DT_GNU_HASH = 0x6ffffef5;
export const DT_VERSYM = 0x6ffffff0;
export const DT_VERDEF = 0x6ffffffc;
export const DT_VERDEFNUM = 0x6ffffffd;

/** A symbol's version: Elf64_Half. Linux Standard Base Core, 10.7.2. */
export const VERSYM_SIZE = 2;
/** Elf64_Verdef, 10.7.3: vd_ndx; vd_aux and vd_next, distances from its own start. */
export const VERDEF = { index: 4, names: 12, next: 16 } as const;
export const VERDEF_SIZE = 20;
/** Elf64_Verdaux, 10.7.3: vda_name. */
export const VERDAUX = { name: 0 } as const;
export const VERDAUX_SIZE = 8;

export const RELA_SIZE = 24;
export const RELA = { offset: 0, type: 8, symbol: 12, addend: 16 } as const;
export const R_X86_64_64 = 1;
export const R_X86_64_GLOB_DAT = 6;
export const R_X86_64_JUMP_SLOT = 7;
export const R_X86_64_RELATIVE = 8;
export const R_X86_64_TPOFF64 = 18;

export const NT_GNU_BUILD_ID = 3;
