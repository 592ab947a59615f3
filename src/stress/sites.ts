// The functions whose code is changed while they are called. Each:
//
//     mov eax, 100
//   site: nop, or call ADDER         5 bytes, which lie across the end of a page or of a cache line
//     add eax, 1000
//     ret
//
// so the result tells which code ran, and that what follows it ran once. A mixture of old and new bytes is told too, where it
// is a call: where it leads to stands code that gives a result of its own. A mixture that begins with the first byte of the
// nop is `ud2`. Everything else is `hlt`: both end the process by a signal.
import { assemble } from '../x86/index.js';
import { SITES } from './layout.js';

/** A function with a site, and what it may return. */
export interface SiteFunction {
  readonly name: string;
  readonly entry: number;
  readonly site: number;
  /** The two codes between which the site is changed to and fro. */
  readonly codes: readonly [Uint8Array, Uint8Array];
  /** What the function returns with the first, and with the second. */
  readonly results: readonly [number, number];
}

export interface SitePages {
  readonly bytes: Uint8Array;
  readonly functions: readonly SiteFunction[];
}

const SITE_SIZE = 5;
const NOP5 = Uint8Array.of(0x0f, 0x1f, 0x44, 0x00, 0x00);
const HLT = 0xf4;
const CALL_OPCODE = 0xe8;
/** The tail of the nop, read as the displacement of a call. */
const NOP_TAIL_DISPLACEMENT = 0x441f;
/** `mov eax, imm32` and `add eax, imm32`. */
const BEFORE_SITE = 5;
const BASE_RESULT = 1100;
const MIXED_RESULT = 0x10000;

const REGION_SIZE = 0x2_4000;
/** The page ends behind the first byte: where a breakpoint goes, and nothing else. */
const ACROSS_PAGE_AFTER_HEAD = 0xfff;
/** A line of 64 bytes ends behind the first byte. */
const ACROSS_LINE_AFTER_HEAD = 0x83f;
/** The page ends within the displacement. */
const ACROSS_PAGE_IN_TAIL = 0xffd;

/**
 * Displacements of the calls. The low byte of 0x0b makes `0f 0b`, which is ud2, of the first byte of the nop and the second of a
 * call. The third differs from the first on both sides of the page's end.
 */
const TO_ONE = 0x20b;
const TO_TWO = 0x2_030b;

function callTo(displacement: number): Uint8Array {
  const code = new Uint8Array(SITE_SIZE);
  code[0] = CALL_OPCODE;
  new DataView(code.buffer).setInt32(1, displacement, true);
  return code;
}

/** Makes the pages that begin at SITES. */
export function makeSitePages(): SitePages {
  const bytes = new Uint8Array(3 * REGION_SIZE).fill(HLT);
  const region = (index: number): number => SITES + index * REGION_SIZE;
  const place = (address: number, listing: string): void => {
    bytes.set(assemble(listing, BigInt(address)).bytes, address - SITES);
  };
  const make = (
    name: string,
    site: number,
    codes: readonly [Uint8Array, Uint8Array],
    results: readonly [number, number],
    mixtures: readonly number[],
  ): SiteFunction => {
    const after = site + SITE_SIZE;
    place(site - BEFORE_SITE, 'mov eax, 100');
    bytes.set(codes[0], site - SITES);
    place(after, 'add eax, 1000\nret');
    place(after + TO_ONE, 'add eax, 1\nret');
    place(after + TO_TWO, 'add eax, 2\nret');
    for (const mixture of mixtures) place(after + mixture, `add eax, ${MIXED_RESULT}\nret`);
    return { name, entry: site - BEFORE_SITE, site, codes, results };
  };
  const toggled = [NOP5, callTo(TO_ONE)] as const;
  const nopOrOne = [BASE_RESULT, BASE_RESULT + 1] as const;
  return {
    bytes,
    functions: [
      make('across a page', region(0) + ACROSS_PAGE_AFTER_HEAD, toggled, nopOrOne, [NOP_TAIL_DISPLACEMENT]),
      make('across a line', region(1) + ACROSS_LINE_AFTER_HEAD, toggled, nopOrOne, [NOP_TAIL_DISPLACEMENT]),
      make(
        'from call to call',
        region(2) + ACROSS_PAGE_IN_TAIL,
        [callTo(TO_ONE), callTo(TO_TWO)],
        [BASE_RESULT + 1, BASE_RESULT + 2],
        [0x030b, 0x2_020b],
      ),
    ],
  };
}
