/**
 * The gate of 2010: a full barrier and a shared atomic on every NMI cost too much, so NMIs look at `modifying_code`
 * first, and count themselves only while a change is under way.
 *
 *  1. The patcher sets `modifying_code`; smp_mb. (In the kernel stop-machine follows, and cannot get hold of a CPU in
 *     an NMI: that supplied the wait for the NMIs that were inside already, uncounted. It is not here.)
 *  2. Everything as in the form of 2009.
 *  3. The patcher clears `modifying_code`.
 *  4. An NMI remembers at entry whether it counted, and leaves the count only if it did.
 *
 * Without the wait that stop-machine supplied it is unsafe: an NMI that was inside before 1. is not counted.
 */
import { branch, label, load, numbered, smpMb, store } from './operations.js';
import type { Operation } from './operations.js';
import { nmiOneWord } from './nmi-one-word.js';
import type { Protocol, Routine } from './protocol.js';

function gated(routine: Routine): Routine {
  switch (routine.name) {
    case 'do_ftrace_mod_code': {
      const operations: readonly Operation[] = [
        ...numbered(1, store('modifying_code', 1), smpMb()),
        ...routine.operations,
        ...numbered(3, store('modifying_code', 0), smpMb()),
      ];
      return { name: routine.name, operations };
    }
    case 'ftrace_nmi_enter':
      return {
        name: routine.name,
        operations: [
          ...numbered(4, load('save_modifying_code', 'modifying_code')),
          ...numbered(4, branch('save_modifying_code', 'equal', 0, 'not_counted')),
          ...routine.operations,
          label('not_counted'),
        ],
      };
    case 'ftrace_nmi_exit':
      return {
        name: routine.name,
        operations: [
          ...numbered(4, branch('save_modifying_code', 'equal', 0, 'not_counted')),
          ...routine.operations,
          label('not_counted'),
        ],
      };
    default:
      return routine;
  }
}

export const nmiGated: Protocol = {
  ...nmiOneWord,
  name: 'nmi-gated',
  title: 'the gate of 2010, without the wait that stop-machine supplied',
  purpose: 'shows what the gate leaves to somebody else',
  words: [
    ...nmiOneWord.words,
    { name: 'modifying_code', initial: 0, use: 'value', meaning: 'the gate: a change is under way' },
  ],
  routines: [...nmiOneWord.routines.map(gated)],
};
