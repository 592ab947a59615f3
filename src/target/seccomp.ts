// What a process's seccomp filters would do to the system calls that it is to make for us. Some filters kill: so their
// programs are run here first, on the very arguments.
import { CannotError } from '../errors/index.js';
import { errnoName, readSeccompFilter, readStatus } from '../linux/index.js';

/** struct seccomp_data, include/uapi/linux/seccomp.h: nr, arch, instruction_pointer, args[6]. */
const DATA_SIZE = 64;
const DATA_ARCH = 4;
const DATA_ARGS = 16;
/** include/uapi/linux/audit.h: EM_X86_64 | __AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE */
const AUDIT_ARCH_X86_64 = 0xc000003e;

/** Actions of a filter; the one that is least as a signed number wins (kernel/seccomp.c). */
const ACTION_MASK = 0xffff0000;
const RET_LOG = 0x7ffc0000;
const RET_ALLOW = 0x7fff0000;
const ACTION_NAMES: ReadonlyMap<number, string> = new Map([
  [0x80000000, 'kill the process'],
  [0x00000000, 'kill the thread'],
  [0x00030000, 'send SIGSYS'],
  [0x00050000, 'fail'],
  [0x7fc00000, 'ask a supervisor'],
  [0x7ff00000, 'ask a tracer'],
]);

/** /proc/PID/status "Seccomp:", seccomp(2). */
export const SECCOMP_FILTER = '2';

/** Classes, sizes, modes and operations of classic BPF, include/uapi/linux/bpf_common.h. */
const CLASS = { ld: 0, ldx: 1, st: 2, stx: 3, alu: 4, jmp: 5, ret: 6, misc: 7 } as const;
const MODE = { imm: 0x00, abs: 0x20, mem: 0x60, len: 0x80 } as const;
const SOURCE_X = 0x08;
const RETURN_A = 0x10;
const TAX = 0x00;
const SCRATCH_WORDS = 16;

/** A system call with the arguments that it will have. */
export interface PlannedCall {
  readonly name: string;
  readonly number: number;
  readonly arguments: readonly number[];
}

/** Runs one filter program (struct sock_filter[]) on a call; returns what it returns. Throws on what the kernel would refuse. */
export function runFilter(program: Uint8Array, call: PlannedCall): number {
  const code = new DataView(program.buffer, program.byteOffset, program.byteLength);
  const data = new DataView(new ArrayBuffer(DATA_SIZE));
  data.setInt32(0, call.number, true);
  data.setUint32(DATA_ARCH, AUDIT_ARCH_X86_64, true);
  call.arguments.forEach((value, i) => {
    data.setBigUint64(DATA_ARGS + 8 * i, BigInt.asUintN(64, BigInt(value)), true);
  });
  const scratch = new Uint32Array(SCRATCH_WORDS);
  let a = 0;
  let x = 0;
  for (let pc = 0; pc * 8 < program.length; pc++) {
    const opcode = code.getUint16(pc * 8, true);
    const jumpTrue = code.getUint8(pc * 8 + 2);
    const jumpFalse = code.getUint8(pc * 8 + 3);
    const k = code.getUint32(pc * 8 + 4, true);
    const mode = opcode & 0xe0;
    const operand = (opcode & SOURCE_X) !== 0 ? x : k;
    switch (opcode & 7) {
      case CLASS.ld:
      case CLASS.ldx: {
        let value: number;
        if (mode === MODE.imm) value = k;
        else if (mode === MODE.mem) value = scratch[k];
        else if (mode === MODE.len) value = DATA_SIZE;
        else if (mode === MODE.abs) value = data.getUint32(k, true);
        else throw new RangeError(`a load of mode ${mode}`);
        if ((opcode & 7) === CLASS.ld) a = value;
        else x = value;
        break;
      }
      case CLASS.st:
        scratch[k] = a;
        break;
      case CLASS.stx:
        scratch[k] = x;
        break;
      case CLASS.alu:
        a = arithmetic(opcode & 0xf0, a, operand);
        break;
      case CLASS.jmp:
        pc += (opcode & 0xf0) === 0 ? k : compare(opcode & 0xf0, a, operand) ? jumpTrue : jumpFalse;
        break;
      case CLASS.ret:
        return (opcode & 0x18) === RETURN_A ? a : k;
      default:
        if ((opcode & 0xf8) === TAX) x = a;
        else a = x;
    }
  }
  throw new RangeError('the program ran over its end');
}

function arithmetic(operation: number, a: number, b: number): number {
  switch (operation) {
    case 0x00:
      return (a + b) >>> 0;
    case 0x10:
      return (a - b) >>> 0;
    case 0x20:
      return Math.imul(a, b) >>> 0;
    case 0x30:
      return b === 0 ? 0 : Math.floor(a / b);
    case 0x40:
      return (a | b) >>> 0;
    case 0x50:
      return (a & b) >>> 0;
    case 0x60:
      return b > 31 ? 0 : (a << b) >>> 0;
    case 0x70:
      return b > 31 ? 0 : a >>> b;
    case 0x80:
      return -a >>> 0;
    case 0x90:
      return b === 0 ? 0 : a % b;
    default:
      return (a ^ b) >>> 0;
  }
}

function compare(operation: number, a: number, b: number): boolean {
  switch (operation) {
    case 0x10:
      return a === b;
    case 0x20:
      return a > b;
    case 0x30:
      return a >= b;
    default:
      return (a & b) !== 0;
  }
}

/**
 * Sees that all filters of a held thread let the calls through.
 *
 * @throws CannotError SECCOMP with the call and what would become of it
 */
export function checkSeccomp(pid: number, tid: number, calls: readonly PlannedCall[]): void {
  const refusal = seccompRefusal(tid, calls);
  if (refusal === undefined) return;
  throw new CannotError('SECCOMP', { tried: `let process ${pid} make system calls for us`, ...refusal });
}

/** How many filters a process has, in its status. */
const FILTER_COUNT = 'Seccomp_filters';

/** True if a process that safepoke has started has no filters but those that it has from safepoke. */
export function hasOurFilters(pid: number): boolean {
  return readStatus(pid)?.get(FILTER_COUNT) === readStatus(process.pid)?.get(FILTER_COUNT);
}

/** True if no filter minds the calls: the thread has none, or is held and all let them through. */
export function mayCall(pid: number, tid: number, calls: readonly PlannedCall[]): boolean {
  return readStatus(pid, tid)?.get('Seccomp') !== SECCOMP_FILTER || seccompRefusal(tid, calls) === undefined;
}

/** Why all filters of a held thread do not let the calls through, and what to do about it; undefined if they do. */
export function seccompRefusal(
  tid: number,
  calls: readonly PlannedCall[],
): { readonly why: string; readonly next: string } | undefined {
  for (let index = 0; ; index++) {
    const program = readSeccompFilter(tid, index);
    if (program === undefined) return undefined;
    if (typeof program === 'number') {
      return {
        why: `it has seccomp filters, which the kernel does not let us read (${errnoName(-program)})`,
        next: 'run safepoke as root in the initial namespace (CAP_SYS_ADMIN), so that it can see whether they allow it',
      };
    }
    for (const call of calls) {
      const action = (runFilter(program, call) & ACTION_MASK) >>> 0;
      if (action === RET_ALLOW || action === RET_LOG) continue;
      const would = ACTION_NAMES.get(action) ?? `act by 0x${action.toString(16)}`;
      return {
        why: `a seccomp filter would ${would} at ${call.name}`,
        next: 'start it with `safepoke run`, or with a filter that allows that call',
      };
    }
  }
}
