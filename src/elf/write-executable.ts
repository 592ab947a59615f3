import { EHDR_SIZE, ET_EXEC, PHDR_SIZE, PT_LOAD } from './abi.js';
import { PAGE, writeHeaders, type ProgramHeader } from './elf-writer.js';

/** What is mapped into a new process: `address` is a multiple of the page size. */
export interface ExecutableSegment {
  readonly address: bigint;
  readonly bytes: Uint8Array;
  /** Bytes in memory; what `bytes` does not give is zero. */
  readonly memorySize: number;
  /** PF_R, PF_W, PF_X together. */
  readonly flags: number;
}

/** A static executable of nothing but segments: what a process needs to begin at `entry`. */
export function writeExecutable(entry: bigint, segments: readonly ExecutableSegment[]): Uint8Array {
  const roundUp = (size: number): number => Math.ceil(size / PAGE) * PAGE;
  const first = roundUp(EHDR_SIZE + segments.length * PHDR_SIZE);
  const file = new Uint8Array(segments.reduce((size, s) => size + roundUp(s.bytes.length), first));
  let offset = first;
  const headers = segments.map(({ address, bytes, memorySize, flags }): ProgramHeader => {
    const header = {
      type: PT_LOAD,
      flags,
      offset,
      address,
      fileSize: bytes.length,
      memorySize,
      alignment: PAGE,
    };
    file.set(bytes, offset);
    offset += roundUp(bytes.length);
    return header;
  });
  writeHeaders(file, ET_EXEC, entry, headers);
  return file;
}
