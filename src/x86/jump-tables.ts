import { Instruction, Mnemonic, OpKind, Register, RegisterExt } from './iced.js';
import type { ElfFile } from '../elf/index.js';
import { Flow } from './flow.js';
import { flowOf, forEachInstruction, leaTarget } from './instruction-flow.js';

/** Entries that lead elsewhere (to an unnamed cold part, or beyond the table's end) before a table counts as ended. */
const MOST_STRAYS = 16;
const MOST_ENTRIES = 65_536;
/** Instructions between the computation of a jump's target and the jump. */
const WINDOW = 48;

interface CodeRange {
  readonly addressNumber: number;
  readonly size: number;
}

/** Where the jump tables of a function lead. */
export interface JumpTables {
  readonly targets: ReadonlySet<number>;
  /** False if the function computes a jump as a switch does but no table that it could use was found. */
  readonly complete: boolean;
}

/**
 * Reads every table that the indirect jumps of a function could use. Two kinds of table are in use: of 4-byte distances
 * from the table itself (gcc and clang, position-independent: `lea table(%rip),%a; movslq (%a,%i,4),%b; add %a,%b;
 * jmp *%b`), and of 8-byte addresses (`jmp *table(,%i,8)`, labels as values). Which table belongs to which jump is not
 * decided: whatever address the function names as data is read as both, so that a table is not missed because its
 * address was computed far from the jump. A wrong guess can only lead to a needless refusal.
 *
 * An indirect jump that is not computed by addition may be a call in tail position; its target is then no address
 * within the function.
 */
export function jumpTableTargets(elf: ElfFile, ranges: readonly CodeRange[]): JumpTables {
  const bases = new Set<number>();
  let computedJumps = 0;
  for (const range of ranges) {
    const bytes = elf.bytesAt(BigInt(range.addressNumber), range.size);
    if (bytes === undefined) continue;
    const recent: Write[] = [];
    forEachInstruction(bytes, (instruction, _start, end) => {
      const flow = flowOf(instruction);
      if (flow === Flow.invalid) return false;
      if (flow === Flow.indirectJump && isComputed(instruction, recent)) computedJumps++;
      const lea = flow === Flow.leaRelative ? leaTarget(bytes, end) : undefined;
      if (lea !== undefined) bases.add(range.addressNumber + lea);
      else addAbsoluteBases(instruction, bases);
      // What stands behind a jump or a return is reached from elsewhere: what was written before it says nothing.
      if (flow === Flow.jump || flow === Flow.indirectJump || flow === Flow.end) recent.length = 0;
      else recent.push(writeOf(instruction));
      if (recent.length > WINDOW) recent.shift();
      return true;
    });
  }

  const targets = new Set<number>();
  let relativeTables = 0;
  for (const base of bases) {
    if (isCode(elf, base)) continue;
    const distances = readTable(ranges, (index) => {
      const entry = elf.int32At(base + index * 4);
      return entry === undefined ? undefined : base + entry;
    });
    if (distances.length > 0) relativeTables++;
    const addresses = readTable(ranges, (index) => {
      const entry = elf.pointerAt(BigInt(base + index * 8));
      return entry === undefined ? undefined : Number(entry);
    });
    for (const target of distances) targets.add(target);
    for (const target of addresses) targets.add(target);
  }
  return { targets, complete: computedJumps === 0 || relativeTables > 0 };
}

/** By section, since some linkers put read-only data, tables too, into the segment of the code. */
function isCode(elf: ElfFile, address: number): boolean {
  return elf.sections.some(
    ({ executable, addressNumber, size }) =>
      executable && address >= addressNumber && address < addressNumber + size,
  );
}

/** Entries up to where they no longer lead into the function; only those that do are returned. */
function readTable(ranges: readonly CodeRange[], entry: (index: number) => number | undefined): number[] {
  const found: number[] = [];
  let strays = 0;
  for (let index = 0; index < MOST_ENTRIES; index++) {
    const target = entry(index);
    if (target === undefined) break;
    const inside = ranges.some(
      ({ addressNumber, size }) => target >= addressNumber && target < addressNumber + size,
    );
    if (inside) {
      found.push(target);
      strays = 0;
    } else if (++strays === MOST_STRAYS) {
      break;
    }
  }
  return found;
}

/** `table(,%i,8)`, and immediates, which in code at a fixed address may be a table's address. */
function addAbsoluteBases(instruction: Instruction, bases: Set<number>): void {
  for (let operand = 0; operand < instruction.opCount; operand++) {
    const kind = instruction.opKind(operand);
    if (kind === OpKind.Memory) {
      const isTable = instruction.memoryIndex !== Register.None && instruction.memoryDisplSize !== 0;
      const displacement = isTable ? Number(instruction.memoryDisplacement) : 0;
      if (displacement > 0 && Number.isSafeInteger(displacement)) bases.add(displacement);
    } else if (
      kind === OpKind.Immediate32 ||
      kind === OpKind.Immediate32to64 ||
      kind === OpKind.Immediate64
    ) {
      const value = Number(instruction.immediate(operand));
      if (value > 0 && Number.isSafeInteger(value)) bases.add(value);
    }
  }
}

/** The register that an instruction writes in its first operand, and whether by adding to it. */
interface Write {
  readonly register: Register;
  readonly adds: boolean;
}

const NO_WRITE: Write = { register: Register.None, adds: false };

function writeOf(instruction: Instruction): Write {
  if (instruction.opCount === 0 || instruction.op0Kind !== OpKind.Register) return NO_WRITE;
  switch (instruction.mnemonic) {
    case Mnemonic.Cmp:
    case Mnemonic.Test:
    case Mnemonic.Push:
    case Mnemonic.Bt:
      return NO_WRITE;
    default:
      return {
        register: RegisterExt.fullRegister(instruction.op0Register),
        adds: instruction.mnemonic === Mnemonic.Add || instruction.mnemonic === Mnemonic.Sub,
      };
  }
}

/** True if the last instruction that wrote the jump's register added to it, as only switches do. */
function isComputed(jump: Instruction, recent: readonly Write[]): boolean {
  if (jump.op0Kind !== OpKind.Register) return false;
  const register = jump.op0Register;
  for (let i = recent.length - 1; i >= 0; i--) {
    if (recent[i].register === register) return recent[i].adds;
  }
  return false;
}
