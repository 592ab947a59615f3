import type { DisplacedInstruction } from './sites.js';

/** How an instruction leaves its function. `return`: a `ret` of any form. `tail`: a jump, conditional or not, to another function. */
export type ExitKind = 'return' | 'tail';

/**
 * The last instructions of a function's path, which others jump to and which have no room for a site: those that jump there execute a copy
 * instead. The last of `displaced` is the exit. The address is that of the file; `original` are the bytes there. Where one of them may fault
 * nothing is displaced: those that jump there record before they do.
 */
export interface ExitBlock {
  readonly addressNumber: number;
  readonly original: Uint8Array;
  readonly displaced: readonly DisplacedInstruction[];
  readonly kind: ExitKind;
  /** Bytes on the stack above which the return address stands where the exit is recorded. */
  readonly depth: number;
}

/**
 * Says that displaced instruction number `index` of a site leaves the function; with `block`: by a jump to that. An index behind the last one
 * says that nothing but an exit follows, and what may fault before it: it is recorded before those.
 */
export interface ExitMark {
  readonly index: number;
  readonly kind: ExitKind;
  readonly block?: ExitBlock;
  /** As `ExitBlock.depth`; 0 unless the index is behind the last instruction. */
  readonly depth?: number;
}

/**
 * A place where a function is left, and what is written there. The stub executes `displaced`; right before an instruction that is marked
 * it records (of a conditional jump: on its taken side only). Nothing lands strictly within the bytes that are overwritten, nor on an
 * instruction between the window's start and an exit. Addresses are those of the file.
 */
export interface ExitWindow {
  readonly addressNumber: number;
  /** Index of the window in the bytes of the file. */
  readonly originalAt: number;
  /** The same of what follows the last instruction that is displaced. */
  readonly end: number;
  /**
   * `jump`: a five-byte jump to the stub. `branch`: a conditional jump of six bytes (0F 8x rel32) is the exit, and only its distance is
   * changed.
   */
  readonly form: 'jump' | 'branch';
  /** Bytes from the window's start to where the original code goes on. */
  readonly displacedLength: number;
  readonly displacedCount: number;
  readonly displaced: readonly DisplacedInstruction[];
  /** Ascending. */
  readonly exits: readonly ExitMark[];
}

/** All places where one function is left. */
export interface FunctionExits {
  /** What the site at the entry displaces, where that is more than it needs for itself: it goes on through an exit behind it. */
  readonly entry: Pick<ExitWindow, 'displacedLength' | 'displacedCount' | 'displaced'> | undefined;
  /** Those among the instructions that its own site at the entry displaces. */
  readonly entryExits: readonly ExitMark[];
  readonly windows: readonly ExitWindow[];
}

/** Why a function is traced by its entry only; the strings are stable. */
export type ExitRefusal = 'landing' | 'no-room' | 'falls-through' | 'computed-jump' | 'odd-stack';
