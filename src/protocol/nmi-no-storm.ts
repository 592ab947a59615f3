/**
 * A form whose waits cannot be starved. One atomic word holds the flag and two counts: the NMIs that entered while the
 * flag was clear (`inside`, bits 0 to 15) and those that entered while it was set (`aware`, bits 16 to 30).
 *
 * The patcher:
 *  1. Fill the buffers; smp_mb.
 *  2. Raise the flag, whoever is inside. From here on `inside` can only fall.
 *  3. Wait until `inside` is 0: only for the NMIs that were running when the flag rose.
 *  4. Write the code; smp_mb.
 *  5. Clear the flag. From here on `aware` can only fall.
 *  6. Wait until `aware` is 0: no helper is left that may still read the buffers.
 * An NMI:
 *  7. On the way in, by compare-and-swap: count itself in `aware` if the flag is set, in `inside` if it is not. It may
 *     have to try again, but only because another NMI or the patcher got on.
 *  8. If the flag was set: wait until `inside` is 0, or until the flag is clear again. The NMIs waited for entered
 *     before the flag rose, and none of them waits for anything, so this ends. This is what the naive form lacks: its
 *     helpers write under an older NMI.
 *  9. Write the pending code, unless the flag went down meanwhile: then it is written already. smp_mb.
 * 10. On the way out: smp_mb, leave the count that was entered.
 */
import {
  atomicAdd,
  branch,
  calculate,
  call,
  compareSwap,
  count,
  label,
  load,
  noteLongest,
  numbered,
  readClock,
  set,
  smpMb,
  smpRmb,
  step,
  store,
  waitUntil,
} from './operations.js';
import type { Operation } from './operations.js';
import { ftraceModifyCode } from './modify-code.js';
import { hookFirst, nmiFrame } from './nmi-frame.js';
import type { Protocol } from './protocol.js';
import { MCOUNT_INSN_SIZE } from './protocol.js';

/** Bit 31 of `nmi_state`: a change is pending. */
const PENDING = 0x8000_0000;
/** One NMI that entered while the flag was set. */
const ONE_AWARE = 0x0001_0000;
const AWARE_MASK = 0x7fff_0000;
/** One NMI that entered while the flag was clear. */
const ONE_INSIDE = 1;
const INSIDE_MASK = 0xffff;

const waitUntilNoneIn = (mask: number): readonly Operation[] => [
  readClock('wait_began'),
  waitUntil('nmi_state', 'none-set', mask, 'nmi_wait_count'),
  noteLongest('nmi_longest_wait', 'wait_began'),
];

export const nmiNoStorm: Protocol = {
  name: 'nmi-no-storm',
  title: 'waits only for the NMIs already inside',
  purpose: 'no stream of NMIs, however dense, can keep the patcher waiting',
  words: [
    { name: 'nmi_state', initial: 0, use: 'value', meaning: 'flag, count of aware, count of inside' },
    { name: 'mod_code_status', initial: 0, use: 'value', meaning: 'result of the write' },
    { name: 'mod_code_ip', initial: 0, use: 'address', meaning: 'the IP buffer' },
    { name: 'mod_code_newcode', initial: 0, use: 'code', meaning: 'the code buffer' },
    { name: 'nmi_wait_count', initial: 0, use: 'statistic', meaning: 'times the patcher had to wait' },
    { name: 'nmi_longest_wait', initial: 0, use: 'statistic', meaning: 'the longest of its waits' },
    { name: 'nmi_update_count', initial: 0, use: 'statistic', meaning: 'times an NMI helped' },
  ],
  steps: [
    { name: 'fill-barrier', meaning: 'smp_mb after the buffers are filled' },
    { name: 'flag-barrier', meaning: 'smp_mb after the flag is raised' },
    { name: 'first-wait', meaning: 'wait until nobody is inside, before the write' },
    { name: 'wait-barrier', meaning: 'smp_mb after the first wait' },
    { name: 'write-barrier', meaning: 'smp_mb after the write, before the flag is cleared' },
    { name: 'last-wait', meaning: 'wait until no aware NMI is left, after the flag is cleared' },
    { name: 'helper-wait', meaning: 'a helper waits until nobody is inside: the naive form lacks it' },
    { name: 'read-barrier', meaning: 'smp_rmb in ftrace_nmi_enter, before the buffers are read' },
    { name: 'enter-barrier', meaning: 'smp_mb at the end of ftrace_nmi_enter' },
    { name: 'exit-barrier', meaning: 'smp_mb in ftrace_nmi_exit' },
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
        store('mod_code_status', 'written'),
      ],
    },
    {
      name: 'ftrace_nmi_enter',
      operations: [
        ...numbered(
          7,
          label('again'),
          load('state', 'nmi_state'),
          set('counted', ONE_INSIDE),
          branch('state', 'none-set', PENDING, 'choose'),
          set('counted', ONE_AWARE),
          label('choose'),
          calculate('entered_state', 'state', 'plus', 'counted'),
          compareSwap('found', 'nmi_state', 'state', 'entered_state'),
          branch('found', 'not-equal', 'state', 'again'),
          branch('counted', 'equal', ONE_INSIDE, 'entered'),
        ),
        ...numbered(
          8,
          ...step(
            'helper-wait',
            label('wait'),
            load('state', 'nmi_state'),
            branch('state', 'none-set', PENDING, 'entered'),
            branch('state', 'any-set', INSIDE_MASK, 'wait'),
          ),
        ),
        ...numbered(9, ...step('read-barrier', smpRmb())),
        ...numbered(9, ...step('help', call('ftrace_mod_code'), count('nmi_update_count'))),
        label('entered'),
        ...numbered(9, ...step('enter-barrier', smpMb())),
      ],
    },
    {
      name: 'ftrace_nmi_exit',
      operations: [
        ...numbered(10, ...step('exit-barrier', smpMb())),
        ...numbered(
          10,
          branch('counted', 'equal', ONE_AWARE, 'aware'),
          atomicAdd('nmi_state', -ONE_INSIDE),
          { op: 'return' },
          label('aware'),
          atomicAdd('nmi_state', -ONE_AWARE),
        ),
      ],
    },
    {
      name: 'do_ftrace_mod_code',
      operations: [
        ...numbered(1, store('mod_code_ip', 'ip'), store('mod_code_newcode', 'new_code')),
        ...numbered(1, ...step('fill-barrier', smpMb())),
        ...numbered(2, atomicAdd('nmi_state', PENDING)),
        ...numbered(2, ...step('flag-barrier', smpMb())),
        ...numbered(3, ...step('first-wait', ...waitUntilNoneIn(INSIDE_MASK))),
        ...numbered(3, ...step('wait-barrier', smpMb())),
        ...numbered(4, call('ftrace_mod_code')),
        ...numbered(4, ...step('write-barrier', smpMb())),
        ...numbered(5, atomicAdd('nmi_state', -PENDING)),
        ...numbered(6, ...step('last-wait', ...waitUntilNoneIn(AWARE_MASK))),
        load('status', 'mod_code_status'),
      ],
    },
    ftraceModifyCode,
    ...nmiFrame,
  ],
  patch: 'ftrace_modify_code',
  nmi: 'nmi',
};

/** Helpers write at once, under NMIs that are still inside: unsafe. */
export const nmiNoStormNaive: Protocol = {
  ...nmiNoStorm,
  name: 'nmi-no-storm-naive',
  title: 'waits only for the NMIs already inside, and helpers do not',
  purpose: 'shows why a helper must wait too',
  without: ['helper-wait'],
};
