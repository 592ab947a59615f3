import { CannotError } from '../errors/index.js';
import * as abi from './abi.js';
import type { ElfBytes } from './elf-bytes.js';
import type { ElfSection, ElfSegment, ElfType } from './elf-file.js';
import { StringTable } from './string-table.js';

/** More than any linker writes: lookups go through all that are loaded. */
const MOST_LOADED_SEGMENTS = 256;
const MOST_SEGMENTS = 4096;
const MOST_SECTIONS = 131_072;
/** Names of sections are compared with names that we know. */
const LONGEST_SECTION_NAME = 256;
const MAGIC = [0x7f, 0x45, 0x4c, 0x46];

/** The ELF header, with the counts that overflow into section 0 resolved. */
export interface ElfHeader {
  readonly type: ElfType;
  readonly entry: number;
  readonly programOffset: number;
  readonly programCount: number;
  /** 0 if there are no sections. */
  readonly sectionOffset: number;
  readonly sectionCount: number;
  readonly sectionNames: number;
}

export function readHeader(file: ElfBytes): ElfHeader {
  const magic = new Uint8Array(MAGIC.length);
  file.source.read(magic, 0);
  if (!MAGIC.every((byte, i) => magic[i] === byte)) unsupported(file, 'elf-not-elf', 'it is not an ELF file');
  const view = file.table('the ELF header', 0, 1, abi.EHDR_SIZE, 1);
  if (view.getUint8(abi.EHDR.class) !== abi.ELFCLASS64) {
    unsupported(file, 'elf-not-64-bit', 'it is a 32-bit ELF file');
  }
  if (view.getUint8(abi.EHDR.data) !== abi.ELFDATA2LSB) {
    unsupported(file, 'elf-not-x86-64', 'it is a big-endian ELF file');
  }
  const machine = view.getUint16(abi.EHDR.machine, true);
  if (machine !== abi.EM_X86_64) {
    unsupported(file, 'elf-not-x86-64', `it is for ELF machine ${machine}, not x86-64 (${abi.EM_X86_64})`);
  }
  const type = view.getUint16(abi.EHDR.type, true);
  if (type !== abi.ET_EXEC && type !== abi.ET_DYN) {
    unsupported(
      file,
      'elf-not-loadable',
      `it is neither an executable nor a shared object (ELF type ${type})`,
    );
  }

  const sectionOffset = file.u64('e_shoff', view, abi.EHDR.sectionOffset);
  let sectionCount = view.getUint16(abi.EHDR.sectionCount, true);
  let sectionNames = view.getUint16(abi.EHDR.sectionNames, true);
  let programCount = view.getUint16(abi.EHDR.programCount, true);
  if (sectionOffset !== 0) {
    if (sectionCount !== 0 && view.getUint16(abi.EHDR.sectionEntrySize, true) !== abi.SHDR_SIZE) {
      file.damaged('the size of a section header is wrong');
    }
    const first = file.table('the first section header', sectionOffset, 1, abi.SHDR_SIZE, 1);
    if (sectionCount === 0) sectionCount = file.u64('sh_size', first, abi.SHDR.size);
    if (sectionNames === abi.SHN_XINDEX) sectionNames = first.getUint32(abi.SHDR.link, true);
    if (programCount === abi.PN_XNUM) programCount = first.getUint32(abi.SHDR.info, true);
  }
  const programOffset = file.u64('e_phoff', view, abi.EHDR.programOffset);
  if (programCount !== 0 && view.getUint16(abi.EHDR.programEntrySize, true) !== abi.PHDR_SIZE) {
    file.damaged('the size of a program header is wrong');
  }
  return {
    type: type === abi.ET_EXEC ? 'executable' : 'shared-object',
    entry: file.u64('e_entry', view, abi.EHDR.entry),
    programOffset,
    programCount,
    sectionOffset,
    sectionCount: sectionOffset === 0 ? 0 : sectionCount,
    sectionNames,
  };
}

function unsupported(file: ElfBytes, code: string, why: string): never {
  throw new CannotError(code, {
    tried: `read ${file.name}`,
    why,
    next: 'give an x86-64 Linux executable or shared object',
  });
}

export function readSegments(file: ElfBytes, header: ElfHeader): ElfSegment[] {
  const segments: ElfSegment[] = [];
  let loaded = 0;
  let loadedBytes = 0;
  const { programOffset, programCount } = header;
  const view = file.table('the program headers', programOffset, programCount, abi.PHDR_SIZE, MOST_SEGMENTS);
  for (let at = 0; at < view.byteLength; at += abi.PHDR_SIZE) {
    const type = view.getUint32(at + abi.PHDR.type, true);
    const flags = view.getUint32(at + abi.PHDR.flags, true);
    const offset = file.u64('p_offset', view, at + abi.PHDR.offset);
    const addressNumber = file.u64('p_vaddr', view, at + abi.PHDR.address);
    const fileSize = file.u64('p_filesz', view, at + abi.PHDR.fileSize);
    if (type === abi.PT_LOAD) {
      if (++loaded > MOST_LOADED_SEGMENTS) file.damaged(`more than ${MOST_LOADED_SEGMENTS} segments`);
      file.requireRange('a segment', offset, fileSize);
      // Some linkers have the ends of two share a page.
      if ((loadedBytes += fileSize) > 2 * file.size) file.damaged('its segments overlap');
    }
    segments.push({
      type,
      readable: (flags & abi.PF_R) !== 0,
      writable: (flags & abi.PF_W) !== 0,
      executable: (flags & abi.PF_X) !== 0,
      offset,
      address: BigInt(addressNumber),
      addressNumber,
      fileSize,
      memorySize: file.u64('p_memsz', view, at + abi.PHDR.memorySize),
    });
  }
  return segments;
}

export function readSections(file: ElfBytes, header: ElfHeader): ElfSection[] {
  const { sectionOffset, sectionCount } = header;
  const view = file.table('the section headers', sectionOffset, sectionCount, abi.SHDR_SIZE, MOST_SECTIONS);
  let names: StringTable | undefined;
  if (header.sectionNames !== 0 && header.sectionNames < sectionCount) {
    const at = header.sectionNames * abi.SHDR_SIZE;
    const offset = file.u64('sh_offset', view, at + abi.SHDR.offset);
    const size = file.u64('sh_size', view, at + abi.SHDR.size);
    names = new StringTable(file, 'the section names', { offset, size });
  }
  const sections: ElfSection[] = [];
  for (let at = 0; at < view.byteLength; at += abi.SHDR_SIZE) {
    const index = sections.length;
    const type = view.getUint32(at + abi.SHDR.type, true);
    const flags = view.getUint32(at + abi.SHDR.flags, true);
    const hasBytes = type !== abi.SHT_NOBITS && type !== abi.SHT_NULL;
    const offset = file.u64('sh_offset', view, at + abi.SHDR.offset);
    // Section 0 keeps the count of sections here when there are very many.
    const size = index === 0 ? 0 : file.u64('sh_size', view, at + abi.SHDR.size);
    if (hasBytes) file.requireRange(`section ${index}`, offset, size);
    const addressNumber = file.u64('sh_addr', view, at + abi.SHDR.address);
    sections.push({
      name: names?.at(view.getUint32(at + abi.SHDR.name, true), LONGEST_SECTION_NAME) ?? '',
      type,
      executable: (flags & abi.SHF_EXECINSTR) !== 0,
      allocated: (flags & abi.SHF_ALLOC) !== 0,
      hasBytes,
      address: BigInt(addressNumber),
      addressNumber,
      offset,
      size,
      link: view.getUint32(at + abi.SHDR.link, true),
      entrySize: file.u64('sh_entsize', view, at + abi.SHDR.entrySize),
    });
  }
  return sections;
}
