/**
 * The primitive operations of which every protocol is made. A protocol is plain data: it is interpreted by the model
 * machine, lowered to machine code and printed as Promela, so nothing here may hide a closure.
 *
 * Registers belong to the context that runs (a patcher, a thread, an NMI handler) and are named by strings. A routine
 * reads its parameters from the registers that it declares and leaves its results in others: a call passes nothing else.
 */

/** A number is an immediate value, a string the name of a register (or one of the reserved names below). */
export type Operand = number | string;

/**
 * Reserved, read-only: the address of a one-byte buffer that holds the breakpoint instruction. A code operand, as
 * `new_code` is.
 */
export const BREAKPOINT = 'breakpoint';
/** Reserved, read-only: the address of a buffer that holds the five-byte nop. A code operand. */
export const SKIP = 'skip';
/** Reserved, read-only, in `trap` only: the address of the site whose breakpoint was executed. */
export const TRAPPED_IP = 'trapped_ip';

/** The unit of `read-clock`, in ticks of the time-stamp counter: 32 bits of them last for many minutes. */
export const CLOCK_UNIT_TICKS = 1024;

/** How two values are compared. `any-set`: they share a set bit; `none-set`: they share none. */
export type Test = 'equal' | 'not-equal' | 'any-set' | 'none-set';

/**
 * `full` orders everything before it before everything after it (smp_mb), `write` stores before stores (smp_wmb),
 * `read` loads before loads (smp_rmb).
 */
export type FenceKind = 'full' | 'write' | 'read';

/** The traced functions that an NMI or a thread calls; a scenario says which sites each of them has. */
export type TracedFunction = 'lockdep_off' | 'handlers' | 'thread_work';

export type Primitive =
  | { readonly op: 'set'; readonly to: string; readonly value: Operand }
  | {
      readonly op: 'calculate';
      readonly to: string;
      readonly left: Operand;
      readonly by: 'plus' | 'and' | 'or';
      readonly right: Operand;
    }
  | { readonly op: 'load'; readonly to: string; readonly word: string }
  | { readonly op: 'store'; readonly word: string; readonly value: Operand }
  /** Atomic. With `old`, the value before the addition is wanted (xadd); without it, nobody looks (lock add). */
  | { readonly op: 'fetch-add'; readonly word: string; readonly value: Operand; readonly old?: string }
  /** Atomic. `old` is the value found: the swap was made if it equals `expected`. */
  | {
      readonly op: 'compare-swap';
      readonly word: string;
      readonly expected: Operand;
      readonly desired: Operand;
      readonly old: string;
    }
  | { readonly op: 'fence'; readonly kind: FenceKind }
  /**
   * Spins (`cpu_relax`) until the word passes the test. `waits` is a statistic: it is counted up if the word does not pass
   * at once.
   */
  | {
      readonly op: 'wait-until';
      readonly word: string;
      readonly test: Test;
      readonly value: Operand;
      readonly waits?: string;
    }
  /** A counter that nothing but a report reads: an atomic increment of a word whose `use` is `statistic`. */
  | { readonly op: 'count'; readonly word: string }
  /** For a report only: the time now, in units of `CLOCK_UNIT_TICKS`. */
  | { readonly op: 'read-clock'; readonly to: string }
  /**
   * For a report only: raises a statistic to the time since the clock was read. Not atomic: for words that the patcher alone
   * writes.
   */
  | { readonly op: 'note-longest'; readonly word: string; readonly since: string }
  /**
   * `probe_kernel_write`: copies `length` bytes of the code buffer at `code`, from `offset` on, to the same offset of
   * the site at `at`. Not atomic. `status` is 0, or -EFAULT if either address is bad; it never crashes. A length in a register
   * is that of a span: of several sites, of which some may be written when it fails.
   */
  | {
      readonly op: 'write-text';
      readonly at: Operand;
      readonly code: Operand;
      readonly offset: number;
      readonly length: Operand;
      readonly status: string;
    }
  /**
   * Compares the site at `at` (a span, if there is a length) with the code buffer: `result` is 0 if equal, 1 if not, -EFAULT if it
   * cannot be read.
   */
  | {
      readonly op: 'compare-text';
      readonly at: Operand;
      readonly code: Operand;
      readonly length?: Operand;
      readonly result: string;
    }
  /**
   * Makes the text of a span writable, where it is not and only so can be written. `status` is 0, also where there is nothing to
   * do; -EFAULT if that is refused, perhaps with some of it writable. All CPUs know of it when it is done.
   */
  | { readonly op: 'unlock-text'; readonly at: Operand; readonly length: Operand; readonly status: string }
  /** Gives the text of a span the rights back that it had before it was first made writable. */
  | { readonly op: 'lock-text'; readonly at: Operand; readonly length: Operand }
  /** Calls a traced function: its site is executed. */
  | { readonly op: 'execute'; readonly function: TracedFunction }
  /** In `trap` only: does what the instruction in the code buffer would have done, and returns behind the site. */
  | { readonly op: 'emulate'; readonly code: Operand }
  /** In `trap` only: returns to the site, which is executed again. */
  | { readonly op: 'retry' }
  /** Serialises this CPU's instruction stream (`sync_core`). It orders no memory accesses. */
  | { readonly op: 'sync-core' }
  /** Returns once every other CPU has been between two instructions, and refetches what it executes next. */
  | { readonly op: 'sync-all' }
  | { readonly op: 'call'; readonly routine: string }
  | {
      readonly op: 'branch';
      readonly left: Operand;
      readonly test: Test;
      readonly right: Operand;
      readonly to: string;
    }
  | { readonly op: 'jump'; readonly to: string }
  | { readonly op: 'label'; readonly name: string }
  /** Leaves the routine. */
  | { readonly op: 'return' };

/** Where an operation belongs. */
export interface Placement {
  /** The name under which it can be left out (`--without`). */
  readonly step?: string;
  /** Present only if the step of this name is left out: what stands in the place of the step. */
  readonly instead?: string;
  /** The number of the step in the prose at the head of the protocol's file. */
  readonly number?: number;
}

export type Operation = Primitive & Placement;

export const set = (to: string, value: Operand): Primitive => ({ op: 'set', to, value });
export const calculate = (
  to: string,
  left: Operand,
  by: 'plus' | 'and' | 'or',
  right: Operand,
): Primitive => ({
  op: 'calculate',
  to,
  left,
  by,
  right,
});
export const load = (to: string, word: string): Primitive => ({ op: 'load', to, word });
export const store = (word: string, value: Operand): Primitive => ({ op: 'store', word, value });
export const atomicAdd = (word: string, value: Operand): Primitive => ({ op: 'fetch-add', word, value });
export const fetchAdd = (old: string, word: string, value: Operand): Primitive => ({
  op: 'fetch-add',
  word,
  value,
  old,
});
export const compareSwap = (old: string, word: string, expected: Operand, desired: Operand): Primitive => ({
  op: 'compare-swap',
  word,
  expected,
  desired,
  old,
});
export const smpMb = (): Primitive => ({ op: 'fence', kind: 'full' });
export const smpWmb = (): Primitive => ({ op: 'fence', kind: 'write' });
export const smpRmb = (): Primitive => ({ op: 'fence', kind: 'read' });
export const waitUntil = (word: string, test: Test, value: Operand, waits?: string): Primitive => ({
  op: 'wait-until',
  word,
  test,
  value,
  ...(waits === undefined ? {} : { waits }),
});
export const count = (word: string): Primitive => ({ op: 'count', word });
export const readClock = (to: string): Primitive => ({ op: 'read-clock', to });
export const noteLongest = (word: string, since: string): Primitive => ({ op: 'note-longest', word, since });
export const unlockText = (at: Operand, length: Operand, status: string): Primitive => ({
  op: 'unlock-text',
  at,
  length,
  status,
});
export const lockText = (at: Operand, length: Operand): Primitive => ({ op: 'lock-text', at, length });
export const execute = (traced: TracedFunction): Primitive => ({ op: 'execute', function: traced });
export const emulate = (code: Operand): Primitive => ({ op: 'emulate', code });
export const retry = (): Primitive => ({ op: 'retry' });
export const syncCore = (): Primitive => ({ op: 'sync-core' });
export const syncAll = (): Primitive => ({ op: 'sync-all' });
export const call = (routine: string): Primitive => ({ op: 'call', routine });
export const branch = (left: Operand, test: Test, right: Operand, to: string): Primitive => ({
  op: 'branch',
  left,
  test,
  right,
  to,
});
export const jump = (to: string): Primitive => ({ op: 'jump', to });
export const label = (name: string): Primitive => ({ op: 'label', name });
export const leave = (): Primitive => ({ op: 'return' });

/** Puts operations under a step's name, so that `--without` takes them all out together. */
export function step(name: string, ...operations: readonly Operation[]): readonly Operation[] {
  return operations.map((operation) => ({ ...operation, step: name }));
}

/** What stands in the place of a step that is left out. */
export function instead(name: string, ...operations: readonly Operation[]): readonly Operation[] {
  return operations.map((operation) => ({ ...operation, instead: name }));
}

/** Gives operations the number of their step in the prose. */
export function numbered(
  number: number,
  ...operations: readonly (Operation | readonly Operation[])[]
): readonly Operation[] {
  return operations.flat().map((operation) => ({ ...operation, number }));
}
