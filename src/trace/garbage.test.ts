import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runInNewContext } from 'node:vm';
import { collectGarbage } from './garbage.js';

const OBJECTS = 500_000;

test('garbage is gone when it has been collected, and the program sees nothing of how', () => {
  const hadCollector = 'gc' in globalThis;
  const list: unknown[] = [];
  for (let i = 0; i < OBJECTS; i++) list.push({ i, text: String(i) });
  const before = process.memoryUsage().heapUsed;
  assert.equal(list.length, OBJECTS);
  list.length = 0;
  collectGarbage();
  assert.ok(
    process.memoryUsage().heapUsed < before - OBJECTS * 16,
    'half a million objects have been collected',
  );
  assert.equal('gc' in globalThis, hadCollector);
  if (!hadCollector) assert.equal(runInNewContext('typeof gc'), 'undefined');
});
