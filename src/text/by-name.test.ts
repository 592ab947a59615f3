import assert from 'node:assert/strict';
import { test } from 'node:test';
import { byName, countName } from './index.js';

test('names that every object has are counted like others, and are missing where they are missing', () => {
  const counts = new Map<string, number>();
  const names = ['constructor', 'toString', '__proto__', 'hasOwnProperty', 'f'];
  for (const name of names) for (let i = 0; i < 3; i++) countName(counts, name);
  const object = byName(counts);
  assert.deepEqual(Object.keys(object), names);
  assert.equal(JSON.stringify(object), `{${names.map((name) => `"${name}":3`).join(',')}}`);
  assert.deepEqual(Object.entries(JSON.parse(JSON.stringify(object)) as object), Object.entries(object));
  assert.equal(byName(new Map<string, number>())['constructor'], undefined);
});
