import type { Argument, Instruction } from './program.js';

/**
 * For every instruction, the registers whose value may still be read from there on, as a bit mask. A register that
 * nobody will read is held at zero by the machine, so that it makes no two states differ.
 */
export function liveRegisters(instructions: readonly Instruction[]): Int32Array {
  const live = new Int32Array(instructions.length);
  for (let changed = true; changed;) {
    changed = false;
    for (let at = instructions.length - 1; at >= 0; at--) {
      const i = instructions[at];
      let after = 0;
      for (const successor of successors(i)) after |= live[successor];
      const before = (after & ~written(i)) | read(i);
      if (before !== live[at]) {
        live[at] = before;
        changed = true;
      }
    }
  }
  return live;
}

function successors(i: Instruction): readonly number[] {
  switch (i.kind) {
    case 'branch':
    case 'check-access':
    case 'check-lock':
      return [i.next, i.target];
    case 'fetch-first':
      return [i.next, i.trap, i.alternative];
    case 'fetch-second':
      return [i.next, i.trap];
    default:
      return [i.next];
  }
}

function written(i: Instruction): number {
  switch (i.kind) {
    case 'set':
    case 'calculate':
    case 'load':
    case 'fetch-add':
    case 'compare-swap':
    case 'load-code':
    case 'load-text':
    case 'sync':
      return 1 << i.register;
    default:
      // A fetch or a failed access writes its register on one of its ways only.
      return 0;
  }
}

function read(i: Instruction): number {
  const bits = (...all: readonly Argument[]): number =>
    all.reduce((mask, a) => (a < 0 ? mask | (1 << (-a - 1)) : mask), 0);
  switch (i.kind) {
    case 'set':
    case 'store':
    case 'add':
    case 'fetch-add':
    case 'wait':
    case 'expect':
      return bits(i.value);
    case 'calculate':
    case 'branch':
      return bits(i.left, i.right);
    case 'compare-swap':
      return bits(i.expected, i.desired);
    case 'check-access':
      return bits(i.at, i.code);
    case 'load-code':
    case 'emulate':
      return bits(i.code);
    case 'load-text':
    case 'check-lock':
      return bits(i.at);
    case 'set-lock':
      return bits(i.at, i.value);
    case 'store-text':
      return bits(i.at, i.value);
    case 'fetch-second':
      return bits(i.first);
    case 'sync-wait':
      return 1 << i.register;
    default:
      return 0;
  }
}
