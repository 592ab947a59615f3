import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isPlain, json, lines, painted, plain, text, type Text } from './index.js';

test('what a terminal would obey is shown instead', () => {
  for (const [given, shown] of [
    ['f', 'f'],
    ['naïve_ünï_名前', 'naïve_ünï_名前'],
    ['\x1b]0;T\x07', '\\x1b]0;T\\x07'],
    ['a\nb\r\tc', 'a\\nb\\r\\tc'],
    ['\x9b2J\x7f', '\\x9b2J\\x7f'],
    ['\u202egpj.exe\u2066', '\\u{202e}gpj.exe\\u{2066}'],
    ['a\u2028b\u2029c', 'a\\u{2028}b\\u{2029}c'],
    ['ze\u200bro\ufeff\u00ad', 'ze\\u{200b}ro\\u{feff}\\xad'],
    ['half \ud83d, whole \u{1f600}', 'half \\u{d83d}, whole \u{1f600}'],
    ['tag\u{e0041}', 'tag\\u{e0041}'],
    ['filler\u3164', 'filler\\u{3164}'],
  ] as const)
    assert.equal(plain(given), shown);
});

test('any string is one line without controls, and says of itself that it is', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (value) => {
      const shown = plain(value);
      assert.doesNotMatch(shown, /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u);
      assert.ok(isPlain(shown));
      assert.equal(isPlain(value), shown === value);
    }),
    { seed: 1, numRuns: 1000 },
  );
});

test('JSON means the same, and obeys nobody', () => {
  fc.assert(
    fc.property(fc.json({ stringUnit: 'binary' }), (source) => {
      const value: unknown = JSON.parse(source);
      for (const indent of [undefined, 2]) {
        const made = json(value, indent);
        assert.deepEqual(JSON.parse(made), JSON.parse(JSON.stringify(value)));
        assert.ok(isPlain(made.replaceAll('\n', '')));
      }
      assert.doesNotMatch(json(value), /\n/);
    }),
    { seed: 1, numRuns: 500 },
  );
});

test('a long name is cut where that is wanted, and shows it', () => {
  assert.equal(plain('abcdef', 3), 'abc…');
  assert.equal(plain('abc', 3), 'abc');
  // Half of a pair that the cut leaves is shown as such.
  assert.equal(plain('\u{1f600}', 1), '\\u{d83d}…');
});

test('of what was coloured only colours and line ends stay', () => {
  assert.equal(
    painted('\x1b[1mbold\x1b[22m\n\x1b[2J\x1b]0;T\x07'),
    '\x1b[1mbold\x1b[22m\n\\x1b[2J\\x1b]0;T\\x07',
  );
  assert.equal(lines('a\x1b\nb'), 'a\\x1b\nb');
});

test('the compiler takes no plain string for text', () => {
  const name: string = '\x1b[2J';
  const write = (shown: Text): string => shown;
  // @ts-expect-error: a string is not Text
  assert.equal(write(name), name);
  // @ts-expect-error: nor does the tag take one
  assert.equal(text`f ${name}`, `f ${name}`);
  // @ts-expect-error: nor is what an ordinary template makes of one
  assert.equal(write(`<${plain(name)}>`), '<\\x1b[2J>');
  assert.equal(write(text`f ${plain(name)} ${1}`), 'f \\x1b[2J 1');
});
