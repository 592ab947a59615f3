import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { checkName } from './fuzz-names.test.support.js';
import { readInEveryWay } from './fuzz-recordings.test.support.js';

const corpus = fileURLToPath(new URL('../../test/corpus/', import.meta.url));

const recordings = readdirSync(`${corpus}recordings`);
assert.ok(recordings.length > 0);
for (const file of recordings)
  test(`the recording ${file} is read in every way`, () =>
    readInEveryWay(new Uint8Array(readFileSync(`${corpus}recordings/${file}`))));

test('the names that were found hurt nothing', () => {
  const names = readFileSync(`${corpus}names.jsonl`, 'utf8').trimEnd().split('\n');
  assert.ok(names.length > 0);
  for (const name of names) checkName(JSON.parse(name) as string);
});
