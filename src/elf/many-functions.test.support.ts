import * as abi from './abi.js';

/** Each: six nops and a return. */
const CODE = [0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3];
const BASE = 0x40_0000;
const SECTIONS = 5;
const [TEXT, SYMTAB, STRTAB, SHSTRTAB] = [1, 2, 3, 4];
const SHT_PROGBITS = 1;
const SHT_STRTAB = 3;

/** An executable with as many functions, called as `nameOf` says; faster than an assembler makes it. */
export function manyFunctions(count: number, nameOf: (index: number) => string): Uint8Array {
  const names = [Buffer.of(0)];
  const nameAt = new Uint32Array(count);
  let nameBytes = 1;
  for (let i = 0; i < count; i++) {
    const name = Buffer.from(`${nameOf(i)}\0`, 'latin1');
    nameAt[i] = nameBytes;
    nameBytes += name.length;
    names.push(name);
  }
  const sectionNames = '\0.text\0.symtab\0.strtab\0.shstrtab\0';
  const textAt = abi.EHDR_SIZE + abi.PHDR_SIZE;
  const textBytes = count * CODE.length;
  const symbolsAt = textAt + textBytes;
  const symbolBytes = (count + 1) * abi.SYM_SIZE;
  const namesAt = symbolsAt + symbolBytes;
  const sectionNamesAt = namesAt + nameBytes;
  const sectionsAt = sectionNamesAt + sectionNames.length;
  const file = Buffer.alloc(sectionsAt + SECTIONS * abi.SHDR_SIZE);
  const u64 = (at: number, value: number): void => void file.writeBigUInt64LE(BigInt(value), at);

  file.set([0x7f, 0x45, 0x4c, 0x46, abi.ELFCLASS64, abi.ELFDATA2LSB, 1]);
  file.writeUInt16LE(abi.ET_EXEC, abi.EHDR.type);
  file.writeUInt16LE(abi.EM_X86_64, abi.EHDR.machine);
  u64(abi.EHDR.entry, BASE + textAt);
  u64(abi.EHDR.programOffset, abi.EHDR_SIZE);
  u64(abi.EHDR.sectionOffset, sectionsAt);
  file.writeUInt16LE(abi.PHDR_SIZE, abi.EHDR.programEntrySize);
  file.writeUInt16LE(1, abi.EHDR.programCount);
  file.writeUInt16LE(abi.SHDR_SIZE, abi.EHDR.sectionEntrySize);
  file.writeUInt16LE(SECTIONS, abi.EHDR.sectionCount);
  file.writeUInt16LE(SHSTRTAB, abi.EHDR.sectionNames);

  const program = abi.EHDR_SIZE;
  file.writeUInt32LE(abi.PT_LOAD, program + abi.PHDR.type);
  file.writeUInt32LE(abi.PF_R | abi.PF_X, program + abi.PHDR.flags);
  u64(program + abi.PHDR.address, BASE);
  u64(program + abi.PHDR.fileSize, symbolsAt);
  u64(program + abi.PHDR.memorySize, symbolsAt);

  for (let i = 0; i < count; i++) {
    const code = textAt + i * CODE.length;
    file.set(CODE, code);
    const symbol = symbolsAt + (i + 1) * abi.SYM_SIZE;
    file.writeUInt32LE(nameAt[i], symbol + abi.SYM.name);
    file[symbol + abi.SYM.info] = (abi.STB_GLOBAL << 4) | abi.STT_FUNC;
    file.writeUInt16LE(TEXT, symbol + abi.SYM.sectionIndex);
    u64(symbol + abi.SYM.value, BASE + code);
    u64(symbol + abi.SYM.size, CODE.length);
  }
  let at = namesAt;
  for (const name of names) {
    file.set(name, at);
    at += name.length;
  }
  file.write(sectionNames, sectionNamesAt, 'latin1');
  const section = (index: number, name: string, type: number, offset: number, size: number): number => {
    const header = sectionsAt + index * abi.SHDR_SIZE;
    file.writeUInt32LE(sectionNames.indexOf(`\0${name}\0`) + 1, header + abi.SHDR.name);
    file.writeUInt32LE(type, header + abi.SHDR.type);
    u64(header + abi.SHDR.offset, offset);
    u64(header + abi.SHDR.size, size);
    return header;
  };
  const text = section(TEXT, '.text', SHT_PROGBITS, textAt, textBytes);
  u64(text + abi.SHDR.flags, abi.SHF_ALLOC | abi.SHF_EXECINSTR);
  u64(text + abi.SHDR.address, BASE + textAt);
  const symbols = section(SYMTAB, '.symtab', abi.SHT_SYMTAB, symbolsAt, symbolBytes);
  file.writeUInt32LE(STRTAB, symbols + abi.SHDR.link);
  u64(symbols + abi.SHDR.entrySize, abi.SYM_SIZE);
  section(STRTAB, '.strtab', SHT_STRTAB, namesAt, nameBytes);
  section(SHSTRTAB, '.shstrtab', SHT_STRTAB, sectionNamesAt, sectionNames.length);
  return new Uint8Array(file.buffer, file.byteOffset, file.length);
}
