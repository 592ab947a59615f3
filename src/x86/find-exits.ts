// Where functions are left, and how much can be written there. A first, cautious answer: `ret` with padding behind it, or with instructions
// before it that are no branch and no call; the same for jumps to other functions.
import type { ElfFile } from '../elf/index.js';
import type { CodeMap } from './code-map.js';
import { common } from './common-instructions.js';
import { describeRun } from './displaced.js';
import type { ExitKind, ExitMark, ExitRefusal, ExitWindow, FunctionExits } from './exit-sites.js';
import { Flow } from './flow.js';
import { branchTarget, decodeFlow, isPrefix } from './instruction-flow.js';
import { SITE_LENGTH, type FunctionRange, type SiteCandidate } from './sites.js';

const RET = 0xc3;
const RET_IMM16 = 0xc2;
const INT3 = 0xcc;
const JMP_INDIRECT = 0xff;
/** ModRM of `jmp *disp32(%rip)`. */
const RIP_RELATIVE_JMP = 0x25;
const SYSCALL = [0x0f, 0x05] as const;
const JCC_LONG_LENGTH = 6;

/** The instructions of a function and its fragments, by their offsets in the file. */
interface Part {
  readonly first: number;
  readonly limit: number;
  /** What an index into the file lacks to be an address. */
  readonly base: number;
}

/** Finds where functions of one file are left. */
export class ExitFinder {
  readonly #elf: ElfFile;
  readonly #map: CodeMap;

  /** `map` has swept all functions that count. */
  constructor(elf: ElfFile, map: CodeMap) {
    this.#elf = elf;
    this.#map = map;
  }

  /** All exits of a function whose site at the entry is known; `parts` are its range and its fragments. */
  find(candidate: SiteCandidate, parts: readonly FunctionRange[]): FunctionExits | ExitRefusal {
    const entryExits: ExitMark[] = [];
    const windows: ExitWindow[] = [];
    const entryEnd = candidate.originalAt + candidate.displacedLength;
    for (const { addressNumber, size } of parts) {
      const first = this.#elf.codeOffset(addressNumber, size);
      if (first < 0) return 'falls-through';
      const part = { first, limit: first + size, base: addressNumber - first };
      const isMain = candidate.originalAt >= first && candidate.originalAt < part.limit;
      const refusal = this.#findIn(part, parts, windows, isMain ? entryEnd : first, (at, kind) => {
        if (!isMain || at < candidate.originalAt || at >= entryEnd) return false;
        const index = candidate.displaced.findIndex(({ offset }) => candidate.originalAt + offset === at);
        if (index >= 0) entryExits.push({ index, kind });
        return index >= 0;
      });
      if (refusal !== undefined) return refusal;
    }
    return { entryExits, windows };
  }

  #findIn(
    part: Part,
    parts: readonly FunctionRange[],
    windows: ExitWindow[],
    lowest: number,
    isInEntry: (at: number, kind: ExitKind) => boolean,
  ): ExitRefusal | undefined {
    const { bytes } = this.#elf;
    const { first, limit, base } = part;
    // Starts of what may be displaced before an exit: the instructions since the last branch, call or window.
    let run: number[] = [];
    let low = lowest;
    let lastFlow: Flow = Flow.next;
    let isLastPadding = false;
    for (let start = first, end = first; start < limit; start = end) {
      decodeFlow(bytes, start, limit);
      const { flow, isNop } = common;
      end = common.end;
      if (flow === Flow.invalid) return 'falls-through';
      if (!isNop) lastFlow = flow;
      isLastPadding = isNop;
      const kind = this.#exitAt(start, end, flow, base, parts);
      if (kind === 'odd') return 'computed-jump';
      if (kind === undefined) {
        const mayBeDisplaced = flow === Flow.next || flow === Flow.leaRelative;
        if (!mayBeDisplaced || isSystemCall(bytes, start)) run = [];
        else if (start >= low) run.push(start);
        continue;
      }
      if (isInEntry(start, kind)) continue;
      if (start < low) return 'no-room';
      const window = this.#window(part, run, start, end, flow, kind);
      if (typeof window === 'string') return window;
      windows.push(window);
      low = window.originalAt + Math.max(window.displacedLength, SITE_LENGTH);
      if (window.form === 'branch') low = end;
      run = [];
    }
    const ends = lastFlow === Flow.end || lastFlow === Flow.jump || lastFlow === Flow.indirectJump;
    // A call at the end does not come back.
    return ends || lastFlow === Flow.call || (isLastPadding && lastFlow !== Flow.next)
      ? undefined
      : 'falls-through';
  }

  /** How the instruction leaves the function; undefined: not at all; `odd`: perhaps. */
  #exitAt(
    start: number,
    end: number,
    flow: Flow,
    base: number,
    parts: readonly FunctionRange[],
  ): ExitKind | 'odd' | undefined {
    const { bytes } = this.#elf;
    if (flow === Flow.end) {
      let at = start;
      while (isPrefix(bytes[at])) at++;
      return bytes[at] === RET || bytes[at] === RET_IMM16 ? 'return' : undefined;
    }
    if (flow === Flow.indirectJump) {
      let at = start;
      while (isPrefix(bytes[at])) at++;
      return bytes[at] === JMP_INDIRECT && bytes[at + 1] === RIP_RELATIVE_JMP ? 'tail' : 'odd';
    }
    if (flow !== Flow.jump && flow !== Flow.conditionalJump) return undefined;
    const target = base + branchTarget(bytes, start, end);
    for (const { addressNumber, size } of parts)
      if (target >= addressNumber && target < addressNumber + size) return undefined;
    return this.#map.isEntry(target) ? 'tail' : 'odd';
  }

  #window(
    { limit, base }: Part,
    run: readonly number[],
    start: number,
    end: number,
    flow: Flow,
    kind: ExitKind,
  ): ExitWindow | ExitRefusal {
    if (flow === Flow.conditionalJump && end - start === JCC_LONG_LENGTH)
      return this.#made('branch', start, end, end, base, kind);
    const paddingEnd = flow === Flow.conditionalJump ? end : this.#paddingEnd(end, limit, base);
    for (let back = run.length; back >= 0; back--) {
      const from = back === run.length ? start : run[back];
      if (paddingEnd - from < SITE_LENGTH) continue;
      // Strictly within what is overwritten, and up to the exit itself.
      const to = Math.max(start + 1, from + SITE_LENGTH);
      if (this.#map.leadsInto(base + from + 1, base + to)) return 'landing';
      return this.#made('jump', from, end, Math.max(end, from + SITE_LENGTH), base, kind);
    }
    return 'no-room';
  }

  #made(
    form: ExitWindow['form'],
    from: number,
    end: number,
    behind: number,
    base: number,
    kind: ExitKind,
  ): ExitWindow | ExitRefusal {
    const displaced = describeRun(this.#elf.bytes, from, end, base);
    if (typeof displaced === 'string') return 'no-room';
    return {
      addressNumber: base + from,
      originalAt: from,
      form,
      hole: undefined,
      displacedLength: behind - from,
      displaced,
      exits: [{ index: displaced.length - 1, kind }],
    };
  }

  /** Where the filling behind an exit ends, which nobody executes; within reach. */
  #paddingEnd(at: number, limit: number, base: number): number {
    const { bytes } = this.#elf;
    let end = at;
    while (end < at + SITE_LENGTH) {
      if (this.#map.leadsInto(base + end, base + end + 1)) return end;
      if (this.#map.functionStartsWithin(base + end, base + end + 1)) return end;
      if (this.#elf.codeOffset(base + end, 1) < 0) return end;
      if (bytes[end] === INT3) end++;
      else {
        decodeFlow(bytes, end, Math.max(limit, end + 16));
        if (!common.isNop || this.#map.leadsInto(base + end, base + common.end)) return end;
        end = common.end;
      }
    }
    return end;
  }
}

function isSystemCall(bytes: Uint8Array, at: number): boolean {
  return bytes[at] === SYSCALL[0] && bytes[at + 1] === SYSCALL[1];
}
