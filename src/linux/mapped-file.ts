// The file of a mapping of another process. Its path leads where that process, or anybody else, has it lead by now: to a pipe that nobody
// writes into, to a device. So it is named first, which opens nothing, and read once it is proven to be an ordinary file.
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import type { Mapping } from './proc.js';

/** include/uapi/asm-generic/fcntl.h: names a file and opens nothing. */
const O_PATH = 0o1000_0000;

export class MappedFile {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Undefined where it is gone, or may not be read. */
  static open(pid: number, { start, end, path, inode }: Mapping): MappedFile | undefined {
    // The kernel's own name of it needs privileges; of others the inode tells.
    const own = `/proc/${pid}/map_files/${start.toString(16)}-${end.toString(16)}`;
    for (const candidate of [own, `/proc/${pid}/root${path}`, path]) {
      let named: number | undefined;
      try {
        named = openSync(candidate, O_PATH);
        const stat = fstatSync(named);
        if (!stat.isFile() || (candidate !== own && stat.ino !== inode)) continue;
        const flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
        return new MappedFile(openSync(`/proc/self/fd/${named}`, flags));
      } catch {
        continue;
      } finally {
        if (named !== undefined) closeSync(named);
      }
    }
    return undefined;
  }

  /** Reads up to so many bytes; fewer where the file ends, or cannot be read. */
  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    try {
      return bytes.subarray(0, readSync(this.#fd, bytes, 0, length, offset));
    } catch {
      return bytes.subarray(0, 0);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }
}
