import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { MemoryRange } from '../linux/index.js';
import type { TargetMemory } from '../target/index.js';
import { PreparedChanges, SiteChanges, applyChanges, areApplied } from './patch.js';

function jumpTo(address: number, target: number): Uint8Array {
  const bytes = Uint8Array.of(0xe9, 0, 0, 0, 0);
  new DataView(bytes.buffer).setInt32(1, target - (address + bytes.length), true);
  return bytes;
}

/** Memory that is an array. */
function fakeMemory(bytes: Uint8Array): TargetMemory & { writes: number; reads: number; end: number } {
  const memory = {
    writes: 0,
    reads: 0,
    /** Nothing can be read from here on. */
    end: bytes.length,
    readSome: (address: number, length: number) => {
      memory.reads++;
      return bytes.slice(address, Math.max(address, Math.min(address + length, memory.end)));
    },
    readInto: (ranges: readonly MemoryRange[], into: Uint8Array) => {
      memory.reads++;
      let at = 0;
      for (const { address, length } of ranges) {
        into.fill(0, at, at + length);
        if (address + length <= memory.end) into.set(bytes.subarray(address, address + length), at);
        at += length;
      }
    },
    changeCode: (address: number, _: Uint8Array, after: Uint8Array) => {
      memory.write(address, after);
    },
    write: (address: number, data: Uint8Array) => {
      memory.writes++;
      bytes.set(data, address);
    },
  };
  return memory as unknown as TargetMemory & { writes: number; reads: number; end: number };
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
  const prepared = PreparedChanges.of(memory, changes, (sites) => {
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
  // Nor what has been left out, nor where something else has come to stand.
  bytes.fill(0);
  whole.length = 0;
  const others = PreparedChanges.of(memory, changes, (sites) => {
    for (const { address, bytes: jump } of sites) {
      whole.push(address);
      bytes.set(jump, address);
    }
  }).without(new Set([1, 4]));
  bytes[16_383] = 0xcc;
  assert.deepEqual([...others.apply()], [3]);
  assert.deepEqual(whole, [8191]);
  assert.deepEqual(others.changes.addresses[3], 16_383);
  assert.ok(areApplied(memory, others.changes.without(new Set([3]))));
  assert.deepEqual([...bytes.slice(16_383, 16_388)], [0xcc, 0, 0, 0, 0]);
  assert.deepEqual(bytes.slice(4092, 4097), new Uint8Array(5));
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

/** Sites at multiples of 8, most of them as expected, each to become a jump. */
function changesOf(bytes: Uint8Array, slots: readonly number[], foreign: ReadonlySet<number>): SiteChanges {
  const addresses = [...slots].sort((a, b) => a - b).map((slot) => slot * 8);
  return SiteChanges.of(
    addresses.map((address, i) => ({
      address,
      expected: foreign.has(i) ? Uint8Array.of(1, 2, 3, 4, 5) : bytes.slice(address, address + 5),
      wanted: jumpTo(address, 0x1234),
    })),
  );
}

/** Some of the indices below 200. */
const someIndices = fc.uniqueArray(fc.integer({ min: 0, max: 199 })).map((list) => new Set(list));

test('changes that are left out of what is ready are not made, and all others are, as if it had been made ready without them', () => {
  fc.assert(
    fc.property(sites, someIndices, someIndices, fc.boolean(), (slots, foreign, out, isTouched) => {
      const bytes = Uint8Array.from({ length: SIZE }, (_, i) => (i * 31 + 7) & 0xff);
      const again = bytes.slice();
      const all = changesOf(bytes, slots, foreign);
      const some = all.without(out);
      const kept = [...all.addresses.keys()].filter((i) => !out.has(i));
      assert.deepEqual(
        [...some.addresses],
        kept.map((i) => all.addresses[i]),
      );
      kept.forEach((i, k) => assert.deepEqual(some.wantedOf(k), all.wantedOf(i)));
      kept.forEach((i, k) => assert.deepEqual(some.reversed().wantedOf(k), all.reversed().wantedOf(i)));

      const ready = PreparedChanges.of(fakeMemory(bytes), all).without(out);
      // A breakpoint that has come meanwhile.
      if (isTouched) bytes[all.addresses[0]] ^= 0xff;
      if (isTouched) again[all.addresses[0]] ^= 0xff;
      assert.deepEqual(ready.apply(), applyChanges(fakeMemory(again), some));
      assert.deepEqual(bytes, again);
    }),
    { numRuns: 100 },
  );
});

test('what is ready is looked at again in one read, however many spans there are', () => {
  const memory = fakeMemory(new Uint8Array(SIZE));
  const addresses = Array.from({ length: 8 }, (_, i) => i * 8192);
  const changes = SiteChanges.of(
    addresses.map((address) => ({ address, expected: new Uint8Array(5), wanted: jumpTo(address, 0) })),
  );
  const prepared = PreparedChanges.of(memory, changes);
  assert.equal(memory.reads, addresses.length);
  assert.equal(prepared.apply().size, 0);
  assert.equal(memory.reads, addresses.length + 1);
  assert.equal(memory.writes, addresses.length);
});

test('large spans are looked at a part at a time, and those that are left out make no part too large', () => {
  const kib = 1024;
  const bytes = new Uint8Array(kib * kib).fill(0x90);
  const memory = fakeMemory(bytes);
  // Three spans of many sites.
  const extents = [
    [0, 130 * kib],
    [200 * kib, 200 * kib],
    [500 * kib, 120 * kib],
  ];
  const addresses = extents.flatMap(([start, length]) =>
    Array.from({ length: length / (2 * kib) }, (_, i) => start + i * 2 * kib),
  );
  const changes = SiteChanges.of(
    addresses.map((address) => ({
      address,
      expected: bytes.slice(address, address + 5),
      wanted: jumpTo(address, 0),
    })),
  );
  const middle = [...addresses.keys()].filter((i) => addresses[i] >= 200 * kib && addresses[i] < 500 * kib);
  const prepared = PreparedChanges.of(memory, changes);
  const others = prepared.without(new Set(middle));
  memory.reads = 0;
  assert.equal(others.apply().size, 0);
  assert.equal(memory.reads, 1);
  assert.ok(areApplied(memory, others.changes));
  assert.deepEqual(bytes.slice(200 * kib, 200 * kib + 5), new Uint8Array(5).fill(0x90));
  memory.reads = 0;
  assert.equal(PreparedChanges.of(memory, changes).apply().size, 0);
  assert.equal(memory.reads, extents.length + 3);
  assert.ok(areApplied(memory, changes));
});

test('spans whose memory has gone meanwhile are left alone, and the others are written', () => {
  const bytes = new Uint8Array(SIZE).fill(0x90);
  const memory = fakeMemory(bytes);
  const changes = SiteChanges.of(
    [0, 16384, 32768].map((address) => ({
      address,
      expected: bytes.slice(address, address + 5),
      wanted: jumpTo(address, 0),
    })),
  );
  const prepared = PreparedChanges.of(memory, changes);
  memory.end = 16384 + 2;
  assert.equal(prepared.apply().size, 0);
  assert.equal(memory.writes, 1);
  assert.deepEqual(bytes.slice(0, 5), jumpTo(0, 0));
  assert.equal(bytes[16384], 0x90);
});
