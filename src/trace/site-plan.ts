// From selected functions to sites in a process: where, what stands there, what the stub must do in its place.
import type { HeadKind, StubSite } from '../agent/index.js';
import type { FunctionSymbol } from '../symbols/index.js';
import type { Module, TargetMemory } from '../target/index.js';
import {
  REFUSAL_EXPLANATIONS,
  SITE_LENGTH,
  analyseFunctions,
  relocateSite,
  type FunctionRange,
  type RefusalReason,
  type RelocatedCode,
  type SiteCandidate,
  type SiteKind,
} from '../x86/index.js';
import type { ModuleFunctions, ModuleSelection } from './selection.js';

/** Reasons that only a running process, or the whole of a module, gives; the others are RefusalReason. */
export type SessionRefusalReason =
  RefusalReason | 'changed' | 'go-runtime' | 'managed-code' | 'thread-inside' | 'out-of-reach';

export const SESSION_REFUSALS: Readonly<Record<SessionRefusalReason, string>> = {
  ...REFUSAL_EXPLANATIONS,
  changed: 'its bytes in memory are not those of the file: somebody else has changed them',
  'go-runtime': 'the Go runtime moves stacks and reads return addresses, which must stay its own',
  'managed-code': 'it belongs to a virtual machine, whose stacks are not those of C',
  'thread-inside': 'a signal handler will return into its first instructions',
  'out-of-reach': 'its first instructions refer to something that cannot be reached from a stub',
};

/** A function that is not traced, and why. */
export interface RefusedFunction {
  readonly function: FunctionRange;
  readonly module: Module;
  readonly reason: SessionRefusalReason;
}

/** One site in a process. */
export interface PlannedSite {
  readonly function: FunctionRange;
  readonly module: Module;
  readonly kind: SiteKind | 'hook';
  readonly head: HeadKind;
  /** Address in the process. */
  readonly address: number;
  readonly displacedLength: number;
  /** The SITE_LENGTH bytes that stand there and will again. */
  readonly original: Uint8Array;
  readonly stub: StubSite;
  /** Where the stub's body came to lie, and how the displaced instructions map into it; known once it is emitted. */
  readonly placed: { address: bigint; code: RelocatedCode } | undefined;
}

/** Functions of libgcc (and LLVM's libunwind) in which a walk over the stack begins. */
const UNWINDER_ENTRIES: ReadonlySet<string> = new Set([
  '_Unwind_RaiseException',
  '_Unwind_Resume',
  '_Unwind_Resume_or_Rethrow',
  '_Unwind_ForcedUnwind',
  '_Unwind_Backtrace',
]);

/**
 * Functions of the C library that look at return addresses themselves, or (__libc_unwind_link_get, glibc's) are about to use
 * an unwinder that they may just have loaded, which has no hooks then. Where one cannot be hooked, all others still work.
 */
const RETURN_ADDRESS_READERS: ReadonlySet<string> = new Set([
  '__libc_unwind_link_get',
  'dlopen',
  'dlmopen',
  'dlsym',
  'dlvsym',
]);

/** V8's snapshot of compiled builtins, which is no C code: such symbols begin so. */
const V8_BUILTINS = 'Builtins_';

/** Most bytes that the body of a site can need: displaced instructions, each perhaps grown by a long branch, and a jump. */
function bodyBound(candidate: SiteCandidate): number {
  const GROWN_INSTRUCTION = 20;
  const JUMP_BACK = 16;
  return candidate.displacedLength + candidate.displaced.length * GROWN_INSTRUCTION + JUMP_BACK;
}

class Site implements PlannedSite {
  placed: { address: bigint; code: RelocatedCode } | undefined;
  readonly stub: StubSite;
  readonly address: number;
  readonly original: Uint8Array;

  constructor(
    readonly module: Module,
    readonly kind: SiteKind | 'hook',
    readonly head: HeadKind,
    candidate: SiteCandidate,
  ) {
    this.function = candidate.function;
    this.address = Number(candidate.address + module.bias);
    this.displacedLength = candidate.displacedLength;
    this.original = candidate.original.slice(0, SITE_LENGTH);
    this.stub = {
      head,
      bodyBytes: bodyBound(candidate),
      body: (address) => {
        const code = relocateSite(candidate, address, module.bias);
        this.placed = { address, code };
        return code.bytes;
      },
    };
  }

  readonly function: FunctionRange;
  readonly displacedLength: number;
}

function isGo(module: Module): boolean {
  return module.elf().sections.some((s) => s.name === '.go.buildinfo' || s.name === '.gopclntab');
}

/** Code within which return addresses may be swapped: all that lies in files, but for what virtual machines keep there. */
export function trustedRanges(
  modules: readonly Module[],
  functions: ModuleFunctions,
): { start: number; end: number }[] {
  const ranges: { start: number; end: number }[] = [];
  for (const module of modules) {
    if (isGo(module)) continue;
    const builtins = functions.of(module).filter((f) => f.name.startsWith(V8_BUILTINS));
    for (const { start, end } of module.text) {
      if (builtins.length === 0) {
        ranges.push({ start, end });
        continue;
      }
      const bias = Number(module.bias);
      const low = Math.min(...[builtins[0].addressNumber + bias]);
      const last = builtins[builtins.length - 1];
      const high = last.addressNumber + last.size + bias;
      if (low > start) ranges.push({ start, end: Math.min(low, end) });
      if (high < end) ranges.push({ start: Math.max(high, start), end });
    }
  }
  return ranges;
}

/** What to trace in a process. */
export interface SitePlan {
  readonly sites: readonly PlannedSite[];
  readonly refused: readonly RefusedFunction[];
}

/** Decides on every selected function. Reads the process, changes nothing. */
export function planSites(
  selections: readonly ModuleSelection[],
  memory: TargetMemory | undefined,
  entryOnly: boolean,
): SitePlan {
  const sites: PlannedSite[] = [];
  const refused: RefusedFunction[] = [];
  for (const { module, all, selected } of selections) {
    const refuse = (f: FunctionRange, reason: SessionRefusalReason): void => {
      refused.push({ function: f, module, reason });
    };
    if (isGo(module)) {
      for (const f of selected) refuse(f, 'go-runtime');
      continue;
    }
    const native = selected.filter((f) => !f.name.startsWith(V8_BUILTINS));
    for (const f of selected) if (f.name.startsWith(V8_BUILTINS)) refuse(f, 'managed-code');
    const analysis = analyseFunctions<FunctionSymbol>(module.elf(), native, all);
    for (const { function: f, reason } of analysis.refusals) refuse(f, reason);
    const live = liveText(module, analysis.candidates, memory);
    for (const candidate of analysis.candidates) {
      const at = Number(candidate.address + module.bias);
      if (live !== undefined && !live.equals(at, candidate.original)) {
        refuse(candidate.function, 'changed');
        continue;
      }
      const head: HeadKind = entryOnly ? 'leaf' : candidate.profilerCall?.frame === 'rbp' ? 'frame' : 'entry';
      sites.push(new Site(module, candidate.kind, head, candidate));
    }
  }
  return { sites, refused };
}

/** Sites at which true return addresses are put back before an unwinder walks the stack, in whatever module it is. */
export function planHooks(
  modules: readonly Module[],
  functions: ModuleFunctions,
  memory: TargetMemory,
): SitePlan {
  const sites: PlannedSite[] = [];
  const refused: RefusedFunction[] = [];
  for (const module of modules) {
    if (isGo(module)) continue;
    const all = functions.of(module);
    const entries = all.filter((f) =>
      f.names.some((name) => UNWINDER_ENTRIES.has(name) || RETURN_ADDRESS_READERS.has(name)),
    );
    if (entries.length === 0) continue;
    // The analysis refuses unwinders by their names; here they are wanted, for what they are.
    const unnamed = entries.map((f) => ({
      name: `hook ${f.name}`,
      names: [],
      address: f.address,
      addressNumber: f.addressNumber,
      size: f.size,
      kind: f.kind,
    }));
    const analysis = analyseFunctions(module.elf(), unnamed, all);
    const refuse = (f: FunctionRange, reason: SessionRefusalReason): void => {
      const entry = entries.find(({ address }) => address === f.address);
      if (entry?.names.some((name) => UNWINDER_ENTRIES.has(name)) === true)
        refused.push({ function: f, module, reason });
    };
    for (const { function: f, reason } of analysis.refusals) refuse(f, reason);
    const live = liveText(module, analysis.candidates, memory);
    for (const candidate of analysis.candidates) {
      const at = Number(candidate.address + module.bias);
      if (live?.equals(at, candidate.original) === true)
        sites.push(new Site(module, 'hook', 'hook', candidate));
      else refuse(candidate.function, 'changed');
    }
  }
  return { sites, refused };
}

/** The bytes that a process has where a module's code is. Between its mappings there may be holes. */
class LiveText {
  constructor(private readonly parts: readonly { readonly start: number; readonly bytes: Uint8Array }[]) {}

  equals(address: number, expected: Uint8Array): boolean {
    const part = this.parts.find(({ start, bytes }) => address >= start && address < start + bytes.length);
    if (part === undefined || address + expected.length > part.start + part.bytes.length) return false;
    const offset = address - part.start;
    for (let i = 0; i < expected.length; i++) if (part.bytes[offset + i] !== expected[i]) return false;
    return true;
  }
}

/** The bytes of the process that the candidates lie in; undefined without a process. */
function liveText(
  module: Module,
  candidates: readonly SiteCandidate[],
  memory: TargetMemory | undefined,
): LiveText | undefined {
  if (memory === undefined) return undefined;
  let low = Number.POSITIVE_INFINITY;
  let high = 0;
  for (const candidate of candidates) {
    const at = Number(candidate.address + module.bias);
    low = Math.min(low, at);
    high = Math.max(high, at + candidate.original.length);
  }
  const parts = module.text
    .map(({ start, end }) => ({ start: Math.max(start, low), end: Math.min(end, high) }))
    .filter(({ start, end }) => start < end)
    .map(({ start, end }) => ({ start, bytes: memory.readSome(start, end - start) }));
  return new LiveText(parts);
}
