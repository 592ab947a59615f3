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

/**
 * Reads the ranges one behind the other into `into`, which has room for all of them. Returns how many were read whole, from the first
 * on: behind them is one that cannot be read, or none may be read in this way.
 */
export function readRemoteRanges(pid: number, ranges: readonly MemoryRange[], into: Uint8Array): number {
  const vectors = new BigUint64Array((IOVEC_SIZE / 8) * (MAX_PIECES + 1));
  let done = 0;
  let at = 0;
  while (done < ranges.length) {
    const some = ranges.slice(done, done + MAX_PIECES);
    const bytes = some.reduce((sum, { length }) => sum + length, 0);
    some.forEach(({ address, length }, i) => {
      vectors[i * 2] = BigInt(address);
      vectors[i * 2 + 1] = BigInt(length);
    });
    const own = MAX_PIECES * 2;
    vectors[own] = addressOf(into) + BigInt(at);
    vectors[own + 1] = BigInt(bytes);
    const address = addressOf(new Uint8Array(vectors.buffer));
    const ownAddress = address + BigInt(own * 8);
    let read = Math.max(0, systemCall(SYS.process_vm_readv, pid, ownAddress, 1, address, some.length, 0));
    for (const { length } of some) {
      if (read < length) return done;
      read -= length;
      at += length;
      done++;
    }
  }
  return done;
}
