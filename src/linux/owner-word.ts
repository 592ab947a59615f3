// A word of shared memory by which another process learns at once that this thread has died, whatever it died of: a robust
// futex (Documentation/locking/robust-futexes.rst). The kernel marks the word and wakes who waits for it. It needs no file
// descriptor in the other process, and no process id that means the same on both sides.
import { FUTEX, FUTEX_WAITERS, MAP, PROT } from './abi.js';
import { SYS, mapOwn, systemCall, type OwnMapping } from './system-call.js';

/** struct robust_list_head: next, futex_offset, list_op_pending. */
const HEAD_SIZE = 24;
const HEAD_OFFSET_WORD = 1;

/** The entry in the kernel's list lies this far before its word: one word of eight bytes, which points to the next entry. */
export const OWNER_ENTRY_BYTES = 16;

let head: OwnMapping | undefined;
const entries: OwnerWord[] = [];

/** Relinks the list of this thread. Node's own threads have no robust locks, so that no other list is lost. */
function relink(): void {
  head ??= mapOwn(HEAD_SIZE, PROT.read | PROT.write, MAP.private | MAP.anonymous, -1);
  const words = new BigUint64Array(head.bytes, 0, HEAD_SIZE / 8);
  words[HEAD_OFFSET_WORD] = BigInt(OWNER_ENTRY_BYTES);
  let next = head.address;
  for (const entry of entries) {
    entry.link(next);
    next = entry.address;
  }
  words[0] = next;
  systemCall(SYS.set_robust_list, head.address, HEAD_SIZE);
}

/** Ownership of a word, by the thread that makes it, until it is given up or the thread ends. */
export class OwnerWord {
  /** Address of the list entry. */
  readonly address: bigint;
  readonly #link: BigUint64Array;
  readonly #word: Uint32Array;

  /** The word is OWNER_ENTRY_BYTES behind `offset` in a mapping of shared memory of ours. */
  constructor(mapping: OwnMapping, offset: number) {
    this.address = mapping.address + BigInt(offset);
    this.#link = new BigUint64Array(mapping.bytes, offset, 1);
    this.#word = new Uint32Array(mapping.bytes, offset + OWNER_ENTRY_BYTES, 1);
    this.#word[0] = (systemCall(SYS.gettid) | FUTEX_WAITERS) >>> 0;
    entries.push(this);
    relink();
  }

  /** Lets the list go on at the next entry. */
  link(next: bigint): void {
    this.#link[0] = next;
  }

  /** Wakes who waits for the word. */
  wake(): void {
    systemCall(SYS.futex, this.address + BigInt(OWNER_ENTRY_BYTES), FUTEX.wake, 1);
  }

  /** Gives the word up, before its mapping goes. Once more does nothing. */
  release(): void {
    const at = entries.indexOf(this);
    if (at < 0) return;
    entries.splice(at, 1);
    relink();
  }
}
