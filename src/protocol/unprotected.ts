/**
 * No protocol: the patcher writes the site (1) and that is all. Stop-machine holds the other CPUs, not their NMIs.
 */
import { ftraceModifyCode } from './modify-code.js';
import { hookFirst, nmiFrame } from './nmi-frame.js';
import type { Protocol } from './protocol.js';
import { MCOUNT_INSN_SIZE } from './protocol.js';

export const unprotected: Protocol = {
  name: 'unprotected',
  title: 'no protocol: probe_kernel_write alone',
  purpose: 'what the kernel did before: the crash that the protocols are for',
  words: [],
  steps: [hookFirst],
  routines: [
    {
      name: 'do_ftrace_mod_code',
      operations: [
        {
          op: 'write-text',
          at: 'ip',
          code: 'new_code',
          offset: 0,
          length: MCOUNT_INSN_SIZE,
          status: 'status',
          number: 1,
        },
      ],
    },
    { name: 'ftrace_nmi_enter', operations: [] },
    { name: 'ftrace_nmi_exit', operations: [] },
    ftraceModifyCode,
    ...nmiFrame,
  ],
  patch: 'ftrace_modify_code',
  nmi: 'nmi',
};
