import assert from 'node:assert/strict';
import { test } from 'node:test';
import { UsageError } from '../errors/index.js';
import { parseCount, parseSize, parseTime } from './units.js';

test('times are numbers with a unit, and become nanoseconds', () => {
  assert.equal(parseTime('500ns'), 500);
  assert.equal(parseTime('2us'), 2_000);
  assert.equal(parseTime('1.5ms'), 1_500_000);
  assert.equal(parseTime('3s'), 3_000_000_000);
  assert.equal(parseTime('1m'), 60_000_000_000);
  for (const nonsense of ['', '2', 'us', '-1us', '2 weeks', '1e3us', 'NaNs', '2toString'])
    assert.throws(() => parseTime(nonsense), UsageError, nonsense);
});

test('sizes are powers of 1024 and whole bytes', () => {
  assert.equal(parseSize('4096'), 4096);
  assert.equal(parseSize('64K'), 65_536);
  assert.equal(parseSize('16M'), 16_777_216);
  assert.equal(parseSize('1.5k'), 1536);
  assert.equal(parseSize('1GiB'), 2 ** 30);
  for (const nonsense of ['', 'M', '-1', '0.3', '16X', '99999999999G'])
    assert.throws(() => parseSize(nonsense), UsageError, nonsense);
});

test('counts are whole numbers of at least one', () => {
  assert.equal(parseCount('7', 'a depth'), 7);
  assert.throws(() => parseCount('0', 'a depth'), /cannot take "0" as a depth/);
  assert.throws(() => parseCount('1.5', 'a depth'), UsageError);
});
