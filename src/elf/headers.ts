import { CannotError } from '../errors/index.js';
import * as abi from './abi.js';
import type { ElfBytes } from './elf-bytes.js';
import type { ElfSection, ElfSegment, ElfType } from './elf-file.js';

/** More than any linker writes: lookups go through all of them. */
const MOST_LOADED_SEGMENTS = 256;

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
  const { view, bytes } = file;
  const isElf =
    bytes.length >= 4 && bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;
  if (!isElf) unsupported(file, 'elf-not-elf', 'it is not an ELF file');
  file.requireRange('the ELF header', 0, abi.EHDR_SIZE);
  if (bytes[abi.EHDR.class] !== abi.ELFCLASS64) {
    unsupported(file, 'elf-not-64-bit', 'it is a 32-bit ELF file');
  }
  if (bytes[abi.EHDR.data] !== abi.ELFDATA2LSB) {
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

  const sectionOffset = file.u64('e_shoff', abi.EHDR.sectionOffset);
  let sectionCount = view.getUint16(abi.EHDR.sectionCount, true);
  let sectionNames = view.getUint16(abi.EHDR.sectionNames, true);
  let programCount = view.getUint16(abi.EHDR.programCount, true);
  if (sectionOffset !== 0) {
    if (sectionCount !== 0 && view.getUint16(abi.EHDR.sectionEntrySize, true) !== abi.SHDR_SIZE) {
      file.damaged('the size of a section header is wrong');
    }
    file.requireRange('the first section header', sectionOffset, abi.SHDR_SIZE);
    if (sectionCount === 0) sectionCount = file.u64('sh_size', sectionOffset + abi.SHDR.size);
    if (sectionNames === abi.SHN_XINDEX) sectionNames = view.getUint32(sectionOffset + abi.SHDR.link, true);
    if (programCount === abi.PN_XNUM) programCount = view.getUint32(sectionOffset + abi.SHDR.info, true);
    file.requireRange('the section headers', sectionOffset, sectionCount, abi.SHDR_SIZE);
  }
  const programOffset = file.u64('e_phoff', abi.EHDR.programOffset);
  if (programCount !== 0 && view.getUint16(abi.EHDR.programEntrySize, true) !== abi.PHDR_SIZE) {
    file.damaged('the size of a program header is wrong');
  }
  file.requireRange('the program headers', programOffset, programCount, abi.PHDR_SIZE);
  return {
    type: type === abi.ET_EXEC ? 'executable' : 'shared-object',
    entry: file.u64('e_entry', abi.EHDR.entry),
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
  for (let i = 0; i < header.programCount; i++) {
    const at = header.programOffset + i * abi.PHDR_SIZE;
    const type = file.view.getUint32(at + abi.PHDR.type, true);
    const flags = file.view.getUint32(at + abi.PHDR.flags, true);
    const offset = file.u64('p_offset', at + abi.PHDR.offset);
    const addressNumber = file.u64('p_vaddr', at + abi.PHDR.address);
    const fileSize = file.u64('p_filesz', at + abi.PHDR.fileSize);
    if (type === abi.PT_LOAD) {
      if (++loaded > MOST_LOADED_SEGMENTS) file.damaged(`more than ${MOST_LOADED_SEGMENTS} segments`);
      file.requireRange('a segment', offset, fileSize);
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
      memorySize: file.u64('p_memsz', at + abi.PHDR.memorySize),
    });
  }
  return segments;
}

export function readSections(file: ElfBytes, header: ElfHeader): ElfSection[] {
  const at = (index: number): number => header.sectionOffset + index * abi.SHDR_SIZE;
  let namesOffset = 0;
  let namesEnd = 0;
  if (header.sectionNames !== 0 && header.sectionNames < header.sectionCount) {
    const names = at(header.sectionNames);
    namesOffset = file.u64('sh_offset', names + abi.SHDR.offset);
    const size = file.u64('sh_size', names + abi.SHDR.size);
    file.requireRange('the section names', namesOffset, size);
    namesEnd = namesOffset + size;
  }
  const sections: ElfSection[] = [];
  for (let i = 0; i < header.sectionCount; i++) {
    const type = file.view.getUint32(at(i) + abi.SHDR.type, true);
    const flags = file.view.getUint32(at(i) + abi.SHDR.flags, true);
    const hasBytes = type !== abi.SHT_NOBITS && type !== abi.SHT_NULL;
    const offset = file.u64('sh_offset', at(i) + abi.SHDR.offset);
    // Section 0 keeps the count of sections here when there are very many.
    const size = i === 0 ? 0 : file.u64('sh_size', at(i) + abi.SHDR.size);
    if (hasBytes) file.requireRange(`section ${i}`, offset, size);
    const addressNumber = file.u64('sh_addr', at(i) + abi.SHDR.address);
    const nameOffset = namesOffset + file.view.getUint32(at(i) + abi.SHDR.name, true);
    sections.push({
      name: nameOffset < namesEnd ? file.stringAt(nameOffset, namesEnd) : '',
      type,
      executable: (flags & abi.SHF_EXECINSTR) !== 0,
      allocated: (flags & abi.SHF_ALLOC) !== 0,
      hasBytes,
      address: BigInt(addressNumber),
      addressNumber,
      offset,
      size,
      link: file.view.getUint32(at(i) + abi.SHDR.link, true),
      entrySize: file.u64('sh_entsize', at(i) + abi.SHDR.entrySize),
    });
  }
  return sections;
}
