// The unit of a modification is a span of about a page. No site may be cut: between two modifications a handler may run, and
// must find each site as it was or as it will be.
import { CannotError } from '../errors/index.js';
import { SITE_LENGTH } from '../x86/index.js';

/** Bytes after which a span ends where it can; and how many it may have. */
const SPAN = 4096;
const LONGEST_SPAN = 3 * SPAN;

export interface PlannedChange {
  readonly address: number;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

/** Cuts a change of many bytes into spans, and leaves out what stays as it is. @throws CannotError MEMORY */
export function* planChanges(
  address: number,
  before: Uint8Array,
  after: Uint8Array,
): Generator<PlannedChange> {
  for (let from = firstDifference(before, after, 0); from < after.length;) {
    const to = spanEnd(before, after, from);
    if (to - from > LONGEST_SPAN) {
      throw new CannotError('MEMORY', {
        tried: `change code at 0x${(address + from).toString(16)}`,
        why: `so many sites stand without a gap that a change of ${LONGEST_SPAN} bytes would have to cut one`,
        next: 'trace fewer functions there',
      });
    }
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
  for (let at = from; at < after.length; at++) {
    same = before[at] === after[at] ? same + 1 : 0;
    if (same >= SITE_LENGTH && at + 1 - from >= SPAN) return at + 1;
  }
  return after.length;
}
