// Paths, names and arguments are bytes to the kernel, and nearly always UTF-8. As text they keep every byte all the same: one that is no
// part of UTF-8 is a lone low surrogate, which UTF-8 has none of (Python's "surrogateescape", PEP 383).
import { isUtf8 } from 'node:buffer';

const ESCAPED = 0xdc00;
const FIRST_ESCAPED = 0xdc80;
const LAST_ESCAPED = 0xdcff;
const LONGEST_CHARACTER = 4;
const LONE_SURROGATE = /[\ud800-\udfff]/u;

/** The text of bytes that the kernel gives. */
export function textOfBytes(bytes: Uint8Array): string {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (isUtf8(buffer)) return buffer.toString('utf8');
  const pieces: string[] = [];
  for (let at = 0; at < buffer.length;) {
    let length = 0;
    if (buffer[at] < 0x80) {
      length = 1;
      while (at + length < buffer.length && buffer[at + length] < 0x80) length++;
    } else {
      for (let most = 2; most <= LONGEST_CHARACTER && length === 0; most++)
        if (at + most <= buffer.length && isUtf8(buffer.subarray(at, at + most))) length = most;
    }
    pieces.push(
      length === 0 ? String.fromCharCode(ESCAPED + buffer[at]) : buffer.toString('utf8', at, at + length),
    );
    at += Math.max(length, 1);
  }
  return pieces.join('');
}

/** The same for bytes that were read as latin1. */
export function textOfLatin1(text: string): string {
  return textOfBytes(Buffer.from(text, 'latin1'));
}

/** The bytes of such a text: what a system call is given. */
export function bytesOfText(text: string): Buffer {
  if (!LONE_SURROGATE.test(text)) return Buffer.from(text, 'utf8');
  const pieces: Buffer[] = [];
  for (const character of text) {
    const unit = character.charCodeAt(0);
    const isEscaped = character.length === 1 && unit >= FIRST_ESCAPED && unit <= LAST_ESCAPED;
    pieces.push(isEscaped ? Buffer.of(unit - ESCAPED) : Buffer.from(character, 'utf8'));
  }
  return Buffer.concat(pieces);
}
