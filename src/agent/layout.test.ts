import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RECORD_BYTES } from '../recording/index.js';
import { CONTROL, DATA, HEADER, LANE, SHADOW, TRUSTED_MAX, planGeometry } from './layout.js';

test('no field of a layout reaches beyond its size, and no two begin at the same place', () => {
  for (const [name, layout] of Object.entries({ CONTROL, DATA, LANE, SHADOW, HEADER })) {
    const { size, ...fields } = layout;
    const offsets = Object.values(fields);
    assert.equal(new Set(offsets).size, offsets.length, name);
    assert.ok(
      offsets.every((offset) => offset >= 0 && offset + 4 <= size),
      name,
    );
  }
});

test('the table of trusted ranges fits into its page', () => {
  assert.ok(DATA.trusted + TRUSTED_MAX * 16 <= DATA.size);
});

test('regions of a geometry follow each other without overlapping', () => {
  for (const lanes of [2, 3, 128, 1024, 4096]) {
    for (const ringBytes of [1, 4096, 5000, 1 << 20, 128 << 20]) {
      const g = planGeometry(lanes, ringBytes, 1 << 15);
      assert.ok(g.queue >= DATA.size);
      assert.ok(g.cache >= g.queue + lanes * 4);
      assert.ok(g.laneTable >= g.cache);
      assert.ok(g.shadowStacks >= g.laneTable + lanes * LANE.size);
      assert.equal(g.dataBytes, g.shadowStacks + lanes * g.shadowStride);
      assert.ok(g.rings >= lanes * HEADER.size);
      assert.equal(g.sharedBytes, g.rings + lanes * g.ringBytes);
      assert.equal(g.ringBytes & (g.ringBytes - 1), 0);
      assert.ok(g.shadowStride >= (g.shadowEntries + 2) * SHADOW.size);
    }
  }
});

test('the end of every open call has room in the ring, and so has what a handler may add', () => {
  for (const ringBytes of [4096, 65536, 1 << 24]) {
    const g = planGeometry(8, ringBytes, 1 << 15);
    assert.ok(g.shadowEntries * RECORD_BYTES <= g.ringBytes / 2);
    assert.ok(g.ringLimit < g.ringBytes);
    assert.ok(g.ringLimit >= g.ringBytes / 2);
  }
});
