// One sweep over all code of a file: where each instruction begins, and where every direct branch goes.
import type { ElfFile, UnwindTable } from '../elf/index.js';
import { DWARF_RBP, DWARF_RSP } from '../elf/index.js';
import { CodeRanges, Trait } from './code-ranges.js';
import { Mark, type CodeArea, type CodeRegion, type CodeRegions } from './code-regions.js';
import { FRAME_POINTER, OTHER_BASE, STACK_POINTER, common } from './common-instructions.js';
import { endbrLength } from './displaced.js';
import { Flow } from './flow.js';
import { branchTarget, decodeFlow, int32At } from './instruction-flow.js';

/** A jump that leaves a range, or comes from code that no range covers. */
export interface LeavingJump {
  /** Index of the range that it stands in; -1: none. */
  readonly range: number;
  readonly address: number;
  readonly length: number;
  readonly target: number;
  readonly isConditional: boolean;
}

/** A jump or call through a register or memory. */
export interface IndirectJump {
  readonly range: number;
  readonly address: number;
  readonly length: number;
}

/** What the sweep found besides the marks that it left in the regions and the traits in the ranges. */
export interface Swept {
  readonly leaving: readonly LeavingJump[];
  readonly indirect: readonly IndirectJump[];
}

/** Sweeps all areas; marks instructions and landings of direct branches and `lea`. */
export function sweep(elf: ElfFile, regions: CodeRegions, ranges: CodeRanges, unwind: UnwindTable): Swept {
  const sweeper = new Sweeper(regions, ranges, unwind);
  for (const area of regions.areas(elf)) sweeper.sweepArea(area);
  return sweeper;
}

class Sweeper implements Swept {
  readonly leaving: LeavingJump[] = [];
  readonly indirect: IndirectJump[] = [];

  constructor(
    private readonly regions: CodeRegions,
    private readonly ranges: CodeRanges,
    private readonly unwind: UnwindTable,
  ) {}

  sweepArea({ region, from, to }: CodeArea): void {
    const { starts, ends, count } = this.ranges;
    let at = from;
    let index = 0;
    while (index < count && ends[index] <= region.start + from) index++;
    for (; index < count && starts[index] < region.start + to; index++) {
      const first = Math.max(starts[index] - region.start, at);
      const end = Math.min(ends[index] - region.start, to);
      if (first > at) this.#sweepGap(region, at, first);
      if (end > first) this.#sweepRange(region, first, end, index);
      at = Math.max(at, end);
    }
    if (to > at) this.#sweepGap(region, at, to);
  }

  /** Code of nobody: decoded as it comes. What it is cannot be known, so that every byte may be a short jump besides. */
  #sweepGap(region: CodeRegion, from: number, to: number): void {
    const { bytes, marks } = region;
    markShortJumps(region, from, to);
    for (let at = from; at < to; ) {
      decodeFlow(bytes, at, to);
      const { flow, end } = common;
      if (flow === Flow.invalid || end > to) {
        at++;
        continue;
      }
      marks[at] |= Mark.instruction;
      if (flow === Flow.jump || flow === Flow.conditionalJump) {
        const target = branchTarget(bytes, at, end);
        this.#land(region, target, Mark.landing | Mark.known | Mark.foreign);
        this.#leave(region, -1, at, end, target, flow === Flow.conditionalJump);
      } else if (flow === Flow.call) {
        this.#land(region, branchTarget(bytes, at, end), CALL);
      } else if (flow === Flow.leaRelative && common.displacement >= 0) {
        this.#land(region, end + int32At(bytes, common.displacement), CALL);
      }
      at = end;
    }
  }

  #sweepRange(region: CodeRegion, first: number, limit: number, index: number): void {
    const { bytes, marks, start: base } = region;
    const { traits } = this.ranges;
    const entry = this.ranges.unwind[index];
    const behindEndbr = first + endbrLength(bytes, first);
    let found = 0;
    let last: Flow = Flow.next;
    for (let at = first; at < limit; at = common.end) {
      decodeFlow(bytes, at, limit);
      const { flow } = common;
      // Padding behind the end belongs to some functions.
      if (!common.isNop) last = flow;
      const { end } = common;
      if (flow === Flow.invalid || end > limit) {
        found |= Trait.undecodable;
        // What stands there may be code all the same, to whoever jumps over what is none.
        markShortJumps(region, at, limit);
        last = Flow.end;
        break;
      }
      marks[at] |= Mark.instruction;
      if (common.base !== OTHER_BASE && !common.isNop) {
        const { base: register, baseOffset } = common;
        if (baseOffset < 0) {
          if (register === STACK_POINTER) found |= Trait.redZone;
        } else if (entry >= 0 && (found & Trait.ownReturn) === 0) {
          // A frame pointer is followed by the caller's and then by the return address, whatever else there is.
          if (register === STACK_POINTER || baseOffset === 8) {
            if (this.#isReturnSlot(entry, base + at, register, baseOffset)) found |= Trait.ownReturn;
          }
        }
      }
      switch (flow) {
        case Flow.jump:
        case Flow.conditionalJump: {
          const target = branchTarget(bytes, at, end);
          if (target >= first && target < limit) {
            marks[target] |= Mark.landing | Mark.known;
            if (target === first || target === behindEndbr) found |= Trait.reentered;
          } else {
            this.#land(region, target, Mark.landing | Mark.known | Mark.foreign);
            this.#leave(region, index, at, end, target, flow === Flow.conditionalJump);
          }
          break;
        }
        case Flow.call:
          this.#land(region, branchTarget(bytes, at, end), CALL);
          break;
        case Flow.indirectJump:
          found |= Trait.indirect;
          this.indirect.push({ range: index, address: base + at, length: end - at });
          break;
        case Flow.leaRelative:
          if (common.displacement >= 0) this.#land(region, end + int32At(bytes, common.displacement), CALL);
          break;
      }
    }
    // A function that ends in a call has called one that does not return.
    if (last === Flow.next || last === Flow.leaRelative || last === Flow.conditionalJump)
      found |= Trait.fallsThrough;
    traits[index] |= found;
  }

  #isReturnSlot(entry: number, address: number, register: number, offset: number): boolean {
    const frame = this.unwind.frameAt(entry, address);
    const wanted = register === STACK_POINTER ? DWARF_RSP : register === FRAME_POINTER ? DWARF_RBP : -2;
    return frame.register === wanted && frame.offset - 8 === offset;
  }

  #land(region: CodeRegion, index: number, marks: number): void {
    if (index >= 0 && index < region.marks.length) region.marks[index] |= marks;
    else this.regions.mark(region.start + index, marks);
  }

  #leave(
    region: CodeRegion,
    range: number,
    at: number,
    end: number,
    target: number,
    isConditional: boolean,
  ): void {
    const { start } = region;
    this.leaving.push({ range, address: start + at, length: end - at, target: start + target, isConditional });
  }
}

const CALL = Mark.landing | Mark.known | Mark.foreign | Mark.called;

/** Short jumps (70-7F, E0-E3, EB) at every byte of a part: for bytes of which it is not known how they are decoded. */
function markShortJumps({ bytes, marks }: CodeRegion, from: number, to: number): void {
  for (let at = from; at + 1 < to; at++) {
    const opcode = bytes[at];
    if ((opcode & 0xf0) !== 0x70 && (opcode & 0xfc) !== 0xe0 && opcode !== 0xeb) continue;
    const target = at + 2 + ((bytes[at + 1] << 24) >> 24);
    if (target >= 0 && target < marks.length) marks[target] |= Mark.landing;
  }
}

/**
 * Marks every place that a near branch or a `lea` could lead to under whatever decoding: a 32-bit distance behind an opcode that
 * branches (E8, E9, 0F 80-8F, C7 F8) or takes an address (8D with a ModRM of rip), at every byte. It is a superset of all
 * branches, also of those in bytes that only look like data, and costs hardly any function. Where code stands at a fixed
 * address, 32-bit addresses behind opcodes that have such an operand are found too, and 64-bit ones wherever they stand.
 */
export function scanCode(regions: CodeRegions, isFixed: boolean): void {
  for (const region of regions.list) {
    scanDistances(regions, region);
    if (isFixed) scanAddresses(regions, region);
  }
}

function scanDistances(regions: CodeRegions, region: CodeRegion): void {
  const { bytes, marks, start } = region;
  const { length } = bytes;
  let before = 0;
  for (let at = 1; at + 4 <= length; at++) {
    const previous = before;
    before = bytes[at - 1];
    const leads =
      (before & 0xfe) === 0xe8 ||
      ((before & 0xf0) === 0x80 && previous === 0x0f) ||
      ((before & 0xc7) === 0x05 && previous === 0x8d) ||
      (before === 0xf8 && previous === 0xc7);
    if (!leads) continue;
    const target = at + 4 + int32At(bytes, at);
    if (target >= 0 && target < length) marks[target] |= Mark.landing;
    else if (regions.list.length > 1) regions.mark(start + target, Mark.landing);
  }
}

function scanAddresses(regions: CodeRegions, region: CodeRegion): void {
  const { bytes } = region;
  const first = regions.list[0].start;
  const last = regions.list[regions.list.length - 1].end;
  const span = last - first;
  if (first > 0xffff_ffff) return;
  let word = int32At(bytes, 0) << 8;
  for (let at = 0; at + 4 <= bytes.length; at++) {
    word = (word >>> 8) | (bytes[at + 3] << 24);
    const offset = (word >>> 0) - first;
    if (offset < 0 || offset >= span) continue;
    const isWord = at + 8 <= bytes.length && int32At(bytes, at + 4) === 0;
    if (isWord || takesAddress(bytes, at)) regions.mark(word >>> 0, Mark.landing | Mark.called);
  }
}

/** True if the 4 bytes at `at` may be an immediate, or a displacement of a `lea`. */
function takesAddress(bytes: Uint8Array, at: number): boolean {
  const opcode = bytes[at - 1];
  // mov r, imm; push imm; add, or, and, sub, cmp rax, imm.
  if ((opcode & 0xf8) === 0xb8 || opcode === 0x68 || (opcode & 0xc7) === 0x05) return true;
  // mov rm, imm and add, cmp ... rm, imm: ModRM, perhaps SIB, perhaps a displacement of 1 or 4 bytes.
  for (const behind of [2, 3, 4, 6, 7]) {
    const group = bytes[at - behind];
    if (group === 0xc7 || group === 0x81) return true;
  }
  // lea r, [index*scale + disp32], [base + disp32].
  return bytes[at - 2] === 0x8d || bytes[at - 3] === 0x8d;
}
