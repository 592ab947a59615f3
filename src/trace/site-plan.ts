// From selected functions to sites in a process: where, what stands there, what the stub must do in its place.
import type { StubSite } from '../agent/index.js';
import type { FunctionSymbol } from '../symbols/index.js';
import type { Module, TargetMemory } from '../target/index.js';
import {
  REFUSAL_EXPLANATIONS,
  SITE_LENGTH,
  analyseFunctions,
  emitSite,
  relocatedBound,
  stubShift,
  type DisplacedCode,
  type ExitMark,
  type ExitWindow,
  type FunctionExits,
  type FunctionRange,
  type Recording,
  type RefusalReason,
  type SiteCandidate,
  type SiteKind,
} from '../x86/index.js';
import type { ModuleSelection } from './selection.js';
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
  'go-runtime': 'the Go runtime moves stacks, by which calls could not be told apart',
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

/** A function that is traced. */
export interface PlannedFunction {
  readonly function: FunctionRange;
  readonly module: Module;
  readonly kind: SiteKind;
  /** All places where it is left are sites; else it is traced by its entry only. */
  readonly hasExits: boolean;
  /** Its index in records, once functions are arranged. */
  index: number;
}

/** One site in a process. */
export interface PlannedSite {
  readonly owner: PlannedFunction;
  /** Calls of its function begin here, or end only. */
  readonly isEntry: boolean;
  /** Address in the process of the `SITE_LENGTH` bytes that are changed. */
  readonly address: number;
  /** No thread may go on strictly within so many bytes. */
  readonly displacedLength: number;
  /** No thread can be within it: it may be changed while threads run. */
  readonly isOneInstruction: boolean;
  readonly stub: StubSite;
  /** Puts the `SITE_LENGTH` bytes that stand there, and will again, into `into` from index `at` on. */
  putOriginal(into: Uint8Array, at: number): void;
  /** The same of those that lead to the stub. */
  putWanted(into: Uint8Array, at: number, stub: number): void;
  /** Where the copy of the displaced instruction at an address is; undefined where no instruction begins. Once it is emitted. */
  movedTo(address: number): bigint | undefined;
}

/** V8's snapshot of compiled builtins, which is no C code: such symbols begin so. */
const V8_BUILTINS = 'Builtins_';

const JMP_REL32 = 0xe9;
/** Bytes of `0F 8x` before the distance, and of the first of them, which stays. */
const JCC_FIRST_BYTE = 1;

/** A site whose stub executes what it displaces. */
class Site implements PlannedSite, StubSite {
  readonly address: number;
  readonly stubBytes: number;
  readonly stubShift: number;
  readonly displacedLength: number;
  readonly isEntry: boolean;
  #stub = 0;

  constructor(
    readonly owner: PlannedFunction,
    private readonly code: DisplacedCode & { readonly originalAt: number },
    private readonly begins: Recording['begins'],
    private readonly exits: readonly ExitMark[],
    private readonly bias: number,
    private readonly depth = 0,
  ) {
    this.address = code.addressNumber + bias;
    this.displacedLength = code.displacedLength;
    this.isEntry = begins !== undefined;
    this.stubShift = this.isEntry ? 0 : stubShift(code.displaced, exits);
    this.stubBytes = this.stubShift + relocatedBound(code, exits, exits.length + (this.isEntry ? 1 : 0));
  }

  get functionIndex(): number {
    return this.owner.index;
  }

  get isOneInstruction(): boolean {
    return this.code.displacedCount === 1;
  }

  get stub(): StubSite {
    return this;
  }

  putOriginal(into: Uint8Array, at: number): void {
    const { bytes } = this.owner.module.elf();
    const { originalAt } = this.code;
    for (let i = 0; i < SITE_LENGTH; i++) into[at + i] = bytes[originalAt + i];
  }

  putWanted(into: Uint8Array, at: number, stub: number): void {
    putBranch(into, at, JMP_REL32, stub - (this.address + SITE_LENGTH));
  }

  emitStub(address: number, into: Uint8Array, at: number, call: Recording['call']): number {
    this.#stub = address;
    const { code, bias, begins, depth, exits } = this;
    return emitSite(code, address, bias, into, at, undefined, { begins, depth, exits, call });
  }

  movedTo(address: number): bigint | undefined {
    const boundaries: { originalOffset: number; newOffset: number }[] = [];
    const { code, bias, begins, depth, exits } = this;
    const recording = { begins, depth, exits, call: (at: number) => at };
    emitSite(code, this.#stub, bias, new Uint8Array(this.stubBytes), 0, boundaries, recording);
    const boundary = boundaries.find((b) => b.originalOffset === address - this.address);
    return boundary === undefined ? undefined : BigInt(this.#stub + boundary.newOffset);
  }
}

/** A conditional jump out of a function, of which the distance is changed: it leads to the stub, which records and goes on to the target. */
class BranchSite implements PlannedSite, StubSite {
  readonly isEntry = false;
  readonly isOneInstruction = true;
  readonly displacedLength = SITE_LENGTH;
  readonly stubBytes: number;
  readonly stubShift = 0;
  readonly address: number;

  constructor(
    readonly owner: PlannedFunction,
    private readonly window: ExitWindow,
    private readonly bias: number,
  ) {
    this.address = window.addressNumber + JCC_FIRST_BYTE + bias;
    this.stubBytes = relocatedBound({ displacedLength: SITE_LENGTH, displacedCount: 1 }, window.exits);
  }

  get functionIndex(): number {
    return this.owner.index;
  }

  get stub(): StubSite {
    return this;
  }

  putOriginal(into: Uint8Array, at: number): void {
    const { bytes } = this.owner.module.elf();
    for (let i = 0; i < SITE_LENGTH; i++) into[at + i] = bytes[this.window.originalAt + JCC_FIRST_BYTE + i];
  }

  putWanted(into: Uint8Array, at: number, stub: number): void {
    const { bytes } = this.owner.module.elf();
    const opcode = bytes[this.window.originalAt + JCC_FIRST_BYTE];
    putBranch(into, at, opcode, stub - (this.address + SITE_LENGTH));
  }

  emitStub(address: number, into: Uint8Array, at: number, call: Recording['call']): number {
    const { displaced } = this.window;
    // As if an unconditional jump to the same place were displaced.
    const jump = { ...displaced[0], endsFlow: true };
    const original = Uint8Array.of(JMP_REL32);
    const code = {
      ...this.window,
      displaced: [jump],
      original,
      function: this.owner.function,
      displacedCount: 1,
    };
    const recording = { begins: undefined, exits: this.window.exits, call };
    return emitSite(code, address, this.bias, into, at, undefined, recording);
  }

  movedTo(): undefined {
    return undefined;
  }
}

function putBranch(into: Uint8Array, at: number, opcode: number, distance: number): void {
  into[at] = opcode;
  for (let i = 1; i < SITE_LENGTH; i++) into[at + i] = (distance >> (8 * (i - 1))) & 0xff;
}

function isGo(module: Module): boolean {
  return module.elf().sections.some((s) => s.name === '.go.buildinfo' || s.name === '.gopclntab');
}

/** What to trace in a process. */
export interface SitePlan {
  readonly functions: readonly PlannedFunction[];
  readonly sites: readonly PlannedSite[];
  readonly refused: readonly RefusedFunction[];
}

/** A function as it may be traced. */
interface Possible {
  readonly candidate: SiteCandidate<FunctionSymbol>;
  readonly entry: FunctionExits['entry'];
  readonly entryExits: readonly ExitMark[];
  readonly windows: readonly ExitWindow[];
  hasExits: boolean;
}

/** Decides on every selected function. Reads the process, changes nothing. `withSites`: else what is wanted is to know of functions alone. */
export function planSites(
  selections: readonly ModuleSelection[],
  memory: TargetMemory | undefined,
  withExits: boolean,
  withSites = true,
): SitePlan {
  const functions: PlannedFunction[] = [];
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
    const analysis = analyseFunctions<FunctionSymbol>(module.elf(), native, all, verdictStore(), withExits);
    for (const { function: f, reason } of analysis.refusals) refuse(f, reason);
    const windowsOf = (i: number): readonly ExitWindow[] => {
      const exits = analysis.exits.at(i);
      return exits === undefined || typeof exits === 'string' ? [] : exits.windows;
    };
    const live =
      memory === undefined
        ? undefined
        : liveText(
            module,
            analysis.candidates.flatMap((candidate, i) => [candidate, ...windowsOf(i)]),
            memory,
          );
    const possible: Possible[] = [];
    analysis.candidates.forEach((candidate, i) => {
      if (live?.equals(candidate) === false) {
        refuse(candidate.function, 'changed');
        return;
      }
      const exits = analysis.exits.at(i);
      const hasExits =
        exits !== undefined &&
        typeof exits !== 'string' &&
        exits.windows.every((window) => live?.equals(window) !== false);
      possible.push({
        candidate,
        entry: hasExits ? exits.entry : undefined,
        entryExits: hasExits ? exits.entryExits : [],
        windows: hasExits ? exits.windows : [],
        hasExits,
      });
    });
    keepApart(possible);
    const bias = Number(module.bias);
    for (const { candidate, entry, entryExits, windows, hasExits } of possible) {
      const { function: f, kind, profilerCall, depth } = candidate;
      const owner: PlannedFunction = { function: f, module, kind, hasExits, index: 0 };
      functions.push(owner);
      if (!withSites) continue;
      const isFrame = profilerCall?.frame === 'rbp';
      const begins = !hasExits ? 'leaf' : isFrame ? 'frame' : 'entry';
      const code = hasExits && entry !== undefined ? new WindowCode(entry, candidate, f, module) : candidate;
      sites.push(new Site(owner, code, begins, hasExits ? entryExits : [], bias, depth));
      if (!hasExits) continue;
      for (const window of windows) {
        if (window.form === 'branch') sites.push(new BranchSite(owner, window, bias));
        else
          sites.push(
            new Site(owner, new WindowCode(window, window, f, module), undefined, window.exits, bias),
          );
      }
    }
  }
  return { functions, sites, refused };
}

/** What a window displaces. It is found in the file when it is asked for: there may be 10^6 of them. */
class WindowCode implements DisplacedCode {
  readonly function: FunctionRange;

  constructor(
    private readonly window: Pick<ExitWindow, 'displaced' | 'displacedCount' | 'displacedLength'>,
    private readonly place: Pick<ExitWindow, 'addressNumber' | 'originalAt'>,
    range: FunctionRange,
    private readonly module: Module,
  ) {
    this.function = range;
  }

  get addressNumber(): number {
    return this.place.addressNumber;
  }

  get originalAt(): number {
    return this.place.originalAt;
  }

  get displacedLength(): number {
    return this.window.displacedLength;
  }

  get displacedCount(): number {
    return this.window.displacedCount;
  }

  get displaced(): DisplacedCode['displaced'] {
    return this.window.displaced;
  }

  get original(): Uint8Array {
    const { originalAt, displacedLength } = this;
    return this.module.elf().bytes.subarray(originalAt, originalAt + displacedLength);
  }
}

/** No two sites share a byte: where one of an exit does, its function is traced by its entry only. */
function keepApart(possible: readonly Possible[]): void {
  for (let isSettled = false; !isSettled;) {
    isSettled = true;
    // Functions have an entry each, and windows behind it: there may be 10^6.
    const starts: number[] = [];
    const ends: number[] = [];
    const owners: number[] = [];
    const areEntries: boolean[] = [];
    const take = (start: number, length: number, owner: number, isEntry: boolean): void => {
      starts.push(start);
      ends.push(start + length);
      owners.push(owner);
      areEntries.push(isEntry);
    };
    possible.forEach(({ candidate, entry, windows, hasExits }, i) => {
      const longer = hasExits ? entry?.displacedLength : undefined;
      take(candidate.addressNumber, longer ?? candidate.displacedLength, i, true);
      if (!hasExits) return;
      for (const { addressNumber, displacedLength } of windows)
        take(addressNumber, Math.max(SITE_LENGTH, displacedLength), i, false);
    });
    const order = Uint32Array.from(starts.keys()).sort((a, b) => starts[a] - starts[b]);
    let last = -1;
    for (const one of order) {
      if (last >= 0 && starts[one] < ends[last]) {
        for (const overlapping of [last, one]) {
          const of = possible[owners[overlapping]];
          if (areEntries[overlapping] || !of.hasExits) continue;
          of.hasExits = false;
          isSettled = false;
        }
      }
      if (last < 0 || ends[one] > ends[last]) last = one;
    }
  }
}

/** Bytes of a file, and where they are. */
type Place = Pick<SiteCandidate, 'addressNumber' | 'originalAt' | 'displacedLength'>;

/** The bytes that a process has where a module's code is. Between its mappings there may be holes. */
class LiveText {
  constructor(
    private readonly file: Uint8Array,
    private readonly bias: number,
    private readonly parts: readonly { readonly start: number; readonly bytes: Uint8Array }[],
  ) {}

  /** True if the process has, where the site is, what the file has. */
  equals({ addressNumber, originalAt, displacedLength }: Place): boolean {
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

/** The bytes of the process that the candidates lie in. */
function liveText(module: Module, candidates: readonly Place[], memory: TargetMemory): LiveText {
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
