import type { Operand, Operation } from './operations.js';
import { MCOUNT_INSN_SIZE } from './protocol.js';

function operandText(operand: Operand): string {
  if (typeof operand === 'string') return operand;
  return Math.abs(operand) > 0xffff
    ? `${operand < 0 ? '-' : ''}0x${Math.abs(operand).toString(16)}`
    : `${operand}`;
}

/** The operation in a kernel engineer's words. */
export function describeOperation(o: Operation): string {
  const fences = { full: 'smp_mb', write: 'smp_wmb', read: 'smp_rmb' };
  const tests = { equal: '==', 'not-equal': '!=', 'any-set': '&', 'none-set': '& ~' };
  switch (o.op) {
    case 'set':
      return `${o.to} = ${operandText(o.value)}`;
    case 'calculate':
      return `${o.to} = ${operandText(o.left)} ${{ plus: '+', and: '&', or: '|' }[o.by]} ${operandText(o.right)}`;
    case 'load':
      return `${o.to} = ${o.word}`;
    case 'store':
      return `${o.word} = ${operandText(o.value)}`;
    case 'fetch-add':
      return o.old === undefined
        ? `atomic_add(${operandText(o.value)}, ${o.word})`
        : `${o.old} = atomic_fetch_add(${operandText(o.value)}, ${o.word})`;
    case 'compare-swap':
      return `${o.old} = cmpxchg(${o.word}, ${operandText(o.expected)}, ${operandText(o.desired)})`;
    case 'fence':
      return `${fences[o.kind]}()`;
    case 'wait-until':
      return o.test === 'none-set'
        ? `wait until !(${o.word} & ${operandText(o.value)})`
        : `wait until ${o.word} ${tests[o.test]} ${operandText(o.value)}`;
    case 'count':
      return `${o.word}++`;
    case 'read-clock':
      return `${o.to} = the time`;
    case 'note-longest':
      return `${o.word} = max(${o.word}, the time - ${o.since})`;
    case 'write-text':
      if (typeof o.length === 'string')
        return `probe_kernel_write(${operandText(o.at)}, ${operandText(o.code)}, ${o.length})`;
      return o.length === MCOUNT_INSN_SIZE
        ? `probe_kernel_write(${operandText(o.at)}, ${operandText(o.code)})`
        : `probe_kernel_write(${operandText(o.at)}+${o.offset}, ${operandText(o.code)}+${o.offset}, ${o.length})`;
    case 'compare-text':
      return `probe_kernel_read(${operandText(o.at)}), compare with ${operandText(o.code)}`;
    case 'unlock-text':
      return `unlock_text(${operandText(o.at)}, ${operandText(o.length)})`;
    case 'lock-text':
      return `lock_text(${operandText(o.at)}, ${operandText(o.length)})`;
    case 'execute':
      return `${o.function}()`;
    case 'emulate':
      return `emulate ${operandText(o.code)}`;
    case 'retry':
      return 'return to the site';
    case 'sync-core':
      return 'sync_core()';
    case 'sync-all':
      return 'sync all CPUs';
    case 'call':
      return `${o.routine}()`;
    case 'branch':
      return `if (${operandText(o.left)} ${tests[o.test]} ${operandText(o.right)}) goto ${o.to}`;
    case 'jump':
      return `goto ${o.to}`;
    case 'label':
      return `${o.name}:`;
    case 'return':
      return 'return';
  }
}
