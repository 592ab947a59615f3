// Unwind tables (.eh_frame), as far as they tell about code: which ranges are functions, where their frames stand, and where
// an exception may land. DWARF 4 chapter 6.4, LSB 5 core 10.6 (.eh_frame), the Itanium C++ ABI's exception tables (LSDA).
// The file may be damaged on purpose: what cannot be read ends the table, and nothing is read twice without bound.
import { lowerBound } from './lower-bound.js';
import { PT_GNU_EH_FRAME } from './abi.js';
import type { ElfFile, ElfSegment } from './elf-file.js';

/** DW_EH_PE_*: how a pointer is written. */
const PE = { omit: 0xff, form: 0x0f, application: 0x70, pcRelative: 0x10 } as const;
const FORM = { absolute: 0, uleb: 1, u16: 2, u32: 3, u64: 4, sleb: 9, s16: 10, s32: 11, s64: 12 } as const;

/** DW_CFA_*: the upper two bits of the first three are the whole opcode. */
const CFA = {
  advance: 0x40,
  offset: 0x80,
  restore: 0xc0,
  nop: 0,
  setLocation: 1,
  advance1: 2,
  advance2: 3,
  advance4: 4,
  offsetExtended: 5,
  restoreExtended: 6,
  undefined: 7,
  sameValue: 8,
  register: 9,
  rememberState: 0xa,
  restoreState: 0xb,
  defCfa: 0xc,
  defCfaRegister: 0xd,
  defCfaOffset: 0xe,
  defCfaExpression: 0xf,
  expression: 0x10,
  offsetExtendedSf: 0x11,
  defCfaSf: 0x12,
  defCfaOffsetSf: 0x13,
  valOffset: 0x14,
  valOffsetSf: 0x15,
  valExpression: 0x16,
  gnuArgsSize: 0x2e,
  gnuNegativeOffsetExtended: 0x2f,
} as const;

/** DWARF numbers of registers: x86-64 psABI 1.0, figure 3.36. */
export const DWARF_RBP = 6;
export const DWARF_RSP = 7;
/** The frame's address is not a register and an offset, or is not known. */
const NO_REGISTER = -1;
/** `remember_state` is nested once or twice by compilers. */
const MOST_STATES = 64;
/** More frames than any file has; each is at least 12 bytes. */
const MOST_ENTRIES = 16_000_000;

/** Reads numbers of a byte range, and stays within it: beyond, `ok` is false and numbers are 0. */
class Cursor {
  at = 0;
  end = 0;
  ok = true;
  readonly #view: DataView;

  /** `address` is where `bytes` are loaded. */
  constructor(
    readonly bytes: Uint8Array,
    readonly address: number,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  go(at: number, end: number): void {
    this.at = at;
    this.end = Math.min(end, this.bytes.length);
    this.ok = at >= 0 && at <= this.end;
  }

  /** True once something was read that is not there. */
  isBeyond(): boolean {
    return !this.ok;
  }

  #take(size: number): number {
    const { at } = this;
    if (!this.ok || !(size >= 0) || at + size > this.end) {
      this.ok = false;
      this.at = this.end;
      return -1;
    }
    this.at = at + size;
    return at;
  }

  skip(size: number): void {
    this.#take(size);
  }

  u8(): number {
    const at = this.#take(1);
    return at < 0 ? 0 : this.bytes[at];
  }

  u16(): number {
    const at = this.#take(2);
    return at < 0 ? 0 : this.#view.getUint16(at, true);
  }

  u32(): number {
    const at = this.#take(4);
    return at < 0 ? 0 : this.#view.getUint32(at, true);
  }

  s32(): number {
    const at = this.#take(4);
    return at < 0 ? 0 : this.#view.getInt32(at, true);
  }

  s64(): number {
    const low = this.u32();
    return this.s32() * 2 ** 32 + low;
  }

  uleb(): number {
    let value = 0;
    let scale = 1;
    for (;;) {
      const byte = this.u8();
      value += (byte & 0x7f) * scale;
      if ((byte & 0x80) === 0 || !this.ok) return value;
      scale *= 128;
      if (scale > Number.MAX_SAFE_INTEGER) {
        this.ok = false;
        return 0;
      }
    }
  }

  sleb(): number {
    const first = this.at;
    const value = this.uleb();
    const last = this.ok ? this.bytes[this.at - 1] : 0;
    return (last & 0x40) === 0 ? value : value - 128 ** (this.at - first);
  }

  /** A pointer as DW_EH_PE_* says; NaN for one of a kind that is not of this file (indirect, relative to something else). */
  pointer(encoding: number): number {
    const place = this.address + this.at;
    let value: number;
    switch (encoding & PE.form) {
      case FORM.absolute:
      case FORM.u64:
      case FORM.s64:
        value = this.s64();
        break;
      case FORM.uleb:
        value = this.uleb();
        break;
      case FORM.sleb:
        value = this.sleb();
        break;
      case FORM.u16:
        value = this.u16();
        break;
      case FORM.s16:
        value = (this.u16() << 16) >> 16;
        break;
      case FORM.u32:
        value = this.u32();
        break;
      case FORM.s32:
        value = this.s32();
        break;
      default:
        this.ok = false;
        return NaN;
    }
    const application = encoding & PE.application;
    if (application === 0 || value === 0) return value;
    return application === PE.pcRelative ? value + place : NaN;
  }
}

/** What all frames of a kind have in common (a CIE). */
interface Common {
  readonly codeAlignment: number;
  readonly dataAlignment: number;
  readonly pointerEncoding: number;
  readonly lsdaEncoding: number;
  readonly hasAugmentation: boolean;
  readonly first: number;
  readonly end: number;
}

/** The functions (and parts of functions) that unwinders know, ascending by address. */
export class UnwindTable {
  readonly #cursor: Cursor | undefined;
  readonly #commons: readonly Common[];
  /** Addresses. */
  readonly starts: Float64Array;
  readonly sizes: Float64Array;
  readonly #common: Uint32Array;
  /** Index of the first instruction of each in the section, and behind the last. */
  readonly #first: Uint32Array;
  readonly #end: Uint32Array;
  /** Address of its exception table; 0: none. */
  readonly #lsda: Float64Array;
  readonly #elf: ElfFile;
  /** Of each common part: whether nothing is pushed after its initial instructions; undefined: not known. */
  readonly #callFrames: readonly (boolean | undefined)[];
  // Where `frameAt` stands, so that questions in ascending order are answered in one go.
  #entry = -1;
  #location = 0;
  #register = NO_REGISTER;
  #offset = 0;
  #inInitial = false;
  #next = 0;
  readonly #states: { register: number; offset: number }[] = [];

  constructor(elf: ElfFile) {
    this.#elf = elf;
    const section = sectionOf(elf);
    const entries = new Entries();
    if (section !== undefined) entries.read(section);
    this.#cursor = section;
    this.#commons = entries.commons;
    const order = entries.order();
    const inOrder = (values: readonly number[]): number[] =>
      order === undefined ? [...values] : order.map((i) => values[i]);
    this.starts = Float64Array.from(inOrder(entries.starts));
    this.sizes = Float64Array.from(inOrder(entries.sizes));
    this.#common = Uint32Array.from(inOrder(entries.common));
    this.#first = Uint32Array.from(inOrder(entries.first));
    this.#end = Uint32Array.from(inOrder(entries.end));
    this.#lsda = Float64Array.from(inOrder(entries.lsda));
    this.#callFrames = entries.commons.map((_, common) => this.#initialIsCallFrame(common));
  }

  get count(): number {
    return this.starts.length;
  }

  /** Index of the entry that covers an address; -1: none does. */
  indexAt(address: number): number {
    const index = lowerBound(this.starts, address + 1) - 1;
    return index >= 0 && address < this.starts[index] + this.sizes[index] ? index : -1;
  }

  /**
   * True if the return address is at `register` + `offset` before the instruction at an address of entry `index`. Ascending addresses
   * are answered fastest.
   */
  isReturnSlot(index: number, address: number, register: number, offset: number): boolean {
    if (index !== this.#entry || address < this.#location) this.#begin(index);
    this.#runTo(address);
    return this.#register === register && this.#offset - 8 === offset;
  }

  /** True if nothing has been pushed at `address`: the return address is on top. Undefined where the table does not say. */
  isCallFrame(index: number, address: number): boolean | undefined {
    if (index < 0) return undefined;
    if (address === this.starts[index] && this.#beginsByAdvancing(index))
      return this.#callFrames[this.#common[index]];
    if (index !== this.#entry || address < this.#location) this.#begin(index);
    this.#runTo(address);
    if (this.#register === NO_REGISTER) return undefined;
    return this.#register === DWARF_RSP && this.#offset === 8;
  }

  /** Bytes that have been pushed at an address; undefined where the table does not find the frame by the stack pointer. */
  pushedAt(index: number, address: number): number | undefined {
    if (index !== this.#entry || address < this.#location) this.#begin(index);
    this.#runTo(address);
    return this.#register === DWARF_RSP ? this.#offset - 8 : undefined;
  }

  /** Calls `visit` with every address at which an exception may land. */
  forEachLandingPad(visit: (address: number) => void): void {
    const segments = new Map<number, Cursor>();
    for (let i = 0; i < this.count; i++) {
      const lsda = this.#lsda[i];
      if (lsda === 0) continue;
      const segment = segmentWith(this.#elf, lsda);
      if (segment === undefined) continue;
      let cursor = segments.get(segment.addressNumber);
      if (cursor === undefined) {
        const bytes = this.#elf.segmentBytes(segment);
        if (bytes === undefined) continue;
        cursor = new Cursor(bytes, segment.addressNumber);
        segments.set(segment.addressNumber, cursor);
      }
      cursor.go(lsda - segment.addressNumber, segment.fileSize);
      visitLandingPads(cursor, this.starts[i], visit);
    }
  }

  #initialIsCallFrame(common: number): boolean | undefined {
    const cursor = this.#cursor;
    if (cursor === undefined) return undefined;
    this.#register = NO_REGISTER;
    this.#offset = 0;
    const { first, end } = this.#commons[common];
    cursor.go(first, end);
    while (cursor.ok && cursor.at < end) this.#execute(cursor, this.#commons[common]);
    this.#entry = -1;
    this.#states.length = 0;
    if (!cursor.ok || this.#register === NO_REGISTER) return undefined;
    return this.#register === DWARF_RSP && this.#offset === 8;
  }

  /** True if the first thing that an entry tells is of code behind its start, as nearly all do. */
  #beginsByAdvancing(index: number): boolean {
    const first = this.#first[index];
    const opcode = first < this.#end[index] ? (this.#cursor?.bytes[first] ?? 0) : CFA.advance1;
    return (
      (opcode > CFA.advance && opcode < CFA.offset) || (opcode >= CFA.advance1 && opcode <= CFA.advance4)
    );
  }

  #begin(index: number): void {
    this.#entry = index;
    this.#location = this.starts[index];
    this.#register = NO_REGISTER;
    this.#offset = 0;
    this.#states.length = 0;
    this.#inInitial = true;
    this.#next = this.#commons[this.#common[index]].first;
  }

  /** Executes instructions up to the first that tells of code behind `address`. */
  #runTo(address: number): void {
    const cursor = this.#cursor;
    if (cursor === undefined) return;
    const index = this.#entry;
    const common = this.#commons[this.#common[index]];
    for (;;) {
      const end = this.#inInitial ? common.end : this.#end[index];
      if (this.#next >= end) {
        if (!this.#inInitial) return;
        this.#inInitial = false;
        this.#next = this.#first[index];
        continue;
      }
      cursor.go(this.#next, end);
      const step = this.#execute(cursor, common);
      if (!cursor.ok) {
        // Damaged: nothing is known from here on.
        this.#register = NO_REGISTER;
        this.#next = this.#end[index];
        this.#inInitial = false;
        return;
      }
      if (step > 0 && this.#location + step > address) return;
      this.#location += step;
      this.#next = cursor.at;
    }
  }

  /** One instruction. Returns by how much it advances the location; the state changes only where it does not. */
  #execute(cursor: Cursor, common: Common): number {
    const opcode = cursor.u8();
    const operand = opcode & 0x3f;
    switch (opcode & 0xc0) {
      case CFA.advance:
        return operand * common.codeAlignment;
      case CFA.offset:
        cursor.uleb();
        return 0;
      case CFA.restore:
        return 0;
    }
    switch (opcode) {
      case CFA.nop:
        return 0;
      case CFA.setLocation:
        return Math.max(cursor.pointer(common.pointerEncoding) - this.#location, 0) || 0;
      case CFA.advance1:
        return cursor.u8() * common.codeAlignment;
      case CFA.advance2:
        return cursor.u16() * common.codeAlignment;
      case CFA.advance4:
        return cursor.u32() * common.codeAlignment;
      case CFA.offsetExtended:
      case CFA.register:
      case CFA.valOffset:
      case CFA.gnuNegativeOffsetExtended:
        cursor.uleb();
        cursor.uleb();
        return 0;
      case CFA.offsetExtendedSf:
      case CFA.valOffsetSf:
        cursor.uleb();
        cursor.sleb();
        return 0;
      case CFA.restoreExtended:
      case CFA.undefined:
      case CFA.sameValue:
      case CFA.gnuArgsSize:
        cursor.uleb();
        return 0;
      case CFA.rememberState:
        if (this.#states.length < MOST_STATES)
          this.#states.push({ register: this.#register, offset: this.#offset });
        return 0;
      case CFA.restoreState: {
        const state = this.#states.pop();
        if (state !== undefined) {
          this.#register = state.register;
          this.#offset = state.offset;
        }
        return 0;
      }
      case CFA.defCfa:
        this.#register = cursor.uleb();
        this.#offset = cursor.uleb();
        return 0;
      case CFA.defCfaSf:
        this.#register = cursor.uleb();
        this.#offset = cursor.sleb() * common.dataAlignment;
        return 0;
      case CFA.defCfaRegister:
        this.#register = cursor.uleb();
        return 0;
      case CFA.defCfaOffset:
        this.#offset = cursor.uleb();
        return 0;
      case CFA.defCfaOffsetSf:
        this.#offset = cursor.sleb() * common.dataAlignment;
        return 0;
      case CFA.defCfaExpression:
        cursor.skip(cursor.uleb());
        this.#register = NO_REGISTER;
        return 0;
      case CFA.expression:
      case CFA.valExpression:
        cursor.uleb();
        cursor.skip(cursor.uleb());
        return 0;
      default:
        cursor.ok = false;
        return 0;
    }
  }
}

function segmentWith(elf: ElfFile, address: number): ElfSegment | undefined {
  return elf.loaded.find(
    ({ addressNumber, fileSize }) => address >= addressNumber && address < addressNumber + fileSize,
  );
}

/** The bytes of .eh_frame: by its section, else from where its header says to the end of the segment. */
function sectionOf(elf: ElfFile): Cursor | undefined {
  const section = elf.sections.find(
    ({ name, hasBytes, allocated }) => name === '.eh_frame' && hasBytes && allocated,
  );
  if (section !== undefined) {
    const bytes = elf.bytesAt(section.address, section.size);
    return bytes && new Cursor(bytes, section.addressNumber);
  }
  const header = elf.segments.find(({ type }) => type === PT_GNU_EH_FRAME);
  const headerBytes = header && elf.bytesAt(header.address, header.fileSize);
  if (header === undefined || headerBytes === undefined) return undefined;
  // eh_frame_hdr: version, encoding of the pointer to .eh_frame, of the count, of the table; then that pointer.
  const cursor = new Cursor(headerBytes, header.addressNumber);
  cursor.go(0, headerBytes.length);
  cursor.u8();
  const encoding = cursor.u8();
  cursor.skip(2);
  const address = cursor.pointer(encoding);
  const segment = segmentWith(elf, address);
  if (!cursor.ok || segment === undefined) return undefined;
  const bytes = elf.segmentBytes(segment)?.subarray(address - segment.addressNumber);
  return bytes && new Cursor(bytes, address);
}

/** What is read of the entries of a section: 10^5 of them, so that each is a number in some lists. */
class Entries {
  readonly commons: Common[] = [];
  readonly starts: number[] = [];
  readonly sizes: number[] = [];
  readonly common: number[] = [];
  readonly first: number[] = [];
  readonly end: number[] = [];
  readonly lsda: number[] = [];
  #isSorted = true;

  read(cursor: Cursor): void {
    const { length } = cursor.bytes;
    /** Index of each common part by where it stands; -1: it cannot be read. */
    const known = new Map<number, number>();
    let lastAt = -1;
    let last = -1;
    for (let at = 0; at + 4 <= length && this.starts.length < MOST_ENTRIES;) {
      cursor.go(at, length);
      const size = cursor.u32();
      // A word of zero ends the table (crtend.o); linkers may leave one in the middle too.
      if (size === 0) {
        at += 4;
        continue;
      }
      const next = at + 4 + size;
      // 64-bit tables are written by nobody.
      if (size === 0xffff_ffff || size < 4 || next > length) return;
      const id = cursor.u32();
      if (id !== 0) {
        const commonAt = at + 4 - id;
        if (commonAt !== lastAt) {
          lastAt = commonAt;
          last = known.get(commonAt) ?? this.#addCommon(cursor, commonAt, known);
        }
        if (last >= 0) {
          cursor.go(at + 8, next);
          this.#add(cursor, last, next);
        }
      }
      at = next;
    }
  }

  /** Indexes in the order of addresses; undefined if that is how they stand, as linkers write them. */
  order(): number[] | undefined {
    if (this.#isSorted) return undefined;
    return [...this.starts.keys()].sort((a, b) => this.starts[a] - this.starts[b]);
  }

  #addCommon(cursor: Cursor, at: number, known: Map<number, number>): number {
    const common = readCommon(cursor, at);
    const index = common === undefined ? -1 : this.commons.push(common) - 1;
    known.set(at, index);
    return index;
  }

  #add(cursor: Cursor, index: number, end: number): void {
    const common = this.commons[index];
    const start = cursor.pointer(common.pointerEncoding);
    const size = cursor.pointer(common.pointerEncoding & PE.form);
    let lsda = 0;
    if (common.hasAugmentation) {
      const length = cursor.uleb();
      const behind = cursor.at + length;
      if (common.lsdaEncoding !== PE.omit && length > 0) lsda = cursor.pointer(common.lsdaEncoding);
      if (behind > end) return;
      cursor.at = behind;
    }
    if (!cursor.ok || !(size > 0) || !(start > 0) || !Number.isSafeInteger(start + size)) return;
    const count = this.starts.length;
    if (count > 0 && this.starts[count - 1] > start) this.#isSorted = false;
    this.starts.push(start);
    this.sizes.push(size);
    this.common.push(index);
    this.first.push(cursor.at);
    this.end.push(end);
    this.lsda.push(Number.isSafeInteger(lsda) ? lsda : 0);
  }
}

function readCommon(cursor: Cursor, at: number): Common | undefined {
  cursor.go(at, cursor.bytes.length);
  const size = cursor.u32();
  const end = at + 4 + size;
  if (!cursor.ok || size === 0xffff_ffff || end > cursor.bytes.length) return undefined;
  cursor.go(at + 4, end);
  if (cursor.u32() !== 0) return undefined;
  const version = cursor.u8();
  let augmentation = '';
  for (let byte = cursor.u8(); byte !== 0 && augmentation.length < 16; byte = cursor.u8())
    augmentation += String.fromCharCode(byte);
  if (version >= 4) cursor.skip(2);
  const codeAlignment = cursor.uleb();
  const dataAlignment = cursor.sleb();
  if (version === 1) cursor.u8();
  else cursor.uleb();
  let pointerEncoding: number = FORM.absolute;
  let lsdaEncoding: number = PE.omit;
  const hasAugmentation = augmentation.startsWith('z');
  if (hasAugmentation) {
    const length = cursor.uleb();
    const behind = cursor.at + length;
    for (const letter of augmentation.slice(1)) {
      if (letter === 'R') pointerEncoding = cursor.u8();
      else if (letter === 'L') lsdaEncoding = cursor.u8();
      else if (letter === 'P') cursor.pointer(cursor.u8());
      else if (letter !== 'S') break;
    }
    if (behind > end) return undefined;
    cursor.at = behind;
  } else if (augmentation !== '') return undefined;
  if (cursor.isBeyond()) return undefined;
  return {
    codeAlignment,
    dataAlignment,
    pointerEncoding,
    lsdaEncoding,
    hasAugmentation,
    first: cursor.at,
    end,
  };
}

/** An LSDA: where landing pads count from, the table of types, and call sites with a pad each (0: none). */
function visitLandingPads(cursor: Cursor, start: number, visit: (address: number) => void): void {
  const startEncoding = cursor.u8();
  const padStart = startEncoding === PE.omit ? start : cursor.pointer(startEncoding);
  const typesEncoding = cursor.u8();
  if (typesEncoding !== PE.omit) cursor.uleb();
  const encoding = cursor.u8() & PE.form;
  const length = cursor.uleb();
  const end = Math.min(cursor.at + length, cursor.end);
  while (cursor.ok && cursor.at < end) {
    cursor.pointer(encoding);
    cursor.pointer(encoding);
    const pad = cursor.pointer(encoding);
    cursor.uleb();
    if (pad !== 0 && !cursor.isBeyond()) visit(padStart + pad);
  }
}
