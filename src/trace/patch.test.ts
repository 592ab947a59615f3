import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { TargetMemory } from '../target/index.js';
import { PreparedChanges, SiteChanges, applyChanges, areApplied, putJump } from './patch.js';

function jumpTo(address: number, target: number): Uint8Array {
  const bytes = new Uint8Array(5);
  putJump(bytes, 0, address, target);
  return bytes;
}

/** Memory that is an array. */
function fakeMemory(bytes: Uint8Array): TargetMemory & { writes: number } {
  const memory = {
    writes: 0,
    read: (address: number, length: number) => bytes.slice(address, address + length),
    readSome: (address: number, length: number) => bytes.slice(address, address + length),
    changeCode: (address: number, _: Uint8Array, after: Uint8Array) => {
      memory.write(address, after);
    },
    write: (address: number, data: Uint8Array) => {
      memory.writes++;
      bytes.set(data, address);
    },
  };
  return memory as unknown as TargetMemory & { writes: number };
}

const SIZE = 1 << 16;
const sites = fc.uniqueArray(fc.integer({ min: 0, max: SIZE / 8 - 1 }), { minLength: 1, maxLength: 200 });

test('changing sites and changing them back gives the bytes that were there, whatever the sites are', () => {
  fc.assert(
    fc.property(sites, fc.integer({ min: 0, max: 255 }), (slots, seed) => {
      const bytes = Uint8Array.from({ length: SIZE }, (_, i) => (i * 31 + seed) & 0xff);
      const before = bytes.slice();
      const memory = fakeMemory(bytes);
      const addresses = slots.sort((a, b) => a - b).map((slot) => slot * 8);
      const changes = SiteChanges.of(
        addresses.map((address) => ({
          address,
          expected: before.slice(address, address + 5),
          wanted: jumpTo(address, 0x1234),
        })),
      );
      assert.equal(applyChanges(memory, changes).size, 0);
      assert.ok(areApplied(memory, changes));
      const changed = new Set(addresses.flatMap((address) => [0, 1, 2, 3, 4].map((i) => address + i)));
      for (let i = 0; i < SIZE; i++) if (!changed.has(i)) assert.equal(bytes[i], before[i]);
      assert.equal(applyChanges(memory, changes.reversed()).size, 0);
      assert.deepEqual(bytes, before);
    }),
    { numRuns: 30 },
  );
});

test('a site with other bytes than expected is left alone and reported; its neighbours are changed', () => {
  const bytes = new Uint8Array(64);
  bytes[17] = 0xcc;
  const memory = fakeMemory(bytes);
  const changes = SiteChanges.of(
    [0, 16, 32].map((address) => ({
      address,
      expected: new Uint8Array(5),
      wanted: Uint8Array.of(1, 2, 3, 4, 5),
    })),
  );
  const foreign = applyChanges(memory, changes);
  assert.deepEqual([...foreign], [1]);
  assert.deepEqual([...changes.without(foreign).addresses], [0, 32]);
  assert.deepEqual([...bytes.slice(0, 5)], [1, 2, 3, 4, 5]);
  assert.deepEqual([...bytes.slice(16, 21)], [0, 0xcc, 0, 0, 0]);
  assert.deepEqual([...bytes.slice(32, 37)], [1, 2, 3, 4, 5]);
});

test('sites across the end of a page are written whole before the rest is', () => {
  const bytes = new Uint8Array(SIZE);
  const memory = fakeMemory(bytes);
  const addresses = [4080, 4092, 8186, 8188 + 3, 12_285, 16_383, 20_479 + 1];
  const changes = SiteChanges.of(
    addresses.map((address) => ({ address, expected: bytes.slice(0, 5), wanted: jumpTo(address, 0x4321) })),
  );
  const whole: number[] = [];
  const prepared = new PreparedChanges(memory, changes, (sites) => {
    for (const site of sites) {
      whole.push(site.address);
      assert.deepEqual(site.bytes, jumpTo(site.address, 0x4321));
      assert.deepEqual(bytes.slice(site.address, site.address + 5), new Uint8Array(5));
    }
  });
  prepared.apply();
  assert.deepEqual(whole, [4092, 8191, 12_285, 16_383]);
  assert.ok(areApplied(memory, changes));
  // What is as it is to be already is not written.
  prepared.others(changes).apply();
  assert.equal(whole.length, 4);
});

test('sites that are close are written in one go', () => {
  const memory = fakeMemory(new Uint8Array(SIZE));
  const changes = Array.from({ length: 100 }, (_, i) => ({
    address: i * 16,
    expected: new Uint8Array(5),
    wanted: jumpTo(i * 16, 0),
  }));
  applyChanges(memory, SiteChanges.of(changes));
  assert.equal(memory.writes, 1);
});

test('a jump is e9 and the distance from its end', () => {
  assert.deepEqual([...jumpTo(0x1000, 0x1005)], [0xe9, 0, 0, 0, 0]);
  assert.deepEqual([...jumpTo(0x1000, 0x1000)], [0xe9, 0xfb, 0xff, 0xff, 0xff]);
});
