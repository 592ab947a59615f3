/**
 * What reads bytes that others chose, and what is thrown at it. `fuzz.test.ts` runs each fuzzer for a few rounds, `npm run soak` for
 * many; what one has found stands in `test/corpus/` and is tried by a test of its own.
 */
import { fuzzJournals } from '../agent/journal.fuzz.test.support.js';
import { fuzzElf } from '../elf/elf.fuzz.test.support.js';
import { fuzzControl } from '../trace/control.fuzz.test.support.js';
import { fuzzLaneHeaders } from '../trace/ring-drain.fuzz.test.support.js';
import { fuzzNames, fuzzPatterns } from './fuzz-names.test.support.js';
import { fuzzCalls, fuzzRecordings } from './fuzz-recordings.test.support.js';

/**
 * Throws where something is wrong. All that it does follows from `rounds` and `seed`, never from a clock: a round that failed fails again.
 * Bounds are on what is counted (bytes written, steps, objects), not on time.
 */
export type Fuzzer = (rounds: number, seed: number) => void;

export const fuzzers: ReadonlyMap<string, Fuzzer> = new Map<string, Fuzzer>([
  ['recordings: bytes', fuzzRecordings],
  ['recordings: calls', fuzzCalls],
  ['names: demangling', fuzzNames],
  ['names: patterns', fuzzPatterns],
  ['ELF files', fuzzElf],
  ['journals', fuzzJournals],
  ['lane headers', fuzzLaneHeaders],
  ['control messages', fuzzControl],
]);
