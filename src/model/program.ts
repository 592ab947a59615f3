import type { Test } from '../protocol/index.js';
import type { Machine } from './machine.js';
import type { Change, Image, Scenario } from './scenario.js';

/**
 * A protocol and a scenario, flattened for the model machine: one array of instructions, all names resolved.
 *
 * An argument is a byte value (0 to 255) or, if negative, a register: -1 is register 0.
 * A cell is a byte of shared memory: a word of the protocol (its 32 bits folded into 8, see `foldWord`), a piece of a
 * site's text, or a piece of the static code buffer. Pieces of text are held as small numbers that stand for the
 * bytes: equal numbers, equal bytes.
 */
export type Argument = number;

interface Common {
  /** Index of the instruction that follows. */
  next: number;
  readonly where: Where;
}

/** Where in the protocol an instruction comes from, for people. */
export interface Where {
  readonly routine: string;
  readonly text: string;
  readonly number?: number;
}

export type Instruction = Common &
  (
    | { readonly kind: 'set'; readonly register: number; readonly value: Argument }
    | {
        readonly kind: 'calculate';
        readonly register: number;
        readonly left: Argument;
        readonly by: 'plus' | 'and' | 'or';
        readonly right: Argument;
      }
    | {
        readonly kind: 'branch';
        readonly left: Argument;
        readonly test: Test;
        readonly right: Argument;
        target: number;
      }
    | { readonly kind: 'jump' }
    | { readonly kind: 'load'; readonly register: number; readonly cell: number }
    | { readonly kind: 'store'; readonly cell: number; readonly value: Argument }
    /** An atomic addition whose old value nobody looks at. */
    | { readonly kind: 'add'; readonly cell: number; readonly value: Argument }
    | {
        readonly kind: 'fetch-add';
        readonly register: number;
        readonly cell: number;
        readonly value: Argument;
      }
    | {
        readonly kind: 'compare-swap';
        readonly register: number;
        readonly cell: number;
        readonly expected: Argument;
        readonly desired: Argument;
      }
    | { readonly kind: 'full-fence' }
    | { readonly kind: 'write-fence' }
    | { readonly kind: 'wait'; readonly cell: number; readonly test: Test; readonly value: Argument }
    /** Sets `register` to -EFAULT and goes to `target` if the address is bad; goes on if it is good. */
    | {
        readonly kind: 'check-access';
        readonly at: Argument;
        readonly access: 'read' | 'write' | 'unlock';
        readonly code: Argument;
        readonly register: number;
        target: number;
      }
    /** The same of a site that is writable at times only: is it now? One that always is, is. */
    | {
        readonly kind: 'check-lock';
        readonly at: Argument;
        readonly register: number;
        target: number;
      }
    /** Makes a site writable (1), or not (0), at once and for all CPUs, if it is one that is writable at times only. */
    | { readonly kind: 'set-lock'; readonly at: Argument; readonly value: Argument }
    | {
        readonly kind: 'load-code';
        readonly register: number;
        readonly code: Argument;
        readonly piece: number;
      }
    | { readonly kind: 'load-text'; readonly register: number; readonly at: Argument; readonly piece: number }
    | { readonly kind: 'store-text'; readonly at: Argument; readonly piece: number; readonly value: Argument }
    /** Fetches one piece; `alternative` may run in its place (the other piece first). */
    | {
        readonly kind: 'fetch-first';
        readonly site: number;
        readonly piece: number;
        readonly register: number;
        alternative: number;
        trap: number;
      }
    /** Fetches the other piece and decodes. */
    | {
        readonly kind: 'fetch-second';
        readonly site: number;
        readonly piece: number;
        readonly first: Argument;
        trap: number;
      }
    | { readonly kind: 'emulate'; readonly site: number; readonly code: Argument }
    | { readonly kind: 'sync'; readonly register: number }
    | { readonly kind: 'sync-wait'; readonly register: number }
    /** The patcher asserts that a change had the result that it must have. */
    | {
        readonly kind: 'expect';
        readonly value: Argument;
        readonly result: Argument;
        readonly change: number;
      }
    | { readonly kind: 'end' }
  );

/** A byte of shared memory. */
export type Cell =
  | {
      readonly kind: 'word';
      readonly name: string;
      readonly initial: number;
      readonly use: 'value' | 'address' | 'code';
    }
  | { readonly kind: 'text'; readonly site: number; readonly piece: number; readonly initial: number }
  | { readonly kind: 'buffer'; readonly piece: number; readonly initial: number }
  /** 1: the site can be written. */
  | { readonly kind: 'lock'; readonly site: number; readonly initial: number };

/** What runs on a CPU when no NMI does, and what an NMI runs. */
export interface ContextProgram {
  readonly start: number;
  readonly registers: readonly string[];
}

export interface Program {
  readonly name: string;
  readonly without: readonly string[];
  readonly machine: Machine;
  readonly scenario: Scenario;
  /** As the protocol is asked for them: by sites or by spans. */
  readonly changes: readonly Change[];
  readonly instructions: readonly Instruction[];
  readonly cells: readonly Cell[];
  /** First of the cells of text: cell `textBase + 2 * site + piece`. */
  readonly textBase: number;
  /** First of the cells of the static code buffer, or -1. */
  readonly staticBase: number;
  /** First of the cells that say which sites can be written, one for each, or -1 if that never changes. */
  readonly lockBase: number;
  readonly patcher: ContextProgram;
  /** What the other CPUs run: nothing if the machine is stopped. */
  readonly other: ContextProgram;
  readonly nmi: ContextProgram;
  /** Code buffers by address (1 and up): the image, or undefined for the static one. */
  readonly buffers: readonly (Image | undefined)[];
  /** The pieces of each code buffer, by address. */
  readonly bufferPieces: readonly (readonly [number, number])[];
  /** Bytes that each piece number stands for. */
  readonly pieces: readonly (readonly number[])[];
  /** For each site the decodings [head, tail] that it may have. */
  readonly validImages: readonly (readonly (readonly [number, number])[])[];
  /** For each site what must stand there in the end. */
  readonly finalText: readonly (readonly [number, number])[];
  /** Number of the piece that is the breakpoint instruction. */
  readonly breakpointPiece: number;
  /** True if no NMI arrives on the patcher's CPU. */
  readonly patcherMasked: boolean;
  /** True if the other CPUs run while code is changed. */
  readonly live: boolean;
}

export const HEAD = 0;
export const TAIL = 1;

const LOW_BYTE = 0xff;
const HIGH_FIELD_SHIFT = 16;
const HIGH_FIELD_MASK = 0x7fff;
const SMALL = 0x8000;

/**
 * Folds 32 bits into 8: bit 31 becomes bit 7, bits 16 to 22 become bits 4 to 6, bits 0 to 3 stay; negative error
 * numbers keep their low byte. Additions and bit tests mean the same on both sides as long as no count leaves its
 * field, and counts here are bounded by the number of CPUs.
 */
export function foldWord(value: number): number {
  if (value < 0 && -value >= SMALL) return -foldWord(-value) & LOW_BYTE;
  if (value < SMALL) return value & LOW_BYTE;
  const flag = value >= 0x8000_0000 ? 0x80 : 0;
  const high = (Math.floor(value / 2 ** HIGH_FIELD_SHIFT) & HIGH_FIELD_MASK) << 4;
  const low = value & 0xffff ? value & 0xf : 0;
  return (flag | (high & 0x70) | low) & LOW_BYTE;
}

export function passes(left: number, test: Test, right: number): boolean {
  switch (test) {
    case 'equal':
      return left === right;
    case 'not-equal':
      return left !== right;
    case 'any-set':
      return (left & right) !== 0;
    case 'none-set':
      return (left & right) === 0;
  }
}
