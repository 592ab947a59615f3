/**
 * The form of 2009 ("ftrace: protect running nmi"): the flag and the count share one atomic word, `nmi_running`, and the
 * flag is raised by a compare-and-swap that succeeds only while no NMI is inside.
 *
 * The patcher:
 *  1. Fill the buffers; smp_mb.
 *  2. Swap 0 for the flag until that succeeds: it cannot while any NMI is inside, so from here on every NMI that runs
 *     has seen the flag. smp_mb.
 *  3. Write the code; smp_mb.
 *  4. Clear the flag, keeping the count.
 *  5. Wait until the word is 0: no helper is left that may still read the buffers.
 * An NMI:
 *  6. Add one and look at the word as it was, in one atomic. If the flag was set: smp_rmb, write the pending code.
 *     smp_mb.
 *  7. On the way out: smp_mb, subtract one.
 * A writer whose write fails clears the flag, so that no new helper starts.
 */
import {
  atomicAdd,
  branch,
  calculate,
  call,
  compareSwap,
  count,
  fetchAdd,
  instead,
  jump,
  label,
  load,
  noteLongest,
  numbered,
  readClock,
  smpMb,
  smpRmb,
  step,
  store,
  waitUntil,
} from './operations.js';
import type { Operation } from './operations.js';
import { ftraceModifyCode } from './modify-code.js';
import { hookFirst, nmiFrame } from './nmi-frame.js';
import type { Protocol, Routine } from './protocol.js';
import { MCOUNT_INSN_SIZE } from './protocol.js';

/** Bit 31 of `nmi_running`. */
export const MOD_CODE_WRITE_FLAG = 0x8000_0000;
/** The bits of the count. */
const COUNT_MASK = 0x7fff_ffff;

/** What is counted and timed of waits and helpers. */
export const nmiStatistics: Protocol['words'] = [
  { name: 'nmi_wait_count', initial: 0, use: 'statistic', meaning: 'times the patcher had to wait' },
  { name: 'nmi_longest_wait', initial: 0, use: 'statistic', meaning: 'the longest of its waits' },
  { name: 'nmi_update_count', initial: 0, use: 'statistic', meaning: 'times an NMI helped' },
];

/** The flag is clear: waits until no helper is left that may still read the buffers. */
export const lastWait: readonly Operation[] = step(
  'last-wait',
  readClock('wait_began'),
  waitUntil('nmi_running', 'equal', 0, 'nmi_wait_count'),
  noteLongest('nmi_longest_wait', 'wait_began'),
);

/** Clears the flag and keeps the count, which NMIs change meanwhile. */
export const clearModFlag: Routine = {
  name: 'clear_mod_flag',
  operations: [
    label('again'),
    load('running', 'nmi_running'),
    calculate('cleared', 'running', 'and', COUNT_MASK),
    compareSwap('found', 'nmi_running', 'running', 'cleared'),
    branch('found', 'not-equal', 'running', 'again'),
  ],
};

export const waitForNmiAndSetModFlag: Routine = {
  name: 'wait_for_nmi_and_set_mod_flag',
  operations: [
    readClock('wait_began'),
    compareSwap('found', 'nmi_running', 0, MOD_CODE_WRITE_FLAG),
    branch('found', 'equal', 0, 'raised'),
    // A wait counts once, however often it looks.
    count('nmi_wait_count'),
    label('again'),
    compareSwap('found', 'nmi_running', 0, MOD_CODE_WRITE_FLAG),
    branch('found', 'equal', 0, 'waited'),
    jump('again'),
    label('waited'),
    noteLongest('nmi_longest_wait', 'wait_began'),
    label('raised'),
  ],
};

const ftraceModCode: Routine = {
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
    store('mod_code_status', 'written'),
    branch('written', 'equal', 0, 'done'),
    // If one write fails, all do: no new helper need try.
    call('clear_mod_flag'),
    label('done'),
  ],
};

export const nmiOneWord: Protocol = {
  name: 'nmi-one-word',
  title: 'the form of 2009: flag and count in one atomic word',
  purpose: 'the flag rises only while nobody is inside, so helpers cannot write under a running NMI',
  words: [
    { name: 'nmi_running', initial: 0, use: 'value', meaning: 'NMIs now running, and the flag in bit 31' },
    { name: 'mod_code_status', initial: 0, use: 'value', meaning: 'result of the write' },
    { name: 'mod_code_ip', initial: 0, use: 'address', meaning: 'the IP buffer' },
    { name: 'mod_code_newcode', initial: 0, use: 'code', meaning: 'the code buffer' },
    ...nmiStatistics,
  ],
  steps: [
    { name: 'fill-barrier', meaning: 'smp_mb after the buffers are filled' },
    { name: 'first-wait', meaning: 'the flag rises only from 0; without it, it rises at once' },
    { name: 'flag-barrier', meaning: 'smp_mb after the flag is raised' },
    { name: 'write-barrier', meaning: 'smp_mb after the write, before the flag is cleared' },
    { name: 'last-wait', meaning: 'wait until the word is 0 after the flag is cleared' },
    { name: 'read-barrier', meaning: 'smp_rmb in ftrace_nmi_enter, before the buffers are read' },
    { name: 'enter-barrier', meaning: 'smp_mb at the end of ftrace_nmi_enter' },
    { name: 'exit-barrier', meaning: 'smp_mb in ftrace_nmi_exit' },
    { name: 'count', meaning: 'NMIs count themselves; without it, they only look at the flag' },
    { name: 'help', meaning: 'an NMI that finds the flag set writes the code' },
    hookFirst,
  ],
  routines: [
    clearModFlag,
    ftraceModCode,
    {
      name: 'ftrace_nmi_enter',
      operations: [
        ...numbered(6, ...step('count', fetchAdd('running_before', 'nmi_running', 1))),
        ...numbered(6, ...instead('count', load('running_before', 'nmi_running'))),
        ...numbered(6, branch('running_before', 'none-set', MOD_CODE_WRITE_FLAG, 'entered')),
        ...numbered(6, ...step('read-barrier', smpRmb())),
        ...numbered(6, ...step('help', call('ftrace_mod_code'), count('nmi_update_count'))),
        label('entered'),
        // Everything of the hook happens before anything that the NMI runs.
        ...numbered(6, ...step('enter-barrier', smpMb())),
      ],
    },
    {
      name: 'ftrace_nmi_exit',
      operations: [
        ...numbered(7, ...step('exit-barrier', smpMb())),
        ...numbered(7, ...step('count', atomicAdd('nmi_running', -1))),
      ],
    },
    waitForNmiAndSetModFlag,
    {
      name: 'do_ftrace_mod_code',
      operations: [
        ...numbered(1, store('mod_code_ip', 'ip'), store('mod_code_newcode', 'new_code')),
        // The buffers must be visible before NMIs are let to write them.
        ...numbered(1, ...step('fill-barrier', smpMb())),
        ...numbered(2, ...step('first-wait', call('wait_for_nmi_and_set_mod_flag'))),
        ...numbered(2, ...instead('first-wait', atomicAdd('nmi_running', MOD_CODE_WRITE_FLAG))),
        ...numbered(2, ...step('flag-barrier', smpMb())),
        ...numbered(3, call('ftrace_mod_code')),
        // The write must happen before the flag is cleared.
        ...numbered(3, ...step('write-barrier', smpMb())),
        ...numbered(4, call('clear_mod_flag')),
        ...numbered(5, ...lastWait),
        load('status', 'mod_code_status'),
      ],
    },
    ftraceModifyCode,
    ...nmiFrame,
  ],
  patch: 'ftrace_modify_code',
  nmi: 'nmi',
};
