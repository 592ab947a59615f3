import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { CannotError } from '../errors/index.js';
import { describeFileError } from './file-error.js';

/** Opens a regular file. Throws RECORDING_UNREADABLE. */
export function openForReading(path: string): number {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch (error) {
    throw unreadable(path, describeFileError(error), error);
  }
  if (!fstatSync(fd).isFile()) {
    closeSync(fd);
    throw unreadable(path, 'it is not a regular file, and a recording is read more than once');
  }
  return fd;
}

/** Reads at a byte of the file; returns how many bytes it got, 0 at the end. Throws RECORDING_UNREADABLE. */
export function readPiece(
  fd: number,
  path: string,
  buffer: Buffer,
  offset: number,
  bytes: number,
  at: number,
): number {
  try {
    return readSync(fd, buffer, offset, bytes, at);
  } catch (error) {
    throw unreadable(path, describeFileError(error), error);
  }
}

function unreadable(path: string, why: string, cause?: unknown): CannotError {
  return new CannotError('RECORDING_UNREADABLE', {
    tried: `read ${path}`,
    why,
    next: 'give the path of a file that safepoke recorded',
    cause,
  });
}
