import { closeSync, openSync, readSync } from 'node:fs';
import { withRoom } from './descriptors.js';

/** Bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst), as bits of its upper 32-bit half. */
const IS_FILE_PAGE = 1 << (61 - 32);
const IS_SWAPPED = 1 << (62 - 32);
const IS_PRESENT = 1 << 31;
const ENTRY_SIZE = 8;
const PAGE_SHIFT = 12;

/**
 * Which pages of a private file mapping are still the file's own, not copies that somebody has written to. One flag for each page
 * from `start` on; all false where the kernel does not tell.
 */
export function filePages(pid: number, start: number, length: number): boolean[] {
  const count = length >>> PAGE_SHIFT;
  const bytes = new Uint8Array(count * ENTRY_SIZE);
  let fd: number;
  try {
    fd = withRoom(() => openSync(`/proc/${pid}/pagemap`, 'r'));
  } catch {
    return new Array<boolean>(count).fill(false);
  }
  try {
    const first = Math.floor(start / 2 ** PAGE_SHIFT) * ENTRY_SIZE;
    if (readSync(fd, bytes, 0, bytes.length, first) !== bytes.length)
      return new Array<boolean>(count).fill(false);
  } catch {
    return new Array<boolean>(count).fill(false);
  } finally {
    closeSync(fd);
  }
  const halves = new Int32Array(bytes.buffer);
  return Array.from({ length: count }, (_, i) => {
    const upper = halves[i * 2 + 1];
    if ((upper & IS_PRESENT) !== 0) return (upper & IS_FILE_PAGE) !== 0;
    return (upper & IS_SWAPPED) === 0;
  });
}
