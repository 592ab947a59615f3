import type { Operation } from './operations.js';

/** Bytes of a call site on x86: `call rel32` (MCOUNT_INSN_SIZE). */
export const MCOUNT_INSN_SIZE = 5;
/** Bytes of its first piece: the opcode, which a breakpoint replaces by one store. */
export const HEAD_SIZE = 1;

/** Linux error numbers, from include/uapi/asm-generic/errno-base.h. */
export const EPERM = 1;
export const EFAULT = 14;
export const EINVAL = 22;

/** A word of shared memory: 32 bits wide, or as wide as an address if it holds one (`address`, `code`). */
export interface Word {
  readonly name: string;
  readonly initial: number;
  /**
   * `value`: as it stands. `address`: of a site. `code`: of a code buffer. `statistic`: counted, and read by nobody
   * but a report, so the model machine leaves it out.
   */
  readonly use: 'value' | 'address' | 'code' | 'statistic';
  readonly meaning: string;
}

/** A part of the protocol that `--without` can take out. */
export interface Step {
  readonly name: string;
  readonly meaning: string;
}

/** A named sequence of operations. Labels are local to it. It returns at its end or at a `return`. */
export interface Routine {
  readonly name: string;
  readonly operations: readonly Operation[];
}

/**
 * A protocol for changing code on a machine whose CPUs cannot all be stopped.
 *
 * Entry points, by name of routine: `patch` changes one site, or one span (in: registers `ip`, `old_code`, `new_code`, for a
 * span `length`; out: `result`, 0 or a negative error number); `nmi` is all that an NMI does; `thread`, where the machine is not stopped, is what
 * the other CPUs run meanwhile; `trap` handles a breakpoint. `begin` and `end` stand around changes that are made one after the
 * other, as the patcher's too (in: registers `region`, `region_length`, within which all of them lie; out: `result`): if `begin`
 * says that it failed, none is made, and `end` has nothing to do.
 */
export interface Protocol {
  readonly name: string;
  readonly title: string;
  /** Why it is here: one sentence. */
  readonly purpose: string;
  /** What one modification is about: a site, unless said. */
  readonly unit?: 'span';
  /** No NMI arrives on the patcher's CPU. */
  readonly patcherMasked?: true;
  readonly words: readonly Word[];
  readonly steps: readonly Step[];
  readonly routines: readonly Routine[];
  readonly patch: string;
  readonly begin?: string;
  readonly end?: string;
  readonly nmi: string;
  readonly thread?: string;
  readonly trap?: string;
  /** Steps that this variant lacks to begin with. */
  readonly without?: readonly string[];
}

/** Thrown for a step that the protocol does not have; the message lists those that it has. */
export class UnknownStep extends Error {
  constructor(
    readonly protocol: string,
    readonly step: string,
    readonly known: readonly string[],
  ) {
    super(`protocol ${protocol} has no step ${step}`);
    this.name = 'UnknownStep';
  }
}

/**
 * The protocol with some of its steps left out. Throws `UnknownStep`.
 */
export function withoutSteps(protocol: Protocol, steps: readonly string[]): Protocol {
  const known = protocol.steps.map((s) => s.name);
  for (const step of steps) if (!known.includes(step)) throw new UnknownStep(protocol.name, step, known);
  const out = new Set([...steps, ...(protocol.without ?? [])]);
  const routines = protocol.routines.map((routine) => ({
    name: routine.name,
    operations: routine.operations.filter(
      (o) => !(o.step !== undefined && out.has(o.step)) && !(o.instead !== undefined && !out.has(o.instead)),
    ),
  }));
  return { ...protocol, without: [...out], routines };
}

/** The routine of that name; a protocol that calls what it does not have is a defect of its definition. */
export function routineOf(protocol: Protocol, name: string): Routine {
  const found = protocol.routines.find((r) => r.name === name);
  if (found === undefined) throw new Error(`protocol ${protocol.name} has no routine ${name}`);
  return found;
}
