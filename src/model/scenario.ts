import { EFAULT, EINVAL, EPERM, MCOUNT_INSN_SIZE } from '../protocol/index.js';
import type { TracedFunction } from '../protocol/index.js';

/** Five bytes of text. */
export interface Image {
  readonly name: string;
  readonly bytes: readonly number[];
}

/** The five-byte nop of x86: nopl 0x0(%rax,%rax,1). */
export const NOP: Image = { name: 'nop', bytes: [0x0f, 0x1f, 0x44, 0x00, 0x00] };
const CALL_OPCODE = 0xe8;
const BYTE_MASK = 0xff;
const BITS_PER_BYTE = 8;

function callImage(name: string, displacement: number): Image {
  const bytes = [CALL_OPCODE];
  for (let i = 0; i < MCOUNT_INSN_SIZE - 1; i++)
    bytes.push((displacement >>> (i * BITS_PER_BYTE)) & BYTE_MASK);
  return { name, bytes };
}

/** Displacements of `call mcount` from three sites, 0x40 bytes apart: a call belongs to its site. */
const CALL_A = callImage('call mcount (from A)', 0x1ffb);
const CALL_B = callImage('call mcount (from B)', 0x1fbb);
const CALL_C = callImage('call mcount (from C)', 0x1f7b);
/** Another function, called from the first site. */
const CALL_A_OTHER = callImage('call ftrace_caller (from A)', 0x2ffb);

export interface Site {
  readonly name: string;
  readonly initial: Image;
  /**
   * `patcher-only`: what the patcher may write, NMIs may not: they have no descriptor, or a filter forbids it. `locked`: it must be
   * made writable first, and not be left so; `locked-patcher-only`: then NMIs may not all the same; `sealed`: that is refused.
   */
  readonly page:
    'writable' | 'read-only' | 'unmapped' | 'patcher-only' | 'locked' | 'locked-patcher-only' | 'sealed';
}

/** May a site on such a page be accessed so? Whether it is locked now is another question, and whether it is there. */
export function allows(page: Site['page'], access: 'read' | 'write' | 'unlock', inNmi: boolean): boolean {
  if (access === 'read') return true;
  if (access === 'unlock') return page !== 'sealed';
  if (page === 'patcher-only' || page === 'locked-patcher-only') return !inNmi;
  return page !== 'read-only' && page !== 'sealed';
}

/** True if writing it takes that it is made writable. */
export function isLocked(site: Site): boolean {
  return site.page === 'locked' || site.page === 'locked-patcher-only' || site.page === 'sealed';
}

/**
 * A change that is asked for, and the result that it must have: of one site, or of several that follow each other, in one span. A
 * protocol whose unit is a site is asked for one after the other.
 */
export interface Change {
  /** The first site. */
  readonly site: number;
  readonly from: readonly Image[];
  readonly to: readonly Image[];
  /** 0, or a negative error number. */
  readonly result: number;
}

export interface Scenario {
  readonly name: string;
  readonly summary: string;
  readonly sites: readonly Site[];
  readonly changes: readonly Change[];
  /** Which sites (by index) the traced functions have. */
  readonly functions: Readonly<Record<TracedFunction, readonly number[]>>;
  /** All changes are made one after the other: what a protocol does before the first and after the last it does once. */
  readonly isSeries?: true;
  /** The new code of every change passes through one static buffer, which the patcher rewrites for each. */
  readonly staticBuffer: boolean;
  /**
   * Asks whether the waits end: NMIs on all CPUs but the patcher's own keep coming for ever, whatever the machine's
   * bound says. They execute no site that changes, so the wait alone is at stake.
   */
  readonly storm: boolean;
}

const A: Site = { name: 'A', initial: NOP, page: 'writable' };
const B: Site = { name: 'B', initial: NOP, page: 'writable' };
const C: Site = { name: 'C', initial: NOP, page: 'writable' };
const nopToCallA: Change = { site: 0, from: [NOP], to: [CALL_A], result: 0 };
const callAToNop: Change = { site: 0, from: [CALL_A], to: [NOP], result: 0 };
const nopToCallB: Change = { site: 1, from: [NOP], to: [CALL_B], result: 0 };
const nopToCallC: Change = { site: 2, from: [NOP], to: [CALL_C], result: 0 };
const nopsToCalls: Change = { site: 0, from: [NOP, NOP], to: [CALL_A, CALL_B], result: 0 };
const callsToNops: Change = { site: 0, from: [CALL_A, CALL_B], to: [NOP, NOP], result: 0 };
const executesOne = { lockdep_off: [0], handlers: [], thread_work: [0] };
const executesBoth = { lockdep_off: [0], handlers: [1], thread_work: [0, 1] };

export const twoSites: Scenario = {
  name: 'two-sites',
  summary: 'nop to call at site A, then at site B; the bytes differ',
  sites: [A, B],
  changes: [nopToCallA, nopToCallB],
  functions: executesBoth,
  staticBuffer: false,
  storm: false,
};

export const callAndBack: Scenario = {
  name: 'call-and-back',
  summary: 'site A from nop to call, and back to nop',
  sites: [A],
  changes: [nopToCallA, callAToNop],
  functions: executesOne,
  staticBuffer: false,
  storm: false,
};

const locked = (site: Site): Site => ({ ...site, page: 'locked' });

export const scenarios: readonly Scenario[] = [
  twoSites,
  callAndBack,
  {
    ...twoSites,
    name: 'static-buffer',
    summary: 'two-sites, with one static code buffer that is rewritten for each change',
    staticBuffer: true,
  },
  {
    ...callAndBack,
    name: 'static-buffer-back',
    summary: 'call-and-back, with one static code buffer that is rewritten for each change',
    staticBuffer: true,
  },
  {
    name: 'faulting-site',
    summary: 'site A is on a read-only page (-EPERM, nothing changes); then site B, which is not',
    sites: [{ ...A, page: 'read-only' }, B],
    changes: [{ ...nopToCallA, result: -EPERM }, nopToCallB],
    functions: executesBoth,
    staticBuffer: false,
    storm: false,
  },
  {
    name: 'verified',
    summary: 'site A is unmapped (-EFAULT); site B is not what was expected (-EINVAL), then it is',
    sites: [{ ...A, page: 'unmapped' }, B],
    changes: [
      { ...nopToCallA, result: -EFAULT },
      { site: 1, from: [CALL_B], to: [NOP], result: -EINVAL },
      nopToCallB,
    ],
    functions: { lockdep_off: [1], handlers: [], thread_work: [1] },
    staticBuffer: false,
    storm: false,
  },
  {
    ...callAndBack,
    name: 'call-to-call',
    summary: 'site A from a call of one function to a call of another',
    sites: [{ ...A, initial: CALL_A }],
    changes: [{ site: 0, from: [CALL_A], to: [CALL_A_OTHER], result: 0 }],
  },
  {
    ...twoSites,
    name: 'spans',
    summary: 'nops to calls at sites A and B in one span, then at site C',
    sites: [A, B, C],
    changes: [nopsToCalls, nopToCallC],
    functions: { lockdep_off: [0], handlers: [1, 2], thread_work: [0, 1, 2] },
  },
  {
    ...twoSites,
    name: 'span-and-back',
    summary: 'sites A and B in one span from nops to calls, and back to nops',
    changes: [nopsToCalls, callsToNops],
  },
  {
    ...twoSites,
    name: 'faulting-span',
    summary: 'of a span site B is on a read-only page (-EPERM, nothing changes); then site A alone',
    sites: [A, { ...B, page: 'read-only' }],
    changes: [{ ...nopsToCalls, result: -EPERM }, nopToCallA],
  },
  {
    ...twoSites,
    name: 'failing-helpers',
    summary: 'sites A and B in one span, of which NMIs cannot write the second: only the patcher can',
    sites: [A, { ...B, page: 'patcher-only' }],
    changes: [nopsToCalls],
  },
  {
    ...twoSites,
    name: 'locked-spans',
    summary: 'spans, in one series, of text that must be made writable first, and not be left so',
    sites: [locked(A), locked(B), locked(C)],
    changes: [nopsToCalls, nopToCallC],
    functions: { lockdep_off: [0], handlers: [1, 2], thread_work: [0, 1, 2] },
    isSeries: true,
  },
  {
    ...twoSites,
    name: 'locked-and-back',
    summary:
      'span-and-back, each by itself, of text that must be made writable first; NMIs cannot write site B even then',
    sites: [locked(A), { ...B, page: 'locked-patcher-only' }],
    changes: [nopsToCalls, callsToNops],
  },
  {
    ...twoSites,
    name: 'sealed-span',
    summary:
      'of a span site B may not be made writable (-EPERM, nothing changes); then site A alone, which may',
    sites: [locked(A), { ...B, page: 'sealed' }],
    changes: [{ ...nopsToCalls, result: -EPERM }, nopToCallA],
  },
  {
    ...callAndBack,
    name: 'nmi-storm',
    summary: 'one change while NMIs keep coming on the other CPUs: does every wait end?',
    changes: [nopToCallA],
    functions: { lockdep_off: [], handlers: [], thread_work: [] },
    storm: true,
  },
];

/** Text as the model holds it: the head (one byte) and the tail (four) of an instruction. */
export function pieceBytes(image: Image): readonly [readonly number[], readonly number[]] {
  return [image.bytes.slice(0, 1), image.bytes.slice(1)];
}

/** The scenario of that name, which must exist. */
export function scenarioNamed(name: string): Scenario {
  const found = scenarios.find((s) => s.name === name);
  if (found === undefined) throw new Error(`there is no scenario ${name}`);
  return found;
}
