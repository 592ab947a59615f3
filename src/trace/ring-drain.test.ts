import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HEADER, LANE_STATE } from '../agent/index.js';
import { WHAT_WORD } from '../recording/index.js';
import { CELLS, FakeTarget, RECORD, Told, fuzzLaneHeaders } from './ring-drain.fuzz.test.support.js';
import { RingDrain } from './ring-drain.js';

function begin(): { target: FakeTarget; told: Told; drain: RingDrain } {
  const target = new FakeTarget();
  const told = new Told();
  return {
    target,
    told,
    drain: new RingDrain(process.pid, target.agent, RECORD.functions, CELLS, new Map(), told),
  };
}

const setHead = ({ headers }: FakeTarget, lane: number, head: bigint): void => {
  headers.setBigUint64(lane * HEADER.size + HEADER.head, BigInt.asUintN(64, head), true);
};

test('what an honest target records is taken exactly, round and round its ring', () => {
  const { target, told, drain } = begin();
  target.claim(1, process.pid);
  for (let round = 0; round < 5; round++) {
    for (let i = 0; i < RECORD.ringRecords - 1; i++) target.write(1, RECORD.entry(i % RECORD.functions));
    drain.poll();
  }
  for (let i = 0; i < 100; i++) target.write(1, RECORD.entry(0));
  drain.finish();
  assert.equal(drain.records, 5 * (RECORD.ringRecords - 1) + 100);
  assert.equal(told.records, drain.records);
  assert.equal(drain.corrupt, 0);
  told.assertClosed();
});

for (const [what, head] of [
  ['far ahead', 1n << 63n],
  ['behind what was read', 16n],
  ['within a record', 165n],
  ['all ones', -1n],
  ['a record more than there is room for', BigInt(RECORD.ringRecords * 16 + 176)],
] as const) {
  test(`a lane whose head is ${what} is closed, counted, and never read again`, () => {
    const { target, told, drain } = begin();
    target.claim(1, process.pid);
    target.claim(2, process.pid);
    for (let i = 0; i < 10; i++) target.write(1, RECORD.entry(1));
    drain.poll();
    setHead(target, 1, head);
    target.write(2, RECORD.entry(2));
    drain.poll();
    setHead(target, 1, 320n);
    drain.poll();
    drain.finish();
    assert.deepEqual([drain.corrupt, told.corrupt.length, drain.records, told.threads], [1, 1, 11, 2]);
    told.assertClosed();
  });
}

test('where a target says that we have read up to is of no interest', () => {
  const { target, drain } = begin();
  target.claim(1, process.pid);
  target.headers.setBigUint64(HEADER.size + HEADER.tail, 0xffff_ffff_ffff_fff3n, true);
  for (let i = 0; i < 10; i++) target.write(1, RECORD.entry(1));
  drain.poll();
  target.headers.setBigUint64(HEADER.size + HEADER.tail, 12n, true);
  target.write(1, RECORD.entry(1));
  drain.finish();
  assert.deepEqual([drain.records, drain.corrupt], [11, 0]);
});

for (const [what, word] of [
  ['function', RECORD.entry(RECORD.functions)],
  ['kind', 6],
  ['function in a note of what was lost', RECORD.lost | 16],
] as const) {
  test(`a record of no ${what} that there is closes its lane, and those before it count`, () => {
    const { target, told, drain } = begin();
    target.claim(1, process.pid);
    target.write(1, RECORD.entry(1));
    target.write(1, word);
    target.write(1, RECORD.entry(1));
    drain.finish();
    assert.deepEqual([drain.records, drain.corrupt, told.records], [1, 1, 1]);
    told.assertClosed();
  });
}

test('a target that says it has filled rings with nothing does not keep us at its end', () => {
  const { target, drain } = begin();
  for (let lane = 1; lane < target.geometry.lanes; lane++) {
    target.claim(lane, process.pid);
    setHead(target, lane, BigInt(RECORD.ringRecords * 16));
  }
  drain.finish();
  assert.equal(drain.corrupt, target.geometry.lanes - 1);
  assert.equal(drain.records, 0);
});

test('records that were begun and never finished are counted, as far as a thread can leave such', () => {
  const { target, drain } = begin();
  target.claim(1, process.pid);
  for (let i = 0; i < 20; i++) target.write(1, RECORD.entry(1));
  for (let i = 4; i < 8; i++) target.rings[1][i * 4 + WHAT_WORD] = 0;
  drain.finish();
  assert.deepEqual([drain.records, drain.abandoned, drain.corrupt], [16, 4, 0]);
});

test('there are no more threads than the kernel has made, whatever lanes say', () => {
  const { target, told, drain } = begin();
  for (let round = 0; round < 20_000; round++) {
    for (let lane = 1; lane < target.geometry.lanes; lane++) {
      target.claim(lane, 1 + round);
      target.headers.setUint32(lane * HEADER.size + HEADER.state, LANE_STATE.ended, true);
    }
    drain.poll();
  }
  drain.finish();
  assert.ok(told.threads < 20_000, `${told.threads} threads`);
  assert.equal(drain.corrupt, target.geometry.lanes - 1);
});

test('a count of lost records that cannot be is not believed', () => {
  const { target, told, drain } = begin();
  target.claim(1, process.pid);
  for (const lane of [0, 1])
    target.headers.setBigUint64(lane * HEADER.size + HEADER.dropped, 0xffff_ffff_ffff_ffffn, true);
  drain.finish();
  assert.deepEqual([drain.dropped, drain.laneless, drain.corrupt, told.lost], [0, 0, 2, 0]);
});

test('whatever a target writes, looks end and tell only what can be', () => {
  fuzzLaneHeaders(200, 1);
});
