// The unit of a modification is a span of about a page. No site may be cut: between two modifications a handler may run, and
// must find each site as it was or as it will be.
import { SITE_LENGTH } from '../x86/index.js';

/** Bytes after which a span ends where it can; and where it must. */
const SPAN = 4096;
const LONGEST_SPAN = 3 * SPAN;

export interface PlannedChange {
  readonly address: number;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

/** Cuts a change of many bytes into spans, and leaves out what stays as it is. */
export function* planChanges(
  address: number,
  before: Uint8Array,
  after: Uint8Array,
): Generator<PlannedChange> {
  for (let from = firstDifference(before, after, 0); from < after.length;) {
    const to = spanEnd(before, after, from);
    yield { address: address + from, before: before.subarray(from, to), after: after.subarray(from, to) };
    from = firstDifference(before, after, to);
  }
}

function firstDifference(before: Uint8Array, after: Uint8Array, from: number): number {
  let at = from;
  while (at < after.length && before[at] === after[at]) at++;
  return at;
}

/**
 * Where as many bytes as a site has stay as they are: a site that begins there and goes beyond has all that changes of it in the
 * next span.
 */
function spanEnd(before: Uint8Array, after: Uint8Array, from: number): number {
  let same = 0;
  for (let at = from; at < after.length && at - from < LONGEST_SPAN; at++) {
    same = before[at] === after[at] ? same + 1 : 0;
    if (same >= SITE_LENGTH && at + 1 - from >= SPAN) return at + 1;
  }
  return Math.min(after.length, from + LONGEST_SPAN);
}
