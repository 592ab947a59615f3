import {
  EHDR,
  EHDR_SIZE,
  ELFCLASS64,
  ELFDATA2LSB,
  EM_X86_64,
  ET_EXEC,
  PHDR,
  PHDR_SIZE,
  PT_LOAD,
} from './abi.js';

/** What is mapped into a new process: `address` is a multiple of the page size. */
export interface ExecutableSegment {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  /** Bytes in memory; what `bytes` does not give is zero. */
  readonly memorySize: number;
  /** PF_R, PF_W, PF_X together. */
  readonly flags: number;
}

const PAGE = 4096;
const MAGIC = [0x7f, 0x45, 0x4c, 0x46];
/** e_version, at offset 20 of the header, and EI_VERSION, at offset 6. */
const EI_VERSION = 6;
const E_VERSION = 20;
const E_HEADER_SIZE = 52;
const EV_CURRENT = 1;
/** p_paddr and p_align. */
const P_PHYSICAL_ADDRESS = 24;
const P_ALIGN = 48;

/** A static executable of nothing but segments: what a process needs to begin at `entry`. */
export function writeExecutable(entry: bigint, segments: readonly ExecutableSegment[]): Uint8Array {
  const roundUp = (size: number): number => Math.ceil(size / PAGE) * PAGE;
  const first = roundUp(EHDR_SIZE + segments.length * PHDR_SIZE);
  const file = new Uint8Array(segments.reduce((size, s) => size + roundUp(s.bytes.length), first));
  const view = new DataView(file.buffer);
  file.set(MAGIC);
  file[EHDR.class] = ELFCLASS64;
  file[EHDR.data] = ELFDATA2LSB;
  file[EI_VERSION] = EV_CURRENT;
  view.setUint16(EHDR.type, ET_EXEC, true);
  view.setUint16(EHDR.machine, EM_X86_64, true);
  view.setUint32(E_VERSION, EV_CURRENT, true);
  view.setBigUint64(EHDR.entry, entry, true);
  view.setBigUint64(EHDR.programOffset, BigInt(EHDR_SIZE), true);
  view.setUint16(E_HEADER_SIZE, EHDR_SIZE, true);
  view.setUint16(EHDR.programEntrySize, PHDR_SIZE, true);
  view.setUint16(EHDR.programCount, segments.length, true);
  let offset = first;
  segments.forEach(({ address, bytes, memorySize, flags }, index) => {
    const header = EHDR_SIZE + index * PHDR_SIZE;
    view.setUint32(header + PHDR.type, PT_LOAD, true);
    view.setUint32(header + PHDR.flags, flags, true);
    view.setBigUint64(header + PHDR.offset, BigInt(offset), true);
    view.setBigUint64(header + PHDR.address, address, true);
    view.setBigUint64(header + P_PHYSICAL_ADDRESS, address, true);
    view.setBigUint64(header + PHDR.fileSize, BigInt(bytes.length), true);
    view.setBigUint64(header + PHDR.memorySize, BigInt(memorySize), true);
    view.setBigUint64(header + P_ALIGN, BigInt(PAGE), true);
    file.set(bytes, offset);
    offset += roundUp(bytes.length);
  });
  return file;
}
