// Many pieces of another process's memory at once: one system call reads what a thousand would (process_vm_readv(2)).
import { SYS, addressOf, systemCall } from './system-call.js';

/** A piece of memory. */
export interface MemoryRange {
  readonly address: number;
  readonly length: number;
}

/** IOV_MAX of Linux, include/uapi/linux/uio.h */
const MAX_PIECES = 1024;
/** struct iovec: base, length. */
const IOVEC_SIZE = 16;
const TWO_TO_32 = 2 ** 32;

/**
 * Reads the ranges from index `first` on, one behind the other, into `into`, which has room for all of them. Returns how many were read whole, from that
 * on: behind them is one that cannot be read, or none may be read in this way.
 */
export function readRemoteRanges(
  pid: number,
  ranges: readonly MemoryRange[],
  first: number,
  into: Uint8Array,
): number {
  // Halves of words rather than bigints, which would be the most of it where there are thousands.
  const vectors = new Uint32Array((IOVEC_SIZE / 4) * (MAX_PIECES + 1));
  const vectorsAddress = Number(addressOf(new Uint8Array(vectors.buffer)));
  const intoAddress = Number(addressOf(into));
  const put = (i: number, address: number, length: number): void => {
    vectors[i * 4] = address % TWO_TO_32;
    vectors[i * 4 + 1] = Math.floor(address / TWO_TO_32);
    vectors[i * 4 + 2] = length % TWO_TO_32;
    vectors[i * 4 + 3] = Math.floor(length / TWO_TO_32);
  };
  const own = vectorsAddress + MAX_PIECES * IOVEC_SIZE;
  let done = first;
  let at = 0;
  while (done < ranges.length) {
    const count = Math.min(MAX_PIECES, ranges.length - done);
    let bytes = 0;
    for (let i = 0; i < count; i++) {
      const { address, length } = ranges[done + i];
      put(i, address, length);
      bytes += length;
    }
    put(MAX_PIECES, intoAddress + at, bytes);
    let read = Math.max(0, systemCall(SYS.process_vm_readv, pid, own, 1, vectorsAddress, count, 0));
    for (let i = 0; i < count; i++) {
      const { length } = ranges[done];
      if (read < length) return done - first;
      read -= length;
      at += length;
      done++;
    }
  }
  return done - first;
}
