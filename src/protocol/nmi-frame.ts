import type { Operation } from './operations.js';
import { call, execute, instead, numbered, step } from './operations.js';
import type { Routine, Step } from './protocol.js';

/**
 * What surrounds the hooks in every protocol that has them: linux/hardirq.h.
 *
 *  nmi_enter: 1. ftrace_nmi_enter, FIRST: whatever runs before it must not be traced.
 *             2. lockdep_off, __irq_enter (traced functions)
 *  nmi:       3. nmi_enter; the handlers, which are traced functions; nmi_exit
 *  nmi_exit:  4. __irq_exit, lockdep_on (no site of a scenario is in them: they are where lockdep_off is, mirrored)
 *             5. ftrace_nmi_exit, LAST
 */
export const nmiFrame: readonly Routine[] = [
  {
    name: 'nmi_enter',
    operations: [
      ...instead('hook-first', execute('lockdep_off')),
      ...numbered(1, call('ftrace_nmi_enter')),
      ...numbered(2, ...step('hook-first', execute('lockdep_off'))),
    ],
  },
  { name: 'nmi_exit', operations: numbered(5, call('ftrace_nmi_exit')) },
  {
    name: 'nmi',
    operations: numbered(3, call('nmi_enter'), execute('handlers'), call('nmi_exit')),
  },
];

export const hookFirst: Step = {
  name: 'hook-first',
  meaning: 'the hook runs before lockdep_off, not after it',
};

/** Which hooks a kernel has depends on what it is built for. */
export interface Configuration {
  readonly architecture: Architecture;
  /** CONFIG_DYNAMIC_FTRACE */
  readonly dynamicFtrace: boolean;
  /** CONFIG_FUNCTION_TRACER */
  readonly functionTracer: boolean;
}

export const architectures = ['x86', 'arm', 'powerpc', 'sh', 'sparc'] as const;
export type Architecture = (typeof architectures)[number];

/** True if ftrace_nmi_enter and ftrace_nmi_exit do anything: on x86, with dynamic ftrace, with the function tracer. */
export function hasHooks(configuration: Configuration): boolean {
  return configuration.architecture === 'x86' && configuration.dynamicFtrace && configuration.functionTracer;
}

/** Hooks that do nothing, as on the architectures and configurations that have none. */
export function emptyHooks(routines: readonly Routine[]): readonly Routine[] {
  const none: readonly Operation[] = [];
  return routines.map((r) =>
    r.name === 'ftrace_nmi_enter' || r.name === 'ftrace_nmi_exit' ? { name: r.name, operations: none } : r,
  );
}
