// Exits as bytes, to be kept with the verdicts on a file. For each function of the file, in their order, what was found, or that nothing was
// looked for. Numbers are of seven bits a byte, least significant first, the highest bit saying that more follow; signed ones are doubled, and
// negative ones are odd. Places count from the function's address on.
//
//     function  0: not looked for | 1: exits | 2 and more: why there are none
//     exits     end of a longer entry, or 0; its count; marks; number of windows; each: start, length, count * 2 + is a branch, marks
//     marks     how many; each: index, flags (TAIL, DEEP, BLOCK, EARLY); depth; block: start, and its length, or depth where it is early
import type { ElfFile } from '../elf/index.js';
import type { ExitBlock, ExitMark, ExitRefusal, ExitWindow, FunctionExits } from './exit-sites.js';
import { Block, LongerEntry, NO_MARKS, NO_WINDOWS, Window, earlyBlock, markOf } from './exit-windows.js';
import type { SiteCandidate } from './sites.js';

/** The order is that of the kept bytes. */
const REFUSALS: readonly ExitRefusal[] = [
  'landing',
  'no-room',
  'falls-through',
  'computed-jump',
  'odd-stack',
];
const UNKNOWN = 0;
const EXITS = 1;
const FIRST_REFUSAL = 2;

const TAIL = 1;
const DEEP = 2;
const BLOCK = 4;
const EARLY = 8;

/** More marks, windows or bytes than a function has: such bytes are none of ours. */
const MOST = 1 << 20;

const SEVEN_BITS = 0x80;
/** Numbers up to 2^53 are so long at most. */
const LONGEST_NUMBER = 8;

class Writer {
  #bytes = new Uint8Array(1 << 16);
  length = 0;

  put(value: number): void {
    if (this.length + LONGEST_NUMBER > this.#bytes.length) {
      const more = new Uint8Array(this.#bytes.length * 2);
      more.set(this.#bytes);
      this.#bytes = more;
    }
    let rest = value;
    for (; rest >= SEVEN_BITS; rest = Math.floor(rest / SEVEN_BITS))
      this.#bytes[this.length++] = (rest % SEVEN_BITS) | SEVEN_BITS;
    this.#bytes[this.length++] = rest;
  }

  putSigned(value: number): void {
    this.put(value < 0 ? -value * 2 - 1 : value * 2);
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }
}

/** Thrown for bytes that are no exits; it never leaves this file. */
class NotExits extends Error {}

class Reader {
  constructor(
    private readonly bytes: Uint8Array,
    public at: number,
  ) {}

  next(most = MOST): number {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < LONGEST_NUMBER; i++) {
      if (this.at >= this.bytes.length) throw new NotExits();
      const byte = this.bytes[this.at++];
      value += (byte % SEVEN_BITS) * scale;
      if (byte < SEVEN_BITS) {
        if (value > most) throw new NotExits();
        return value;
      }
      scale *= SEVEN_BITS;
    }
    throw new NotExits();
  }

  nextSigned(): number {
    const doubled = this.next(Number.MAX_SAFE_INTEGER);
    return doubled % 2 === 0 ? doubled / 2 : -(doubled + 1) / 2;
  }
}

/** Bytes for `count` functions; `found`: by their numbers, ascending. */
export function exitBytes(
  count: number,
  found: ReadonlyMap<
    number,
    { readonly candidate: SiteCandidate; readonly exits: FunctionExits | ExitRefusal }
  >,
): Uint8Array {
  const writer = new Writer();
  for (let index = 0; index < count; index++) {
    const one = found.get(index);
    if (one === undefined) writer.put(UNKNOWN);
    else if (typeof one.exits === 'string') writer.put(FIRST_REFUSAL + REFUSALS.indexOf(one.exits));
    else putExits(writer, one.candidate, one.exits);
  }
  return writer.bytes;
}

function putExits(
  writer: Writer,
  candidate: SiteCandidate,
  { entry, entryExits, windows }: FunctionExits,
): void {
  const base = candidate.function.addressNumber;
  writer.put(EXITS);
  writer.put(entry?.displacedLength ?? 0);
  writer.put(entry?.displacedCount ?? 0);
  putMarks(writer, base, entryExits);
  writer.put(windows.length);
  for (const { addressNumber, originalAt, end, displacedCount, form, exits } of windows) {
    writer.putSigned(addressNumber - base);
    writer.put(end - originalAt);
    writer.put(displacedCount * 2 + (form === 'branch' ? 1 : 0));
    putMarks(writer, base, exits);
  }
}

function putMarks(writer: Writer, base: number, marks: readonly ExitMark[]): void {
  writer.put(marks.length);
  for (const { index, kind, block, depth } of marks) {
    const isEarly = block?.displaced.length === 0;
    writer.put(index);
    writer.put(
      (kind === 'tail' ? TAIL : 0) |
        (depth === undefined ? 0 : DEEP) |
        (block === undefined ? 0 : BLOCK) |
        (isEarly ? EARLY : 0),
    );
    if (depth !== undefined) writer.put(depth);
    if (block === undefined) continue;
    writer.putSigned(block.addressNumber - base);
    writer.put(isEarly ? block.depth : block.original.length);
  }
}

/** What was found for the functions of a file, read back. */
export class KeptExits {
  private constructor(
    private readonly elf: ElfFile,
    private readonly bytes: Uint8Array,
    /** Where each function's exits are in the bytes. */
    private readonly places: Uint32Array,
  ) {}

  /** Undefined unless they are bytes for so many functions. What they say of places in the file is looked at when it is asked for. */
  static from(elf: ElfFile, bytes: Uint8Array, count: number): KeptExits | undefined {
    const places = new Uint32Array(count);
    const reader = new Reader(bytes, 0);
    try {
      for (let i = 0; i < count; i++) {
        places[i] = reader.at;
        skip(reader);
      }
    } catch (error) {
      if (error instanceof NotExits) return undefined;
      throw error;
    }
    return reader.at === bytes.length ? new KeptExits(elf, bytes, places) : undefined;
  }

  /** Undefined: nothing was looked for, or it is nothing that the file can have. */
  at(index: number, candidate: SiteCandidate): FunctionExits | ExitRefusal | undefined {
    const reader = new Reader(this.bytes, this.places[index]);
    const head = reader.next();
    if (head === UNKNOWN) return undefined;
    if (head >= FIRST_REFUSAL) return REFUSALS[head - FIRST_REFUSAL];
    try {
      return this.#exits(reader, candidate);
    } catch (error) {
      if (error instanceof NotExits) return undefined;
      throw error;
    }
  }

  #exits(reader: Reader, candidate: SiteCandidate): FunctionExits {
    const { elf } = this;
    const base = candidate.function.addressNumber;
    const length = reader.next();
    const count = reader.next();
    const marks = this.#marks(reader, base);
    const windows: ExitWindow[] = [];
    for (let left = reader.next(); left > 0; left--) {
      const address = base + reader.nextSigned();
      const bytes = reader.next();
      const start = this.#code(address, bytes);
      const shape = reader.next();
      const form = shape % 2 === 1 ? 'branch' : 'jump';
      const exits = this.#marks(reader, base);
      windows.push(
        new Window(elf, address - start, start, start + bytes, Math.floor(shape / 2), form, exits),
      );
    }
    const from = candidate.originalAt;
    if (length > 0) this.#code(candidate.addressNumber, length);
    return {
      entry: length === 0 ? undefined : new LongerEntry(elf, candidate, from + length, count),
      entryExits: marks,
      windows: windows.length === 0 ? NO_WINDOWS : windows,
    };
  }

  #marks(reader: Reader, base: number): readonly ExitMark[] {
    const count = reader.next();
    if (count === 0) return NO_MARKS;
    const marks: ExitMark[] = [];
    for (let i = 0; i < count; i++) {
      const index = reader.next();
      const flags = reader.next();
      const kind = (flags & TAIL) !== 0 ? 'tail' : 'return';
      const depth = (flags & DEEP) === 0 ? undefined : reader.next();
      const block =
        (flags & BLOCK) === 0 ? undefined : this.#block(reader, base, kind, (flags & EARLY) !== 0);
      if (depth === undefined && block === undefined) marks.push(markOf(index, kind));
      else
        marks.push({
          index,
          kind,
          ...(block === undefined ? {} : { block }),
          ...(depth === undefined ? {} : { depth }),
        });
    }
    return marks;
  }

  #block(reader: Reader, base: number, kind: ExitBlock['kind'], isEarly: boolean): ExitBlock {
    const address = base + reader.nextSigned();
    const number = reader.next();
    if (isEarly) return earlyBlock(address, kind, number);
    const start = this.#code(address, number);
    return new Block(this.elf, address - start, start, start + number, kind);
  }

  /** Index in the file of code that is there. */
  #code(address: number, length: number): number {
    const at = this.elf.codeOffset(address, Math.max(length, 1));
    if (at < 0) throw new NotExits();
    return at;
  }
}

/** Goes behind what is said of one function. */
function skip(reader: Reader): void {
  const head = reader.next(FIRST_REFUSAL + REFUSALS.length - 1);
  if (head !== EXITS) return;
  reader.next();
  reader.next();
  skipMarks(reader);
  for (let windows = reader.next(); windows > 0; windows--) {
    reader.nextSigned();
    reader.next();
    reader.next();
    skipMarks(reader);
  }
}

function skipMarks(reader: Reader): void {
  for (let left = reader.next(); left > 0; left--) {
    reader.next();
    const flags = reader.next();
    if ((flags & DEEP) !== 0) reader.next();
    if ((flags & BLOCK) === 0) continue;
    reader.nextSigned();
    reader.next();
  }
}
