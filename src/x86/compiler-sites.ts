import { lowerBound, type ElfFile } from '../elf/index.js';
import { common } from './common-instructions.js';
import { LINKAGE_ENTRY_BYTES, describeDisplaced, endbrLength, linkageJump } from './displaced.js';
import { Flow } from './flow.js';
import { branchTarget, decodeFlow, int32At } from './instruction-flow.js';
import { SITE_LENGTH, type DisplacedInstruction, type FunctionRange, type ProfilerCall } from './sites.js';

/** A site that the compiler prepared: which bytes, as an offset from the function's address. */
export interface CompilerSite {
  readonly kind: 'patchable' | 'fentry' | 'call-site';
  readonly offset: number;
  readonly length: number;
  /** Number of instructions. */
  readonly count: number;
  /** Undefined: what stands there, nops. */
  readonly displaced: readonly DisplacedInstruction[] | undefined;
  readonly profilerCall: ProfilerCall | undefined;
}

/** Names of the profiler's hook at function entry (gcc -pg, and -pg -mfentry). */
const PROFILER_HOOKS: readonly string[] = ['mcount', '_mcount', '__fentry__'];
/** `call mcount` comes at the end of the prologue: pushes of saved registers, and room for locals. */
const LONGEST_PROLOGUE = 64;
/** First bytes of what a function with a profiler call begins with: call rel32, addr32 call, call *slot, push %rbp. */
const CALL_OR_PUSH_RBP: ReadonlySet<number> = new Set([0xe8, 0x67, 0xff, 0x55]);
/** More nops before an entry than anybody asks the compiler for. */
const MOST_NOPS = 4096;
/** What gcc -mnop-mcount writes: nopl 0x0(%rax,%rax,1). */
const FENTRY_NOP = [0x0f, 0x1f, 0x44, 0x00, 0x00] as const;

/** Finds what the compiler prepared in functions of one file. */
export class CompilerSites {
  readonly #elf: ElfFile;
  /** First patchable nop by the address of its function. */
  readonly #patchable: ReadonlyMap<number, number>;
  readonly #all: readonly FunctionRange[];
  /** False if nothing in the file can be a call of a profiler hook, as it has none of their names. */
  readonly #hasProfiler: boolean;
  readonly #indexAt: (address: number) => number;

  /** `all`: every function known of the file, ascending. */
  constructor(elf: ElfFile, all: readonly FunctionRange[]) {
    let starts: Float64Array | undefined;
    const indexAt = (address: number): number => {
      starts ??= Float64Array.from(all, (range) => range.addressNumber);
      return lowerBound(starts, address + 1) - 1;
    };
    this.#elf = elf;
    this.#patchable = patchableByFunction(elf, all, indexAt);
    this.#all = all;
    this.#hasProfiler = elf.mentions('mcount', '__fentry__');
    this.#indexAt = indexAt;
  }

  /** What is prepared in the function that begins at `start` in `bytes`; undefined if nothing, or nothing that can be used. */
  find(range: FunctionRange, bytes: Uint8Array, start: number): CompilerSite | undefined {
    const first = this.#patchable.get(range.addressNumber);
    const behindEndbr = endbrLength(bytes, start);
    if (first !== undefined) {
      // With nops before the entry too (=N,M) the recorded address is before the function.
      const offset = Math.max(first - range.addressNumber, 0);
      const site = nopSite(range, bytes, start, 'patchable', offset + endbrLength(bytes, start + offset));
      if (site !== undefined) return site;
    }
    if (isFentryNop(bytes, start + behindEndbr)) return nopSite(range, bytes, start, 'fentry', behindEndbr);
    if (!this.#hasProfiler) return undefined;
    return this.#profilerCall(range, bytes.subarray(start, start + range.size), behindEndbr);
  }

  /** The call of a profiler hook, if the instructions before it leave the return address where it is known to be. */
  #profilerCall(range: FunctionRange, bytes: Uint8Array, start: number): CompilerSite | undefined {
    const code = bytes.subarray(start, start + LONGEST_PROLOGUE);
    if (!CALL_OR_PUSH_RBP.has(code[0])) return undefined;
    let framePushed = false;
    let frameSet = false;
    for (let at = 0; at < code.length; at = common.end) {
      decodeFlow(code, at, code.length);
      const { flow, end } = common;
      if (flow === Flow.call || flow === Flow.indirectCall) {
        const call = this.#hookCalled(code, at, end, range.addressNumber + start, flow);
        const isFirst = at === 0;
        if (call === undefined || !(isFirst || frameSet)) return undefined;
        const length = end - at;
        return {
          kind: 'call-site',
          offset: start + at,
          length,
          count: 1,
          displaced: [
            {
              offset: 0,
              length,
              form: flow === Flow.call ? 'call' : 'indirect-call',
              fixOffset: length - 4,
              target: call.target ?? call.slot,
              endsFlow: false,
            },
          ],
          profilerCall: { ...call, frame: isFirst ? 'entry' : 'rbp' },
        };
      }
      if (flow !== Flow.next && flow !== Flow.leaRelative) return undefined;
      // The frame must be made first of all: a realigned stack has a copy of the return address above its frame.
      if (at === 0) framePushed = isBytes(code, at, end, [0x55]);
      else if (framePushed && !frameSet) {
        frameSet = isBytes(code, at, end, [0x48, 0x89, 0xe5]) || isBytes(code, at, end, [0x48, 0x8b, 0xec]);
      } else if (common.endsFrame) return undefined;
      if (!framePushed) return undefined;
    }
    return undefined;
  }

  /** The hook that a call reaches, directly, through the PLT, or through a slot of the GOT. */
  #hookCalled(
    code: Uint8Array,
    start: number,
    end: number,
    address: number,
    flow: Flow,
  ): Omit<ProfilerCall, 'frame'> | undefined {
    const length = end - start;
    if (flow === Flow.call) {
      // e8 rel32, or 67 e8 rel32 where the linker shortened an indirect call.
      if (length > SITE_LENGTH + 1) return undefined;
      const target = address + branchTarget(code, start, end);
      const symbol = this.#hookAt(target) ?? this.#importThroughPlt(target);
      return symbol === undefined ? undefined : { symbol, target: BigInt(target), slot: undefined };
    }
    // ff 15 disp32: call *slot(%rip).
    if (length !== 6 || code[start] !== 0xff || code[start + 1] !== 0x15) return undefined;
    const slot = BigInt(address + end + int32At(code, end - 4));
    const symbol = this.#elf.importAt(slot) ?? this.#hookInSlot(slot);
    if (symbol === undefined || !PROFILER_HOOKS.includes(symbol)) return undefined;
    return { symbol, target: undefined, slot };
  }

  #hookInSlot(slot: bigint): string | undefined {
    const target = this.#elf.pointerAt(slot);
    return target === undefined ? undefined : this.#hookAt(Number(target));
  }

  #hookAt(address: number): string | undefined {
    const index = this.#indexAt(address);
    if (index < 0 || this.#all[index].addressNumber !== address) return undefined;
    return this.#all[index].names.find((name) => PROFILER_HOOKS.includes(name));
  }

  #importThroughPlt(target: number): string | undefined {
    const stub = this.#elf.bytesAt(BigInt(target), LINKAGE_ENTRY_BYTES);
    const at = stub === undefined ? -1 : linkageJump(stub, 0);
    if (stub === undefined || at < 0) return undefined;
    const name = this.#elf.importAt(BigInt(target + at + 6 + int32At(stub, at + 2)));
    return name !== undefined && PROFILER_HOOKS.includes(name) ? name : undefined;
  }
}

function isBytes(code: Uint8Array, start: number, end: number, bytes: readonly number[]): boolean {
  return end - start === bytes.length && bytes.every((byte, i) => code[start + i] === byte);
}

function isFentryNop(bytes: Uint8Array, at: number): boolean {
  return bytes[at] === FENTRY_NOP[0] && FENTRY_NOP.every((byte, i) => bytes[at + i] === byte);
}

/** A site over nops only, at `offset` in the function at `start`; undefined if there are not enough of them. */
function nopSite(
  range: FunctionRange,
  bytes: Uint8Array,
  start: number,
  kind: 'patchable' | 'fentry',
  offset: number,
): CompilerSite | undefined {
  const base = range.addressNumber - start;
  const displaced = describeDisplaced(bytes, start + offset, base, start + range.size);
  if (typeof displaced === 'string' || displaced.some(({ form }) => form !== 'nop')) return undefined;
  const last = displaced[displaced.length - 1];
  return {
    kind,
    offset,
    length: last.offset + last.length,
    count: displaced.length,
    displaced: undefined,
    profilerCall: undefined,
  };
}

/**
 * A recorded address lies in its function or, with nops before the entry (`=N,M`), before it with nothing but nops
 * between. The latter is looked for first: the function before it may have no size and seem to reach up to here.
 */
function patchableByFunction(
  elf: ElfFile,
  all: readonly FunctionRange[],
  indexAt: (address: number) => number,
): Map<number, number> {
  const found = new Map<number, number>();
  for (const entry of elf.patchableEntries) {
    const address = Number(entry);
    const index = indexAt(address);
    const before = index < 0 ? undefined : all[index];
    const next = index + 1 < all.length ? all[index + 1] : undefined;
    const isAtEntry = before?.addressNumber === address;
    if (!isAtEntry && next !== undefined && isNopsOnly(elf, address, next.addressNumber)) {
      found.set(next.addressNumber, address);
    } else if (before !== undefined) {
      found.set(before.addressNumber, address);
    }
  }
  return found;
}

function isNopsOnly(elf: ElfFile, from: number, to: number): boolean {
  const bytes = elf.bytesAt(BigInt(from), Math.min(to - from, MOST_NOPS));
  if (bytes === undefined || to - from > MOST_NOPS) return false;
  for (let at = 0; at < bytes.length; at = common.end) {
    decodeFlow(bytes, at, bytes.length);
    if (!common.isNop) return false;
  }
  return true;
}
