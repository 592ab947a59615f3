import { test } from 'node:test';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { StateStore } from './state-store.js';

test('a store finds exactly the states that were inserted, whatever their hashes', () => {
  const states = fc.array(fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 3, maxLength: 3 }), {
    maxLength: 200,
  });
  fc.assert(
    fc.property(states, (inserted) => {
      const store = new StateStore(3);
      const known = new Map<string, number>();
      for (const state of inserted) {
        const words = Int32Array.from([99, ...state]);
        const number = known.get(state.join());
        if (number === undefined) {
          assert.equal(store.insert(words, 1), known.size);
          known.set(state.join(), known.size);
        } else assert.equal(store.insert(words, 1), -1 - number);
      }
      assert.equal(store.count, known.size);
    }),
  );
});

test('a store keeps every state as it grows over many chunks', () => {
  const store = new StateStore(2);
  const count = 200_000;
  for (let i = 0; i < count; i++) assert.equal(store.insert(Int32Array.of(i, i * 7), 0), i);
  const read = new Int32Array(2);
  for (let i = 0; i < count; i += 997) {
    store.read(i, read);
    assert.deepEqual([...read], [i, i * 7]);
    assert.equal(store.insert(read, 0), -1 - i);
  }
});
