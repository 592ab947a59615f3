import { EHDR, EHDR_SIZE, ELFCLASS64, ELFDATA2LSB, EM_X86_64, PHDR, PHDR_SIZE } from './abi.js';

/** What is mapped begins at a multiple of this. */
export const PAGE = 4096;

/** A program header to be written. What `fileSize` does not give of `memorySize` is zero. */
export interface ProgramHeader {
  readonly type: number;
  readonly flags: number;
  readonly offset: number;
  readonly address: bigint;
  readonly fileSize: number;
  readonly memorySize: number;
  readonly alignment: number;
}

const MAGIC = [0x7f, 0x45, 0x4c, 0x46];
/** e_version, at offset 20 of the header, and EI_VERSION, at offset 6. */
const EI_VERSION = 6;
const E_VERSION = 20;
const E_HEADER_SIZE = 52;
const EV_CURRENT = 1;
/** p_paddr and p_align. */
const P_PHYSICAL_ADDRESS = 24;
const P_ALIGN = 48;

/** Writes the ELF header and the program headers to the beginning of a file. */
export function writeHeaders(
  file: Uint8Array,
  type: number,
  entry: bigint,
  headers: readonly ProgramHeader[],
): void {
  const view = new DataView(file.buffer);
  file.set(MAGIC);
  file[EHDR.class] = ELFCLASS64;
  file[EHDR.data] = ELFDATA2LSB;
  file[EI_VERSION] = EV_CURRENT;
  view.setUint16(EHDR.type, type, true);
  view.setUint16(EHDR.machine, EM_X86_64, true);
  view.setUint32(E_VERSION, EV_CURRENT, true);
  view.setBigUint64(EHDR.entry, entry, true);
  view.setBigUint64(EHDR.programOffset, BigInt(EHDR_SIZE), true);
  view.setUint16(E_HEADER_SIZE, EHDR_SIZE, true);
  view.setUint16(EHDR.programEntrySize, PHDR_SIZE, true);
  view.setUint16(EHDR.programCount, headers.length, true);
  headers.forEach((h, index) => {
    const at = EHDR_SIZE + index * PHDR_SIZE;
    view.setUint32(at + PHDR.type, h.type, true);
    view.setUint32(at + PHDR.flags, h.flags, true);
    view.setBigUint64(at + PHDR.offset, BigInt(h.offset), true);
    view.setBigUint64(at + PHDR.address, h.address, true);
    view.setBigUint64(at + P_PHYSICAL_ADDRESS, h.address, true);
    view.setBigUint64(at + PHDR.fileSize, BigInt(h.fileSize), true);
    view.setBigUint64(at + PHDR.memorySize, BigInt(h.memorySize), true);
    view.setBigUint64(at + P_ALIGN, BigInt(h.alignment), true);
  });
}
