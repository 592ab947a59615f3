import type { Happening, Pending, Violation } from '../model/index.js';
import type { Breaking, Search } from './search.js';
import type { Transitions } from './transitions.js';
import { META_ACTION, META_VIOLATION } from './transitions.js';

/** One step of a run, and the machine after it. */
export interface TraceStep {
  readonly cpu: number;
  readonly happenings: readonly Happening[];
  /** Shared memory after the step, a byte per cell of the program. */
  readonly memory: readonly number[];
  /** What each CPU's store buffer holds after the step. */
  readonly buffers: readonly (readonly Pending[])[];
}

export interface Trace {
  /** Shared memory at the start. */
  readonly initial: readonly number[];
  readonly steps: readonly TraceStep[];
  /** The last step violates this. Its victim is numbered as in this trace. */
  readonly violation?: Violation;
  /** Index of the step to which the run returns after the last one, for ever. */
  readonly lasso?: number;
  /** CPUs that wait for ever at the end. */
  readonly waiting?: readonly number[];
}

/**
 * Repeats the run that leads through the given states of the store. Symmetric CPUs were interchanged in the store;
 * here each keeps its place.
 */
export function retrace(search: Search, path: readonly number[], breaking?: Breaking): Trace {
  const { transitions, store, symmetry } = search;
  const { width, pitch, out } = transitions;
  const state = transitions.initial().words;
  const initial = memoryOf(transitions, state);
  const target = new Int32Array(width);
  const sorted = new Int32Array(width);
  const steps: TraceStep[] = [];
  let violation: Violation | undefined;
  const take = (offset: number): void => {
    const cpu = out[offset + width];
    const action = transitions.action(out[offset + width + META_ACTION]);
    const happenings: Happening[] = [];
    const value = action.cell < 0 ? 0 : memoryOf(transitions, state)[action.cell];
    const others = transitions.executingOthers(state, cpu);
    const outcome = transitions.semantics.perform(
      transitions.cpu(state, cpu),
      action,
      value,
      others,
      happenings,
    );
    const buffers = transitions.buffers(state);
    if (outcome !== undefined) buffers[cpu] = outcome.cpu.buffer;
    state.set(out.subarray(offset, offset + width));
    steps.push({ cpu, happenings, memory: memoryOf(transitions, state), buffers });
  };
  for (const number of path.slice(1)) {
    store.read(number, target);
    const produced = transitions.expand(state, false);
    let found = -1;
    for (let s = 0; s < produced && found < 0; s++) {
      if (out[s * pitch + width + META_VIOLATION] >= 0) continue;
      sorted.set(out.subarray(s * pitch, s * pitch + width));
      if (symmetry) transitions.sort(sorted);
      if (sorted.every((word, i) => word === target[i])) found = s;
    }
    if (found < 0) throw new Error('a state of the run cannot be reached from the one before it');
    take(found * pitch);
  }
  if (breaking !== undefined && breaking.state >= 0) {
    const produced = transitions.expand(state, false);
    for (let s = 0; s < produced; s++) {
      const offset = s * pitch;
      const number = out[offset + width + META_VIOLATION];
      if (number < 0 || transitions.violations[number].kind !== breaking.violation.kind) continue;
      violation = transitions.violations[number];
      take(offset);
      break;
    }
  }
  return { initial, steps, ...(violation === undefined ? {} : { violation }) };
}

function memoryOf(transitions: Transitions, words: Int32Array): number[] {
  return [...new Uint8Array(words.buffer, words.byteOffset, transitions.program.cells.length)];
}
