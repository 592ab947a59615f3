import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AGENT } from './layout.js';
import { FakeMemory, TEXT_BYTES, fuzzJournals, honestJournal, read } from './journal.fuzz.test.support.js';

/** Offsets in the journal's header. */
const [CONTROL, RANGES, SITES, TEXTS, SIZE] = [8, 16, 24, 32, 40];
const RANGE_SIZE = 24;

function forged(offset: number, value: bigint): FakeMemory {
  const memory = new FakeMemory(honestJournal());
  memory.view.setBigUint64(AGENT.size + offset, value, true);
  return memory;
}

test('a journal is read as it was written', () => {
  const journal = read(new FakeMemory(honestJournal()));
  assert.ok(journal);
  assert.equal(journal.sites.addresses.length, 50);
  assert.equal(journal.texts.length, 2);
});

for (const [what, offset, value] of [
  ['more sites than its text has room for', SITES, BigInt(TEXT_BYTES)],
  ['all the sites that can be counted', SITES, 2n ** 64n - 1n],
  ['ranges without number', RANGES, 1n << 40n],
  ['more texts than sites', TEXTS, 51n],
  ['a control page beyond all memory', CONTROL, 1n << 60n],
  ['a range of no bytes', SIZE + 8, 0n],
  ['a range beyond all memory', SIZE, 2n ** 63n],
  ['a site before the one before it', SIZE + RANGE_SIZE + 16, 1n],
  ['a site beyond all memory', SIZE + RANGE_SIZE + 49 * 16, 2n ** 60n],
] as const) {
  test(`a journal that tells of ${what} is not believed, and costs nothing`, () => {
    const memory = forged(offset, value);
    assert.equal(read(memory), undefined);
    assert.ok(memory.asked < 1 << 20, `${memory.asked} bytes were read`);
  });
}

test('a mapping that is told of twice makes a journal unbelievable', () => {
  const at = SIZE + RANGE_SIZE + 50 * 16;
  assert.equal(read(forged(at + 32, 0x40_0000n)), undefined);
});

test('whatever a journal says, what is kept of it is bounded', () => {
  fuzzJournals(2000, 1);
});
