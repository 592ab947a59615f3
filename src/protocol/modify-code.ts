import { branch, call, label, leave, set, syncCore } from './operations.js';
import { EFAULT, EINVAL, EPERM } from './protocol.js';
import type { Operand } from './operations.js';
import type { Routine } from './protocol.js';

/**
 * ftrace_modify_code(ip, old_code, new_code): verifies what stands there before anything is changed.
 *
 *  1. Read the site: -EFAULT if it cannot be read.
 *  2. -EINVAL if it is not `old_code`.
 *  3. do_ftrace_mod_code: -EPERM if the write failed.
 *  4. sync_core.
 *
 * `length`: of a span, where the unit is one.
 */
export const modifyCode = (length?: Operand): Routine => ({
  name: 'ftrace_modify_code',
  operations: [
    {
      op: 'compare-text',
      at: 'ip',
      code: 'old_code',
      ...(length === undefined ? {} : { length }),
      result: 'differs',
      number: 1,
    },
    { ...branch('differs', 'equal', 0, 'verified'), number: 2 },
    { ...branch('differs', 'equal', -EFAULT, 'unreadable'), number: 1 },
    { ...set('result', -EINVAL), number: 2 },
    leave(),
    label('unreadable'),
    { ...set('result', -EFAULT), number: 1 },
    leave(),
    label('verified'),
    { ...call('do_ftrace_mod_code'), number: 3 },
    { ...branch('status', 'equal', 0, 'written'), number: 3 },
    { ...set('result', -EPERM), number: 3 },
    leave(),
    label('written'),
    { ...syncCore(), number: 4 },
    set('result', 0),
  ],
});

export const ftraceModifyCode = modifyCode();
