import { test } from 'node:test';
import { fuzzers } from './fuzz.js';

/** A second or two each; `npm run soak` goes on with other seeds. */
const ROUNDS = 100;
const SEED = 1;

for (const [name, fuzz] of fuzzers) {
  test(`bytes that others chose: ${name}`, () => fuzz(ROUNDS, SEED));
}
