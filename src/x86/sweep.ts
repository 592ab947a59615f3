// One sweep over all code of a file: where each instruction begins, and where every direct branch goes.
import { ending } from '../errors/index.js';
import type { ElfFile, UnwindTable } from '../elf/index.js';
import { DWARF_RBP, DWARF_RSP } from '../elf/index.js';
import { CodeRanges, Trait } from './code-ranges.js';
import { Mark, type CodeArea, type CodeRegion, type CodeRegions } from './code-regions.js';
import { OTHER_BASE, STACK_POINTER, common } from './common-instructions.js';
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
export function sweep(
  elf: ElfFile,
  regions: CodeRegions,
  ranges: CodeRanges,
  unwind: UnwindTable,
  isFixed: boolean,
): Swept {
  const sweeper = new Sweeper(regions, ranges, unwind, isFixed);
  for (const area of regions.areas(elf)) sweeper.sweepArea(area);
  return sweeper;
}

class Sweeper implements Swept {
  readonly leaving: LeavingJump[] = [];
  readonly indirect: IndirectJump[] = [];
  /** Where an operand of 32 bits may be an address of code; nowhere: in files that are moved. */
  readonly #fixedFirst: number;
  readonly #fixedLast: number;

  constructor(
    private readonly regions: CodeRegions,
    private readonly ranges: CodeRanges,
    private readonly unwind: UnwindTable,
    isFixed: boolean,
  ) {
    const { first, last } = isFixed ? fixedSpan(regions) : { first: 0, last: 0 };
    this.#fixedFirst = first;
    this.#fixedLast = last;
  }

  sweepArea({ region, from, to }: CodeArea): void {
    const { starts, ends, count } = this.ranges;
    let at = from;
    let index = 0;
    while (index < count && ends[index] <= region.start + from) index++;
    for (; index < count && starts[index] < region.start + to; index++) {
      ending.lookAt(index);
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
    for (let at = from; at < to;) {
      decodeFlow(bytes, at, to);
      const { flow, end } = common;
      if (flow === Flow.invalid || end > to) {
        at++;
        continue;
      }
      marks[at] |= Mark.instruction;
      this.#markOperand(bytes, end);
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
    const hasFixed = this.#fixedLast > 0;
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
      if (end - at >= 5 && hasFixed) this.#markOperand(bytes, end);
      if (common.base !== OTHER_BASE && !common.isNop) {
        const { base: register, baseOffset } = common;
        if (baseOffset < 0) {
          if (register === STACK_POINTER) found |= Trait.redZone;
        } else if (entry >= 0 && (found & Trait.ownReturn) === 0) {
          // A frame pointer is followed by the caller's and then by the return address, whatever else there is.
          const frame = register === STACK_POINTER ? DWARF_RSP : DWARF_RBP;
          if (
            (register === STACK_POINTER || baseOffset === 8) &&
            this.unwind.isReturnSlot(entry, base + at, frame, baseOffset) &&
            // `lea r, [rsp]` makes a frame pointer, if that is what the table has from then on.
            (flow !== Flow.leaRelative || this.unwind.isReturnSlot(entry, base + end, frame, baseOffset))
          )
            found |= Trait.ownReturn;
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

  /** An address of 32 bits in the instruction decoded last: an immediate that is moved, pushed, added or compared, or `lea`'s displacement. */
  #markOperand(bytes: Uint8Array, end: number): void {
    const word = int32At(bytes, end - 4);
    if (word < this.#fixedFirst || word >= this.#fixedLast) return;
    const { modrm, displacement } = common;
    if (displacement >= 0 && displacement === end - 4) return;
    const opcode = modrm < 0 ? bytes[end - 5] : bytes[modrm - 1];
    const takes =
      modrm < 0
        ? (opcode & 0xf8) === 0xb8 || opcode === 0x68 || opcode === 0x05 || opcode === 0x2d || opcode === 0x3d
        : opcode === 0xc7 || opcode === 0x8d || (opcode === 0x81 && ADD_SUB_CMP.has((bytes[modrm] >> 3) & 7));
    if (takes) this.regions.mark(word, ADDRESS);
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
    this.leaving.push({
      range,
      address: start + at,
      length: end - at,
      target: start + target,
      isConditional,
    });
  }
}

/** Of opcode 81, as ModRM has them. */
const ADD_SUB_CMP: ReadonlySet<number> = new Set([0, 5, 7]);
/** An address that stands in code or in data. */
const ADDRESS = Mark.landing | Mark.called | Mark.foreign;
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
 * address, words of 64 bits that are such an address are found too, wherever they stand.
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

function scanAddresses(regions: CodeRegions, { bytes }: CodeRegion): void {
  const { first, last } = fixedSpan(regions);
  const highest = last >>> 24;
  for (let at = 0; at + 8 <= bytes.length; at++) {
    // Nearly all words are ruled out by their highest byte.
    if (bytes[at + 3] > highest || bytes[at + 4] !== 0) continue;
    const word = int32At(bytes, at);
    if (word < first || word >= last || int32At(bytes, at + 4) !== 0) continue;
    regions.mark(word, ADDRESS);
  }
}

/** Where code stands in a file that is not moved. Linkers' code models end at 2 GiB: nothing beyond is an address of 32 bits. */
function fixedSpan({ list }: CodeRegions): { first: number; last: number } {
  const first = list[0]?.start ?? 0;
  const last = list.at(-1)?.end ?? 0;
  return last > 0x7fff_ffff ? { first: 0, last: 0 } : { first, last };
}
