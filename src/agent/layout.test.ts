import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RECORD_BYTES } from '../recording/index.js';
import { CONTROL, DATA, HEADER, LANE, MARK, entryLimit, planGeometry } from './layout.js';

test('no field of a layout reaches beyond its size, and no two begin at the same place', () => {
  for (const [name, layout] of Object.entries({ CONTROL, DATA, LANE, HEADER })) {
    const { size, ...fields } = layout;
    const offsets = Object.values(fields);
    assert.equal(new Set(offsets).size, offsets.length, name);
    assert.ok(
      offsets.every((offset) => offset >= 0 && offset + 4 <= size),
      name,
    );
  }
});

test('what the recorder looks at as one word is one', () => {
  assert.equal(LANE.lost % 8, 0);
  assert.equal(LANE.marks, LANE.lost + 4);
});

test('regions of a geometry follow each other without overlapping', () => {
  for (const lanes of [2, 3, 128, 1024, 4096]) {
    for (const ringBytes of [1, 4096, 5000, 1 << 20, 128 << 20]) {
      const g = planGeometry(lanes, ringBytes);
      assert.ok(g.queue >= DATA.size);
      assert.ok(g.cache >= g.queue + lanes * 4);
      assert.ok(g.laneTable >= g.cache);
      assert.ok(g.markTables >= g.laneTable + lanes * LANE.size);
      assert.ok(g.markStride >= (MARK.places + MARK.tries) * MARK.bytes);
      assert.equal(g.dataBytes, g.markTables + lanes * g.markStride);
      assert.ok(g.rings >= lanes * HEADER.size);
      assert.equal(g.sharedBytes, g.rings + lanes * g.ringBytes);
      assert.equal(g.ringBytes & (g.ringBytes - 1), 0);
    }
  }
});

test('entries leave room for ends, and both for what a handler may add', () => {
  for (const ringBytes of [4096, 65536, 1 << 24, 128 << 20]) {
    const { ringLimit } = planGeometry(8, ringBytes);
    assert.ok(ringLimit < ringBytes);
    assert.ok(ringLimit >= ringBytes / 2);
    assert.ok(entryLimit(ringLimit) >= ringLimit / 2);
    assert.ok(ringLimit - entryLimit(ringLimit) <= 32768 * RECORD_BYTES);
  }
});
