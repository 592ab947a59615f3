// Jumps through registers: each is judged alone, and the tables that it reads are read.
import type { ElfFile } from '../elf/index.js';
import { CodeRanges, Trait } from './code-ranges.js';
import { Mark, type CodeRegion, type CodeRegions } from './code-regions.js';
import { common } from './common-instructions.js';
import { Flow } from './flow.js';
import { Code, ConditionCode, Mnemonic, OpKind, Register, RegisterExt, type Instruction } from './iced.js';
import { decodeFlow, decodeRare, int32At } from './instruction-flow.js';
import type { StackDepths } from './stack-depths.js';
import type { IndirectJump } from './sweep.js';

/** Entries that lead elsewhere (beyond the table's end) before a table counts as ended. */
const MOST_STRAYS = 16;
const MOST_ENTRIES = 65_536;
/** Instructions between the computation of a jump's target and the jump. */
const WINDOW = 64;
/** More tables than a jump can have: one for each place that its base register is written. */
const MOST_BASES = 1024;
/** Beyond, a number would be rounded; no address of a file is there. */
const MOST_ADDRESS = 2n ** 53n;

/**
 * How a jump through a register or memory goes:
 * - `table`: within the function, to entries of tables of distances or addresses that were read
 * - `absolute`: to an address that stands in memory. Such addresses are words that the loader relocates, words of data, or were taken
 *   by a `lea`: they are landings already, whether a table or a pointer has them
 * - `register`: to an address that comes from elsewhere (a parameter, a call): a call in tail position
 * - `open`: computed, in a way that could not be followed
 */
export type JumpKind = 'table' | 'absolute' | 'register' | 'open';

/**
 * Judges every indirect jump and marks where tables lead. An absolute address in memory is a landing already. What must be found are
 * distances: of 1 to 8 bytes, from the table itself (gcc, clang: `lea table(%rip),%b; movslq (%b,%i,4),%a; add %b,%a; jmp *%a`) or
 * from a label of code (labels as values). A jump whose base or table cannot be found is open, whatever else the function has.
 */
export function judgeJumps(
  elf: ElfFile,
  regions: CodeRegions,
  ranges: CodeRanges,
  depths: StackDepths,
  jumps: readonly IndirectJump[],
): JumpKind[] {
  const image = new Image(elf);
  const pointerAt = (address: number): number | undefined => {
    const pointer = elf.pointerAt(BigInt(address));
    return pointer === undefined || pointer > MOST_ADDRESS ? undefined : Number(pointer);
  };
  const judge = new Judge(image, regions, ranges, depths, pointerAt);
  return jumps.map((jump) => {
    if (ranges.has(jump.range, Trait.undecodable)) return 'open';
    const kind = judge.kindOf(jump);
    if (kind === 'open') ranges.traits[ranges.owners[jump.range]] |= Trait.openJump;
    return kind;
  });
}

/** The bytes that the file loads, by address. */
class Image {
  readonly #parts: readonly { readonly start: number; readonly end: number; readonly view: DataView }[];

  constructor(elf: ElfFile) {
    this.#parts = elf.loaded.flatMap((segment) => {
      const { addressNumber, fileSize } = segment;
      const bytes = fileSize > 0 ? elf.segmentBytes(segment) : undefined;
      if (bytes === undefined) return [];
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      return [{ start: addressNumber, end: addressNumber + fileSize, view }];
    });
  }

  /** NaN where the file has no such bytes. */
  read(address: number, width: number, isSigned: boolean): number {
    for (const { start, end, view } of this.#parts) {
      if (address < start || address + width > end) continue;
      const at = address - start;
      switch (width) {
        case 1:
          return isSigned ? view.getInt8(at) : view.getUint8(at);
        case 2:
          return isSigned ? view.getInt16(at, true) : view.getUint16(at, true);
        case 4:
          return isSigned ? view.getInt32(at, true) : view.getUint32(at, true);
        default:
          return view.getInt32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
      }
    }
    return NaN;
  }
}

/** A value in a register, as far as the code before tells. */
type Value =
  | { readonly kind: 'addresses'; readonly of: readonly number[] }
  /** Written by what jumps here; `of` are all addresses that the register gets anywhere in the range. */
  | { readonly kind: 'elsewhere'; readonly of: readonly number[] }
  | {
      readonly kind: 'entry';
      readonly tables: readonly number[];
      readonly width: number;
      readonly isSigned: boolean;
    }
  | { readonly kind: 'absolute' }
  | { readonly kind: 'sum'; readonly parts: readonly [Value, Value] }
  | { readonly kind: 'unknown' }
  | { readonly kind: 'odd' };

const UNKNOWN: Value = { kind: 'unknown' };
const ODD: Value = { kind: 'odd' };
const ABSOLUTE: Value = { kind: 'absolute' };
/** How deep sums and copies are followed. */
const MOST_STEPS = 12;

function isAddresses(value: Value): value is Value & { readonly of: readonly number[] } {
  return value.kind === 'addresses' || value.kind === 'elsewhere';
}

const CALLER_SAVED: ReadonlySet<Register> = new Set([
  Register.RAX,
  Register.RCX,
  Register.RDX,
  Register.RSI,
  Register.RDI,
  Register.R8,
  Register.R9,
  Register.R10,
  Register.R11,
]);

const READS_ONLY: ReadonlySet<number> = new Set<number>([
  Mnemonic.Cmp,
  Mnemonic.Test,
  Mnemonic.Push,
  Mnemonic.Bt,
]);

class Judge {
  #region: CodeRegion | undefined;
  #range = -1;
  /** Addresses that `lea` and `mov` write into each register somewhere in the range. */
  #bases: Map<Register, number[]> | undefined;
  /** Of each table of the range that was read: how many entries lead into the function. */
  readonly #read = new Map<string, number>();

  constructor(
    private readonly image: Image,
    private readonly regions: CodeRegions,
    private readonly ranges: CodeRanges,
    private readonly depths: StackDepths,
    /** The word at an address, as it stands after relocation. */
    private readonly pointerAt: (address: number) => number | undefined,
  ) {}

  kindOf({ range, address, length }: IndirectJump): JumpKind {
    const region = this.regions.at(address);
    if (region === undefined) return 'open';
    if (range !== this.#range) {
      this.#bases = undefined;
      this.#read.clear();
    }
    this.#range = range;
    this.#region = region;
    const at = address - region.start;
    const jump = decodeRare(region.bytes, at, at + length);
    if (jump.op0Kind === OpKind.Memory) {
      const value = this.#loaded(jump, at, at + length, 8, true, MOST_STEPS);
      return this.#leadsInside(value) ? 'table' : 'absolute';
    }
    const value = this.#valueBefore(at, RegisterExt.fullRegister(jump.op0Register), MOST_STEPS);
    switch (value.kind) {
      case 'absolute':
        return 'absolute';
      case 'sum':
        return this.#readTables(value.parts) ? 'table' : 'open';
      case 'entry':
        // An address of 8 bytes is a landing already; a narrower one, where code stands at a low address, may be none.
        if (value.width === 8) return this.#leadsInside(value) ? 'table' : 'absolute';
        return this.#readTables([{ kind: 'addresses', of: [0] }, value]) ? 'table' : 'open';
      case 'addresses':
        // A label's address, or a function's.
        return 'absolute';
      case 'elsewhere':
      case 'unknown':
        return this.depths.isCallFrame(range, address) === true ? 'register' : 'open';
      default:
        return 'open';
    }
  }

  /** What a register holds before the instruction at `at`. */
  #valueBefore(at: number, register: Register, steps: number): Value {
    const region = this.#region;
    if (region === undefined || steps === 0) return ODD;
    const { bytes, marks, start } = region;
    const first = this.ranges.starts[this.#range] - start;
    let end = at;
    for (let count = 0; count < WINDOW && end > first; count++) {
      let before = end - 1;
      while (before > first && (marks[before] & Mark.instruction) === 0) before--;
      decodeFlow(bytes, before, end);
      const { flow } = common;
      if (flow === Flow.jump || flow === Flow.indirectJump || flow === Flow.end || flow === Flow.invalid)
        break;
      if (flow === Flow.call || flow === Flow.indirectCall) {
        if (CALLER_SAVED.has(register)) return UNKNOWN;
      } else if (flow !== Flow.conditionalJump && !common.isNop) {
        const value = this.#written(before, end, register, steps);
        if (value !== undefined) return value;
      }
      end = before;
    }
    // Written elsewhere: by what jumps here.
    const bases = this.#basesIn(register);
    return bases.length > 0 ? { kind: 'elsewhere', of: bases } : UNKNOWN;
  }

  /** What an instruction writes into a register; undefined if it does not. */
  #written(at: number, end: number, register: Register, steps: number): Value | undefined {
    const { bytes } = this.#region ?? { bytes: new Uint8Array(0) };
    const i = decodeRare(bytes, at, end);
    const { mnemonic } = i;
    if (mnemonic === Mnemonic.Cdqe) {
      // Sign-extends what was loaded.
      if (register !== Register.RAX) return undefined;
      const value = this.#valueBefore(at, register, steps - 1);
      return value.kind === 'entry' ? { ...value, isSigned: true } : value.kind === 'unknown' ? value : ODD;
    }
    if (i.opCount === 0 || i.op0Kind !== OpKind.Register || READS_ONLY.has(mnemonic)) return undefined;
    if (RegisterExt.fullRegister(i.op0Register) !== register) return undefined;
    const width = RegisterExt.size(i.op0Register);
    switch (mnemonic) {
      case Mnemonic.Mov:
      case Mnemonic.Movsxd:
      case Mnemonic.Movsx:
      case Mnemonic.Movzx: {
        const isSigned = mnemonic === Mnemonic.Movsxd || mnemonic === Mnemonic.Movsx;
        if (i.op1Kind === OpKind.Memory) {
          const size = mnemonic === Mnemonic.Mov ? width : mnemonic === Mnemonic.Movsxd ? 4 : loadedBytes(i);
          return this.#loaded(i, at, end, size, isSigned, steps);
        }
        if (i.op1Kind === OpKind.Register) {
          const source = RegisterExt.fullRegister(i.op1Register);
          const value = this.#valueBefore(at, source, steps - 1);
          return isSigned && value.kind === 'entry' ? { ...value, isSigned } : value;
        }
        const address = Number(BigInt.asUintN(64, i.immediate(1)));
        return { kind: 'addresses', of: [address] };
      }
      case Mnemonic.Lea: {
        if (i.isIpRelMemoryOperand) {
          const own = this.#address(end + int32At(bytes, end - 4));
          return { kind: 'addresses', of: [own, ...this.#basesIn(register)] };
        }
        const base = i.memoryBase;
        const index = i.memoryIndex;
        if (base === Register.None || index === Register.None || i.memoryIndexScale !== 1) return ODD;
        if (i.memoryDisplacement !== 0n) return ODD;
        const parts = [base, index].map((r) => this.#valueBefore(at, RegisterExt.fullRegister(r), steps - 1));
        return { kind: 'sum', parts: [parts[0], parts[1]] };
      }
      case Mnemonic.Add: {
        if (width !== 8) return ODD;
        // The instruction is the decoder's one: what it says is asked before anything else is decoded.
        let added: Value | Register;
        if (i.op1Kind === OpKind.Register) added = RegisterExt.fullRegister(i.op1Register);
        else if (i.op1Kind === OpKind.Memory) added = this.#loaded(i, at, end, 8, true, steps);
        else added = { kind: 'addresses', of: [Number(BigInt.asIntN(64, i.immediate(1)))] };
        const other = typeof added === 'number' ? this.#valueBefore(at, added, steps - 1) : added;
        return { kind: 'sum', parts: [this.#valueBefore(at, register, steps - 1), other] };
      }
      case Mnemonic.Pop:
        // From the stack: somebody has pushed a whole address.
        return ABSOLUTE;
      case Mnemonic.Xor:
      case Mnemonic.Ror:
      case Mnemonic.Rol: {
        // A pointer that the C library has mangled: whatever it is, it is a whole one.
        const { kind } = this.#valueBefore(at, register, steps - 1);
        return kind === 'absolute' || kind === 'unknown' || kind === 'entry' ? UNKNOWN : ODD;
      }
      default: {
        if (i.conditionCode === ConditionCode.None || width !== 8) return ODD;
        // cmov: one of two whole addresses.
        const loaded = i.op1Kind === OpKind.Memory ? this.#loaded(i, at, end, 8, true, steps) : undefined;
        const other = loaded ?? this.#valueBefore(at, RegisterExt.fullRegister(i.op1Register), steps - 1);
        const values = [other, this.#valueBefore(at, register, steps - 1)];
        if (values.every(isAddresses)) return { kind: 'addresses', of: values.flatMap(({ of }) => of) };
        return values.every(({ kind }) => kind !== 'sum' && kind !== 'odd') ? UNKNOWN : ODD;
      }
    }
  }

  /** What is loaded from memory: an entry of a table if its address can be found. */
  #loaded(i: Instruction, at: number, end: number, width: number, isSigned: boolean, steps: number): Value {
    const displacement = Number(BigInt.asIntN(64, i.memoryDisplacement));
    const base = i.memoryBase;
    const index = i.memoryIndex;
    // An address as a whole comes from memory as it is.
    const whole = width === 8;
    let tables: readonly number[] = [];
    if (i.isIpRelMemoryOperand) {
      tables = [this.#address(end + int32At(this.#region?.bytes ?? new Uint8Array(0), end - 4))];
    } else if (base === Register.None) {
      tables = [displacement];
    } else {
      for (const register of [base, index]) {
        if (register === Register.None || register === Register.RSP) continue;
        const value = this.#valueBefore(at, RegisterExt.fullRegister(register), steps - 1);
        if (isAddresses(value)) tables = value.of.map((address) => address + displacement);
        if (tables.length > 0) break;
      }
    }
    return whole && tables.length === 0 ? ABSOLUTE : { kind: 'entry', tables, width, isSigned };
  }

  #address(index: number): number {
    return (this.#region?.start ?? 0) + index;
  }

  /** All addresses that instructions of the range put into a register. */
  #basesIn(register: Register): readonly number[] {
    this.#bases ??= this.#findBases();
    return this.#bases.get(register) ?? [];
  }

  #findBases(): Map<Register, number[]> {
    const found = new Map<Register, number[]>();
    const region = this.#region;
    if (region === undefined) return found;
    const { bytes, start } = region;
    const end = this.ranges.ends[this.#range] - start;
    for (let at = this.ranges.starts[this.#range] - start; at < end; at = common.end) {
      decodeFlow(bytes, at, end);
      const { flow, displacement } = common;
      const next = common.end;
      if (flow === Flow.invalid) break;
      const isLea = flow === Flow.leaRelative && displacement >= 0;
      // mov r32, imm32, where code stands at a fixed address.
      const isImmediate = flow === Flow.next && next - at <= 6 && (bytes[next - 5] & 0xf8) === 0xb8;
      if (!isLea && !isImmediate) continue;
      const i = decodeRare(bytes, at, next);
      common.end = next;
      if (i.op0Kind !== OpKind.Register) continue;
      const address = isLea ? start + next + int32At(bytes, displacement) : int32At(bytes, next - 4) >>> 0;
      const register = RegisterExt.fullRegister(i.op0Register);
      const known = found.get(register);
      if (known === undefined) found.set(register, [address]);
      else if (known.length < MOST_BASES && !known.includes(address)) known.push(address);
    }
    return found;
  }

  /** Reads the tables of a sum of a base and an entry, and marks where they lead. False if none leads into the function. */
  #readTables(parts: readonly [Value, Value]): boolean {
    for (const [base, entry] of [parts, [parts[1], parts[0]]] as const) {
      if (!isAddresses(base) || entry.kind !== 'entry') continue;
      let found = 0;
      for (const table of entry.tables)
        for (const from of base.of) found += this.#readTable(table, from, entry.width, entry.isSigned);
      return found > 0;
    }
    return false;
  }

  /** True if a table of whole addresses has one within the function, behind its entry; marks what it has. */
  #leadsInside(value: Value): boolean {
    if (value.kind !== 'entry') return false;
    const owner = this.ranges.owners[this.#range];
    let found = false;
    for (const table of value.tables) {
      let strays = 0;
      for (let index = 0; index < MOST_ENTRIES && strays < MOST_STRAYS; index++) {
        const target = this.pointerAt(table + index * 8);
        if (target === undefined) break;
        const range = this.ranges.indexAt(target);
        const isInside = range >= 0 && this.ranges.owners[range] === owner;
        if (isInside && !this.ranges.isEntry(owner, target, this.regions)) {
          this.regions.mark(target, Mark.entry);
          found = true;
          strays = 0;
        } else strays++;
      }
    }
    return found;
  }

  #readTable(table: number, base: number, width: number, isSigned: boolean): number {
    const key = `${table},${base},${width}`;
    const known = this.#read.get(key);
    if (known !== undefined) return known;
    const found = this.#readEntries(table, base, width, isSigned);
    this.#read.set(key, found);
    return found;
  }

  #readEntries(table: number, base: number, width: number, isSigned: boolean): number {
    const { ranges, regions, image } = this;
    const owner = ranges.owners[this.#range];
    let found = 0;
    let strays = 0;
    for (let index = 0; index < MOST_ENTRIES; index++) {
      const distance = image.read(table + index * width, width, isSigned);
      if (Number.isNaN(distance)) break;
      const target = base + distance;
      const range = ranges.indexAt(target);
      if (range >= 0 && ranges.owners[range] === owner) {
        regions.mark(target, Mark.landing | Mark.known | Mark.foreign);
        if (ranges.isEntry(owner, target, regions)) ranges.traits[owner] |= Trait.reentered;
        found++;
        strays = 0;
      } else if (++strays === MOST_STRAYS) break;
    }
    return found;
  }
}

/** Bytes that `movzx` or `movsx` loads. */
function loadedBytes(i: Instruction): number {
  switch (i.code) {
    case Code.Movzx_r32_rm16:
    case Code.Movzx_r64_rm16:
    case Code.Movsx_r32_rm16:
    case Code.Movsx_r64_rm16:
      return 2;
    default:
      return 1;
  }
}
