// Sites of functions whose first instructions may fault. Those stay where they are, and the site comes behind them:
//
//     push %rbx
//     mov 8(%rdi), %rax          may fault
//     mov %rsi, %rbx             the site: five bytes that cannot fault; 8 bytes are on the stack
//     xor %edx, %edx
//
// From the function's address to there all is executed in order: no branch, nobody who jumps in. The stack pointer is known, by which
// the recorder finds the return address. The red zone is not in use, for the call of the recorder writes there.
import { Mark } from './code-regions.js';
import { FRAME_POINTER, STACK_POINTER, common } from './common-instructions.js';
import { measureDisplaced, type DisplacedExtent } from './displaced.js';
import { Flow, endsFlow } from './flow.js';
import { decodeFlow } from './instruction-flow.js';
import type { ModuleLandings } from './landings.js';
import { mayFault, takesLong } from './may-fault.js';
import { SITE_LENGTH } from './sites.js';
import { TO_FRAME, hasStackIndex, stackChange } from './stack-depths.js';

/** Further behind no site is looked for: a time stamp is to be that of the beginning. */
const MOST_SKIPPED = 24;
/** What fits into a kept verdict, in units of 8 bytes. */
export const MOST_DEPTH = 63;
export const DEPTH_UNIT = 8;
/** Somebody comes there, or may: a jump, or who has the address. */
const ENTERED = Mark.known | Mark.foreign | Mark.called | Mark.entry;

/** Where a site is, in bytes from the function's address. */
export interface PlacedSite extends DisplacedExtent {
  readonly offset: number;
  /** Bytes that have been pushed there. */
  readonly depth: number;
}

/** Code of a function, as indexes into the bytes of its region, which begins at the address `base`. */
export interface FunctionCode {
  readonly range: number;
  readonly bytes: Uint8Array;
  readonly base: number;
  readonly first: number;
  readonly end: number;
  /** Where padding behind it ends at the latest. */
  readonly padded: number;
}

/** True if one of `count` instructions from `site` on may fault, where it is reached from there. */
export function mayRunFault(
  landings: ModuleLandings,
  { bytes, base, range }: FunctionCode,
  site: number,
  count: number,
): boolean {
  const isBehindFrame = (at: number): boolean =>
    FRAME_BEGINS.some(
      (code) => at - site === code.length && code.every((byte, i) => bytes[site + i] === byte),
    );
  let start = site;
  const hasFrame = (): boolean =>
    isBehindFrame(start) || (range >= 0 && landings.depths.hasFramePointer(range, base + start));
  for (let i = 0; i < count; i++) {
    const rare = decodeFlow(bytes, start, bytes.length);
    const { end, flow } = common;
    if (mayFault(bytes, start, rare, hasFrame)) return true;
    if (endsFlow(flow)) return false;
    start = end;
  }
  return false;
}

/** push %rbp; mov %rsp, %rbp, as gcc and as others write it. */
const FRAME_BEGINS: readonly (readonly number[])[] = [
  [0x55, 0x48, 0x89, 0xe5],
  [0x55, 0x48, 0x8b, 0xec],
];

/** The first place for a site behind `from`, where the ordinary one would be; undefined: there is none. */
export function placeBehind(
  landings: ModuleLandings,
  code: FunctionCode,
  from: number,
): PlacedSite | undefined {
  const { bytes, base, first, end, padded } = code;
  const { regions } = landings;
  let depth = 0;
  let frame: number | undefined;
  let at = from;
  for (let skipped = 0; skipped < MOST_SKIPPED && at < end; skipped++) {
    const rare = decodeFlow(bytes, at, end);
    const { flow, end: next, base: register, baseOffset } = common;
    if (flow !== Flow.next && flow !== Flow.leaRelative) return undefined;
    // The red zone: below rsp, be it by the frame pointer.
    if (register === STACK_POINTER && baseOffset < 0) return undefined;
    if (register === FRAME_POINTER && frame !== undefined && frame - baseOffset > depth) return undefined;
    if (hasStackIndex(bytes, rare)) return undefined;
    if (takesLong(bytes, at)) return undefined;
    const change = stackChange(bytes, at, next, rare);
    if (change === TO_FRAME) frame = depth;
    else if (!Number.isInteger(change)) return undefined;
    else depth += change;
    if (depth < 0 || depth % DEPTH_UNIT !== 0 || depth > MOST_DEPTH * DEPTH_UNIT) return undefined;
    at = next;
    if ((regions.marksWithin(base + from + 1, base + at + 1) & ENTERED) !== 0) return undefined;
    const extent = measureDisplaced(bytes, at, end, padded);
    if (typeof extent === 'string') continue;
    if (landings.startsWithin(base + at + 1, base + at + SITE_LENGTH)) continue;
    if (landings.landsWithin(base + at + 1, base + at + SITE_LENGTH)) continue;
    if (mayRunFault(landings, code, at, extent.count) || goesOnBehindEnd(bytes, at, extent)) continue;
    return { ...extent, offset: at - first, depth };
  }
  return undefined;
}

/**
 * True if what a site displaces has code behind a return or a jump. In a function that may fault that may be where a handler goes on, which
 * is written nowhere that is looked at: a table of distances.
 */
function goesOnBehindEnd(bytes: Uint8Array, site: number, { count }: DisplacedExtent): boolean {
  let start = site;
  for (let i = 0; i + 1 < count; i++) {
    decodeFlow(bytes, start, bytes.length);
    if (endsFlow(common.flow)) return true;
    start = common.end;
  }
  return false;
}
