/**
 * The protocol of "ftrace: nmi safe code modification" (Linux, October 2008), with its names.
 *
 * The patcher, in do_ftrace_mod_code:
 *  1. Put the instruction pointer into the IP buffer and the new code into the "code" buffer.
 *  2. Set a flag that says that code is being modified.
 *  3. Wait for any running NMIs to finish.
 *  4. Write the code.
 *  5. Clear the flag.
 *  6. Wait for any running NMIs to finish: this matters for the next change, which reuses the buffers.
 * An NMI:
 *  7. On the way in, before it runs anything: count itself; if the flag is set, write the pending code too.
 *  8. On the way out: finish everything, then stop being counted.
 *
 * As written it is NOT safe where NMIs run on two CPUs at once: step 3 protects running NMIs from the patcher, not from
 * another NMI that helps.
 */
import {
  atomicAdd,
  branch,
  call,
  count,
  label,
  load,
  noteLongest,
  numbered,
  readClock,
  smpMb,
  smpWmb,
  step,
  store,
  waitUntil,
} from './operations.js';
import { ftraceModifyCode } from './modify-code.js';
import { hookFirst, nmiFrame } from './nmi-frame.js';
import type { Protocol } from './protocol.js';
import { MCOUNT_INSN_SIZE } from './protocol.js';

export const nmi2008: Protocol = {
  name: 'nmi-2008',
  title: 'the protocol of 2008, as written',
  purpose: 'NMIs help to make the change; waits on both sides of the write',
  words: [
    { name: 'in_nmi', initial: 0, use: 'value', meaning: 'NMIs now running, on all CPUs' },
    { name: 'mod_code_status', initial: 0, use: 'value', meaning: 'result of the write' },
    { name: 'mod_code_write', initial: 0, use: 'value', meaning: 'the flag: a change is pending' },
    { name: 'mod_code_ip', initial: 0, use: 'address', meaning: 'the IP buffer' },
    { name: 'mod_code_newcode', initial: 0, use: 'code', meaning: 'the code buffer' },
    { name: 'nmi_wait_count', initial: 0, use: 'statistic', meaning: 'times the patcher had to wait' },
    { name: 'nmi_longest_wait', initial: 0, use: 'statistic', meaning: 'the longest of its waits' },
    { name: 'nmi_update_count', initial: 0, use: 'statistic', meaning: 'times an NMI helped' },
  ],
  steps: [
    { name: 'fill-barrier', meaning: 'smp_wmb after the buffers are filled' },
    { name: 'flag-barrier', meaning: 'smp_mb after the flag is set, before the first wait' },
    { name: 'first-wait', meaning: 'wait_for_nmi before the write' },
    { name: 'wait-barrier', meaning: 'smp_mb after the first wait' },
    { name: 'write-barrier', meaning: 'smp_wmb after the write, before the flag is cleared' },
    { name: 'clear-barrier', meaning: 'smp_mb after the flag is cleared, before the last wait' },
    { name: 'last-wait', meaning: 'wait_for_nmi after the flag is cleared' },
    { name: 'enter-barrier', meaning: 'smp_mb in ftrace_nmi_enter, before the flag is read' },
    { name: 'exit-barrier', meaning: 'smp_wmb in ftrace_nmi_exit, before the NMI stops being counted' },
    { name: 'count', meaning: 'NMIs count themselves in in_nmi, and leave it again' },
    { name: 'help', meaning: 'an NMI that finds the flag set writes the code' },
    hookFirst,
  ],
  routines: [
    {
      name: 'ftrace_mod_code',
      operations: [
        load('mod_ip', 'mod_code_ip'),
        load('mod_newcode', 'mod_code_newcode'),
        {
          op: 'write-text',
          at: 'mod_ip',
          code: 'mod_newcode',
          offset: 0,
          length: MCOUNT_INSN_SIZE,
          status: 'written',
        },
        // More than one CPU may write the status: if one fails they all do.
        store('mod_code_status', 'written'),
      ],
    },
    {
      name: 'ftrace_nmi_enter',
      operations: [
        ...numbered(7, ...step('count', atomicAdd('in_nmi', 1))),
        // in_nmi must be seen before the flag is read.
        ...numbered(7, ...step('enter-barrier', smpMb())),
        ...numbered(7, load('pending', 'mod_code_write'), branch('pending', 'equal', 0, 'entered')),
        ...numbered(7, ...step('help', call('ftrace_mod_code'), count('nmi_update_count'))),
        label('entered'),
      ],
    },
    {
      name: 'ftrace_nmi_exit',
      operations: [
        // All that the NMI did must be done before it stops being counted.
        ...numbered(8, ...step('exit-barrier', smpWmb())),
        ...numbered(8, ...step('count', atomicAdd('in_nmi', -1))),
      ],
    },
    {
      name: 'wait_for_nmi',
      operations: [
        readClock('wait_began'),
        waitUntil('in_nmi', 'equal', 0, 'nmi_wait_count'),
        noteLongest('nmi_longest_wait', 'wait_began'),
      ],
    },
    {
      name: 'do_ftrace_mod_code',
      operations: [
        ...numbered(1, store('mod_code_ip', 'ip'), store('mod_code_newcode', 'new_code')),
        // The buffers must be visible before NMIs are let to write them.
        ...numbered(1, ...step('fill-barrier', smpWmb())),
        ...numbered(2, store('mod_code_write', 1)),
        // The flag must be visible before we wait for NMIs.
        ...numbered(2, ...step('flag-barrier', smpMb())),
        ...numbered(3, ...step('first-wait', call('wait_for_nmi'))),
        // All running NMIs must have finished before the code is written.
        ...numbered(3, ...step('wait-barrier', smpMb())),
        ...numbered(4, call('ftrace_mod_code')),
        // The write must happen before the flag is cleared.
        ...numbered(4, ...step('write-barrier', smpWmb())),
        ...numbered(5, store('mod_code_write', 0)),
        // NMIs must see the cleared flag.
        ...numbered(5, ...step('clear-barrier', smpMb())),
        ...numbered(6, ...step('last-wait', call('wait_for_nmi'))),
        load('status', 'mod_code_status'),
      ],
    },
    ftraceModifyCode,
    ...nmiFrame,
  ],
  patch: 'ftrace_modify_code',
  nmi: 'nmi',
};
