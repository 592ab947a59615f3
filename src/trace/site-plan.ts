// From selected functions to sites in a process: where, what stands there, what the stub must do in its place.
import type { HeadKind, StubSite } from '../agent/index.js';
import type { FunctionSymbol } from '../symbols/index.js';
import type { Module, TargetMemory } from '../target/index.js';
import {
  REFUSAL_EXPLANATIONS,
  SITE_LENGTH,
  analyseFunctions,
  emitSite,
  relocateSite,
  relocatedBound,
  type FunctionRange,
  type RefusalReason,
  type SiteCandidate,
  type SiteKind,
} from '../x86/index.js';
import type { ModuleFunctions, ModuleSelection } from './selection.js';
import { verdictStore } from './verdict-store.js';

/** Reasons that only a running process, or the whole of a module, gives; the others are RefusalReason. */
export type SessionRefusalReason =
  | RefusalReason
  | 'changed'
  | 'go-runtime'
  | 'handler-busy'
  | 'managed-code'
  | 'needs-hold'
  | 'thread-inside'
  | 'out-of-reach';

export const SESSION_REFUSALS: Readonly<Record<SessionRefusalReason, string>> = {
  ...REFUSAL_EXPLANATIONS,
  changed: 'its bytes in memory are not those of the file: somebody else has changed them',
  'go-runtime': 'the Go runtime moves stacks and reads return addresses, which must stay its own',
  'managed-code': 'it belongs to a virtual machine, whose stacks are not those of C',
  'handler-busy':
    'a signal handler that ran while the threads stood still did not end, and code must not be changed under it',
  'needs-hold':
    'it can only be changed while all threads are held (its site is more than one instruction, or its page cannot be flipped), which --way page-flip rules out',
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
  /** No thread can be within it: it may be changed while threads run. */
  readonly isOneInstruction: boolean;
  readonly stub: StubSite;
  /** Puts the `SITE_LENGTH` bytes that stand there, and will again, into `into` from index `at` on. */
  putOriginal(into: Uint8Array, at: number): void;
  /** Where the copy of the displaced instruction at an address is; undefined where no instruction begins. Once it is emitted. */
  movedTo(address: number): bigint | undefined;
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

const HOOKED = [...UNWINDER_ENTRIES, ...RETURN_ADDRESS_READERS];

/** V8's snapshot of compiled builtins, which is no C code: such symbols begin so. */
const V8_BUILTINS = 'Builtins_';

class Site implements PlannedSite, StubSite {
  readonly function: FunctionRange;
  readonly address: number;
  readonly bodyBytes: number;
  #body = 0;

  constructor(
    readonly module: Module,
    readonly kind: SiteKind | 'hook',
    readonly head: HeadKind,
    private readonly candidate: SiteCandidate,
    private readonly bias: number,
  ) {
    this.function = candidate.function;
    this.address = candidate.addressNumber + bias;
    this.bodyBytes = relocatedBound(candidate);
  }

  get displacedLength(): number {
    return this.candidate.displacedLength;
  }

  get isOneInstruction(): boolean {
    return this.candidate.displacedCount === 1;
  }

  get stub(): StubSite {
    return this;
  }

  putOriginal(into: Uint8Array, at: number): void {
    const { bytes } = this.module.elf();
    const { originalAt } = this.candidate;
    for (let i = 0; i < SITE_LENGTH; i++) into[at + i] = bytes[originalAt + i];
  }

  emitBody(address: number, into: Uint8Array, at: number): number {
    this.#body = address;
    return emitSite(this.candidate, address, this.bias, into, at);
  }

  movedTo(address: number): bigint | undefined {
    const body = BigInt(this.#body);
    const { boundaries } = relocateSite(this.candidate, body, BigInt(this.bias));
    const boundary = boundaries.find((b) => b.originalOffset === address - this.address);
    return boundary === undefined ? undefined : body + BigInt(boundary.newOffset);
  }
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
    const builtins = module.elf().mentions(V8_BUILTINS)
      ? functions.of(module).filter((f) => f.name.startsWith(V8_BUILTINS))
      : [];
    for (const { start, end } of module.text) {
      if (builtins.length === 0) {
        ranges.push({ start, end });
        continue;
      }
      const bias = Number(module.bias);
      const low = builtins[0].addressNumber + bias;
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
    let native = selected;
    if (module.elf().mentions(V8_BUILTINS)) {
      native = selected.filter((f) => !f.name.startsWith(V8_BUILTINS));
      for (const f of selected) if (f.name.startsWith(V8_BUILTINS)) refuse(f, 'managed-code');
    }
    const analysis = analyseFunctions<FunctionSymbol>(module.elf(), native, all, verdictStore());
    for (const { function: f, reason } of analysis.refusals) refuse(f, reason);
    const live = liveText(module, analysis.candidates, memory);
    const bias = Number(module.bias);
    for (const candidate of analysis.candidates) {
      if (live?.equals(candidate) === false) {
        refuse(candidate.function, 'changed');
        continue;
      }
      // Its return address must be what the caller pushed: its calls are recorded without an end.
      const head: HeadKind =
        entryOnly || candidate.usesOwnReturn
          ? 'leaf'
          : candidate.profilerCall?.frame === 'rbp'
            ? 'frame'
            : 'entry';
      sites.push(new Site(module, candidate.kind, head, candidate, bias));
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
    if (isGo(module) || !module.elf().mentions(...HOOKED)) continue;
    const all = functions.of(module);
    const entries = all.filter((f) => f.names.some((name) => HOOKED.includes(name)));
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
    const analysis = analyseFunctions(module.elf(), unnamed, all, verdictStore());
    const refuse = (f: FunctionRange, reason: SessionRefusalReason): void => {
      const entry = entries.find(({ address }) => address === f.address);
      if (entry?.names.some((name) => UNWINDER_ENTRIES.has(name)) === true)
        refused.push({ function: f, module, reason });
    };
    for (const { function: f, reason } of analysis.refusals) refuse(f, reason);
    const live = liveText(module, analysis.candidates, memory);
    for (const candidate of analysis.candidates) {
      if (live?.equals(candidate) === true)
        sites.push(new Site(module, 'hook', 'hook', candidate, Number(module.bias)));
      else refuse(candidate.function, 'changed');
    }
  }
  return { sites, refused };
}

/** The bytes that a process has where a module's code is. Between its mappings there may be holes. */
class LiveText {
  constructor(
    private readonly file: Uint8Array,
    private readonly bias: number,
    private readonly parts: readonly { readonly start: number; readonly bytes: Uint8Array }[],
  ) {}

  /** True if the process has, where the site is, what the file has. */
  equals({ addressNumber, originalAt, displacedLength }: SiteCandidate): boolean {
    const address = addressNumber + this.bias;
    for (const { start, bytes } of this.parts) {
      const offset = address - start;
      if (offset < 0 || offset >= bytes.length) continue;
      for (let i = 0; i < displacedLength; i++)
        if (bytes[offset + i] !== this.file[originalAt + i]) return false;
      return true;
    }
    return false;
  }
}

/** The bytes of the process that the candidates lie in; undefined without a process. */
function liveText(
  module: Module,
  candidates: readonly SiteCandidate[],
  memory: TargetMemory | undefined,
): LiveText | undefined {
  if (memory === undefined) return undefined;
  const bias = Number(module.bias);
  let low = Number.POSITIVE_INFINITY;
  let high = 0;
  for (const { addressNumber, displacedLength } of candidates) {
    low = Math.min(low, addressNumber + bias);
    high = Math.max(high, addressNumber + bias + displacedLength);
  }
  const parts = module.text
    .map(({ start, end }) => ({ start: Math.max(start, low), end: Math.min(end, high) }))
    .filter(({ start, end }) => start < end)
    .map(({ start, end }) => ({ start, bytes: memory.readSome(start, end - start) }));
  return new LiveText(module.elf().bytes, bias, parts);
}
