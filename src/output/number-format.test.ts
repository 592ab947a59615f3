import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { formatCount, formatDuration, formatLost, microseconds } from './number-format.js';

test('durations have ten columns and three decimals of the unit that suits', () => {
  for (const [ns, text] of [
    [0, '  0.000 us'],
    [0.4, '  0.000 us'],
    [1_234, '  1.234 us'],
    [999_999, '999.999 us'],
    [999_999.6, '  1.000 ms'],
    [12_345_000, ' 12.345 ms'],
    [999_999_600, '  1.000  s'],
    [59_999_000_000, ' 59.999  s'],
    [59_999_999_999, '  1.000  m'],
    [90_000_000_000, '  1.500  m'],
    [5_400_000_000_000, ' 90.000  m'],
    [90_000_000_000_000, '1500.000  m'],
  ] as const)
    assert.equal(formatDuration(ns), text);
  fc.assert(
    fc.property(fc.double({ min: 0, max: 5e13, noNaN: true }), (ns) => formatDuration(ns).length === 10),
  );
});

test('counts have their thousands apart', () => {
  assert.equal(formatCount(0), '0');
  assert.equal(formatCount(999), '999');
  assert.equal(formatCount(1_000), '1,000');
  assert.equal(formatCount(1_234_567), '1,234,567');
  assert.equal(formatLost(1), '1 record lost');
  assert.equal(formatLost(12_345), '12,345 records lost');
});

test('microseconds are exact', () => {
  assert.equal(microseconds(0), '0.000');
  assert.equal(microseconds(1_007), '1.007');
  assert.equal(microseconds(2 ** 52 + 1), '4503599627370.497');
});
