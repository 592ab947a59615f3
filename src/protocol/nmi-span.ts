/**
 * The form of 2009 for a span of code that holds several sites, as it runs inside a process (src/inside). What differs from
 * `nmi-one-word`:
 *
 *  - The unit is a span: its length is a third buffer. A span's write may fail with some sites written and others not.
 *  - Writers do not all fail alike: a signal handler may have no descriptor left, or a filter may forbid it what the patcher may
 *    do. So a helper that fails clears no flag and tells no status: it waits until the patcher has written.
 *  - The patcher is a thread with every signal blocked: no NMI arrives on its CPU, so a helper may wait for it.
 *  - Text may have to be made writable before anybody can write it (mprotect). The patcher does so, once for all the changes that it
 *    makes one after the other: a helper that gave text its rights back would take them from another writer.
 *
 * The patcher:
 *  1. Write the old code over itself: if that fails, nothing has changed, and nothing will. Whatever may fail (a page that may not
 *     be written, no memory for a private copy of it) fails here.
 *  2. Fill the buffers; smp_mb.
 *  3. Swap 0 for the flag until that succeeds: it cannot while any NMI is inside. smp_mb.
 *  4. Write the span; smp_mb.
 *  5. Clear the flag, keeping the count.
 *  6. Wait until the word is 0: no helper is left that may still read the buffers.
 * An NMI:
 *  7. Add one and look at the word as it was, in one atomic. If the flag was set: smp_rmb, write the pending span; if that fails, wait
 *     until the flag is clear. sync_core, smp_mb.
 *  8. On the way out: smp_mb, subtract one.
 * The patcher again, around changes that follow each other:
 *  9. Before the first, while the flag is down: unlock the text that holds all of them. If that is refused, lock what has been
 *     unlocked: nothing has changed, and nothing will.
 * 10. After the last wait of the last: lock it. Nobody is inside who may still write.
 */
import {
  atomicAdd,
  branch,
  call,
  count,
  fetchAdd,
  instead,
  jump,
  label,
  leave,
  load,
  lockText,
  numbered,
  set,
  smpMb,
  smpRmb,
  step,
  store,
  syncCore,
  unlockText,
  waitUntil,
} from './operations.js';
import type { Operand, Operation } from './operations.js';
import { modifyCode } from './modify-code.js';
import { hookFirst, nmiFrame } from './nmi-frame.js';
import {
  MOD_CODE_WRITE_FLAG,
  clearModFlag,
  lastWait,
  nmiStatistics,
  waitForNmiAndSetModFlag,
} from './nmi-one-word.js';
import type { Protocol } from './protocol.js';
import { EPERM } from './protocol.js';

/** Without `shared-unlock` each writer unlocks what it writes, and locks it again. */
const writeSpan = (at: Operand, code: Operand, length: Operand): readonly Operation[] => [
  ...instead('shared-unlock', unlockText(at, length, 'written')),
  { op: 'write-text', at, code, offset: 0, length, status: 'written' },
  ...instead('shared-unlock', lockText(at, length)),
];

export const nmiSpan: Protocol = {
  name: 'nmi-span',
  title: 'the form of 2009 for a span of several sites, as it runs inside a process',
  purpose: 'a span is written as a whole, by helpers that may fail where the patcher does not',
  unit: 'span',
  patcherMasked: true,
  words: [
    { name: 'nmi_running', initial: 0, use: 'value', meaning: 'NMIs now running, and the flag in bit 31' },
    { name: 'mod_code_ip', initial: 0, use: 'address', meaning: 'the IP buffer' },
    { name: 'mod_code_newcode', initial: 0, use: 'code', meaning: 'the code buffer' },
    { name: 'mod_code_length', initial: 0, use: 'value', meaning: 'the length buffer' },
    ...nmiStatistics,
  ],
  steps: [
    { name: 'rehearsal', meaning: 'the old code is written over itself before anything changes' },
    { name: 'fill-barrier', meaning: 'smp_mb after the buffers are filled' },
    { name: 'first-wait', meaning: 'the flag rises only from 0; without it, it rises at once' },
    { name: 'flag-barrier', meaning: 'smp_mb after the flag is raised' },
    { name: 'write-barrier', meaning: 'smp_mb after the write, before the flag is cleared' },
    { name: 'last-wait', meaning: 'wait until the word is 0 after the flag is cleared' },
    { name: 'read-barrier', meaning: 'smp_rmb in ftrace_nmi_enter, before the buffers are read' },
    { name: 'helper-wait', meaning: 'a helper whose write fails waits until the flag is clear' },
    { name: 'enter-barrier', meaning: 'smp_mb at the end of ftrace_nmi_enter' },
    { name: 'exit-barrier', meaning: 'smp_mb in ftrace_nmi_exit' },
    { name: 'count', meaning: 'NMIs count themselves; without it, they only look at the flag' },
    { name: 'help', meaning: 'an NMI that finds the flag set writes the span' },
    hookFirst,
    {
      name: 'shared-unlock',
      meaning: 'the patcher unlocks text for all writers; without it, each does so around its own write',
    },
    { name: 'lock', meaning: 'text is locked again when nobody is left inside' },
  ],
  routines: [
    clearModFlag,
    waitForNmiAndSetModFlag,
    {
      name: 'ftrace_mod_code',
      operations: [
        load('mod_ip', 'mod_code_ip'),
        load('mod_newcode', 'mod_code_newcode'),
        load('mod_length', 'mod_code_length'),
        ...writeSpan('mod_ip', 'mod_newcode', 'mod_length'),
      ],
    },
    {
      name: 'ftrace_nmi_enter',
      operations: [
        ...numbered(7, ...step('count', fetchAdd('running_before', 'nmi_running', 1))),
        ...numbered(7, ...instead('count', load('running_before', 'nmi_running'))),
        ...numbered(7, branch('running_before', 'none-set', MOD_CODE_WRITE_FLAG, 'entered')),
        ...numbered(7, ...step('read-barrier', smpRmb())),
        ...numbered(
          7,
          ...step(
            'help',
            call('ftrace_mod_code'),
            branch('written', 'not-equal', 0, 'cannot'),
            count('nmi_update_count'),
            jump('helped'),
          ),
          label('cannot'),
          ...step('helper-wait', waitUntil('nmi_running', 'none-set', MOD_CODE_WRITE_FLAG)),
          label('helped'),
          ...step('help', syncCore()),
        ),
        label('entered'),
        ...numbered(7, ...step('enter-barrier', smpMb())),
      ],
    },
    {
      name: 'ftrace_nmi_exit',
      operations: [
        ...numbered(8, ...step('exit-barrier', smpMb())),
        ...numbered(8, ...step('count', atomicAdd('nmi_running', -1))),
      ],
    },
    {
      name: 'do_ftrace_mod_code',
      operations: [
        ...numbered(
          1,
          ...step(
            'rehearsal',
            ...writeSpan('ip', 'old_code', 'length'),
            set('status', 'written'),
            branch('status', 'equal', 0, 'rehearsed'),
            leave(),
            label('rehearsed'),
          ),
        ),
        ...numbered(
          2,
          store('mod_code_ip', 'ip'),
          store('mod_code_newcode', 'new_code'),
          store('mod_code_length', 'length'),
        ),
        ...numbered(2, ...step('fill-barrier', smpMb())),
        ...numbered(3, ...step('first-wait', call('wait_for_nmi_and_set_mod_flag'))),
        ...numbered(3, ...instead('first-wait', atomicAdd('nmi_running', MOD_CODE_WRITE_FLAG))),
        ...numbered(3, ...step('flag-barrier', smpMb())),
        ...numbered(4, call('ftrace_mod_code'), set('status', 'written')),
        ...numbered(4, ...step('write-barrier', smpMb())),
        ...numbered(5, call('clear_mod_flag')),
        ...numbered(6, ...lastWait),
      ],
    },
    modifyCode('length'),
    {
      name: 'begin_changes',
      operations: [
        set('result', 0),
        ...numbered(
          9,
          ...step(
            'shared-unlock',
            unlockText('region', 'region_length', 'status'),
            branch('status', 'equal', 0, 'unlocked'),
            lockText('region', 'region_length'),
            set('result', -EPERM),
            label('unlocked'),
          ),
        ),
      ],
    },
    {
      name: 'end_changes',
      operations: numbered(10, ...step('lock', lockText('region', 'region_length'))),
    },
    ...nmiFrame,
  ],
  patch: 'ftrace_modify_code',
  begin: 'begin_changes',
  end: 'end_changes',
  nmi: 'nmi',
};
