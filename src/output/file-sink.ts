import { closeSync, fstatSync, openSync, writevSync } from 'node:fs';
import { CannotError } from '../errors/index.js';
import type { RecordingSink } from '../recording/index.js';
import { describeFileError } from './file-error.js';

/** A new file that recordings and outputs are written to. */
export class FileSink implements RecordingSink {
  readonly #fd: number;
  readonly #path: string;

  /** Creates the file, or empties it. Throws OUTPUT_UNWRITABLE. */
  constructor(path: string) {
    this.#path = path;
    try {
      this.#fd = openSync(path, 'w');
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      throw new CannotError('OUTPUT_UNWRITABLE', {
        tried: `write ${path}`,
        why: code === 'ENOENT' ? 'there is no such folder' : describeFileError(error),
        next: code === 'ENOENT' ? 'make the folder or choose another file' : 'choose another file',
        cause: error,
      });
    }
  }

  /** False for a device, a pipe, a socket. */
  get isFile(): boolean {
    return fstatSync(this.#fd).isFile();
  }

  close(): void {
    closeSync(this.#fd);
  }

  write(chunks: readonly Uint8Array[]): void {
    let rest = chunks.filter((chunk) => chunk.length > 0);
    while (rest.length > 0) {
      let written: number;
      try {
        written = writevSync(this.#fd, rest);
      } catch (error) {
        throw this.#unwritable(error);
      }
      // The kernel may take less than all of it: the rest is written again from there.
      rest = rest.flatMap((chunk) => {
        const skipped = Math.min(written, chunk.length);
        written -= skipped;
        return skipped === chunk.length ? [] : [chunk.subarray(skipped)];
      });
    }
  }

  #unwritable(error: unknown): CannotError {
    return new CannotError('OUTPUT_UNWRITABLE', {
      tried: `write ${this.#path}`,
      why: describeFileError(error),
      next: 'make room or choose another file',
      cause: error,
    });
  }
}
