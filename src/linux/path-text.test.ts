import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { bytesOfText, textOfBytes } from './path-text.js';

test('UTF-8 reads as what it says', () => {
  for (const text of ['', '/usr/bin/ls', 'ü', 'new\nline', '日本', '🦊'])
    assert.equal(textOfBytes(Buffer.from(text)), text);
});

test('bytes that are no UTF-8 differ as text, and come back', () => {
  const [a, b] = [Buffer.from('/x/\xe4', 'latin1'), Buffer.from('/x/\xf6', 'latin1')];
  assert.notEqual(textOfBytes(a), textOfBytes(b));
  assert.deepEqual(bytesOfText(textOfBytes(a)), a);
});

test('all bytes come back', () => {
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 40 }),
    fc.string({ unit: 'binary' }).map((text) => new Uint8Array(Buffer.from(text))),
    // UTF-8 of surrogates, too long forms, and what is cut off.
    fc
      .constantFrom([0xed, 0xb2, 0x80], [0xc0, 0x80], [0xf0, 0x9f, 0xa6], [0xf4, 0x90, 0x80, 0x80])
      .map((b) => Uint8Array.from(b)),
  );
  fc.assert(
    fc.property(fc.array(bytes, { maxLength: 4 }), (pieces) => {
      const whole = Buffer.concat(pieces);
      assert.deepEqual(bytesOfText(textOfBytes(whole)), whole);
    }),
    { numRuns: 2000 },
  );
});
