import { UsageError } from '../errors/index.js';

const NS_PER: ReadonlyMap<string, number> = new Map([
  ['ns', 1],
  ['us', 1e3],
  ['ms', 1e6],
  ['s', 1e9],
  ['m', 60e9],
  ['min', 60e9],
]);
const BYTES_PER: ReadonlyMap<string, number> = new Map([
  ['', 1],
  ['k', 2 ** 10],
  ['m', 2 ** 20],
  ['g', 2 ** 30],
]);

/** Nanoseconds of a time such as `500ns`, `2us`, `1.5ms`, `3s`, `1m`. Throws BAD_TIME. */
export function parseTime(text: string): number {
  const match = /^(\d+(?:\.\d+)?|\.\d+)([a-z]+)$/.exec(text.trim().toLowerCase());
  const scale = match === null ? undefined : NS_PER.get(match[2]);
  const value = match === null || scale === undefined ? Number.NaN : Number(match[1]) * scale;
  if (!Number.isFinite(value))
    throw new UsageError('BAD_TIME', {
      tried: `take "${text}" as a time`,
      why: 'it is not a number with a unit',
      next: 'write it like 500ns, 2us, 1.5ms, 3s or 1m',
    });
  return value;
}

/** Bytes of a size such as `4096`, `64K`, `16M`, `1G`: powers of 1024. Throws BAD_SIZE. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)([kmg]?)(?:i?b)?$/.exec(text.trim().toLowerCase());
  const bytes = match === null ? Number.NaN : Number(match[1]) * (BYTES_PER.get(match[2]) ?? Number.NaN);
  if (!Number.isSafeInteger(bytes))
    throw new UsageError('BAD_SIZE', {
      tried: `take "${text}" as a size`,
      why: 'it is not a whole number of bytes',
      next: 'write it like 4096, 64K, 16M or 1G',
    });
  return bytes;
}

/** A whole number of at least `least`. `what` names it in the message: "a depth". Throws BAD_NUMBER. */
export function parseCount(text: string, what: string, least = 1): number {
  const value = /^\d+$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value) || value < least)
    throw new UsageError('BAD_NUMBER', {
      tried: `take "${text}" as ${what}`,
      why: `it is not a whole number of at least ${least}`,
      next: `give a number such as ${Math.max(least, 8)}`,
    });
  return value;
}

const US_PER_MS = 1000;

/** Microseconds as people read them who wait for threads. */
export function milliseconds(us: number, digits = 1): string {
  return `${(us / US_PER_MS).toFixed(digits)} ms`;
}
