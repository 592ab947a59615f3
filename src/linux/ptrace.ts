// ptrace(2) and wait4(2), as thin as they can be. Everything here acts on one thread of the target at a time and must be
// called from one and the same operating-system thread: the kernel ties tracees to the thread that seized them.
import { SIGNAL_SET_BYTES } from './abi.js';
import { ERRNO, SYS, addressOf, systemCall, systemCallBuffer2, systemCallBuffer4 } from './system-call.js';

/** Requests, include/uapi/linux/ptrace.h and arch/x86/include/uapi/asm/ptrace-abi.h. */
export const PTRACE_REQUEST = {
  cont: 7,
  systemCall: 24,
  getRegs: 12,
  setRegs: 13,
  detach: 17,
  seize: 0x4206,
  interrupt: 0x4207,
  getSignalInfo: 0x4202,
  getRegisterSet: 0x4204,
  getSignalMask: 0x420a,
  setSignalMask: 0x420b,
  seccompGetFilter: 0x420c,
} as const;

export const SIGTRAP = 5;
/** Makes the stops of PTRACE_SYSCALL known by a signal number of their own, which is their si_code as well (ptrace_notify in kernel/signal.c). */
export const PTRACE_O_TRACESYSGOOD = 0x1;
export const SYSTEM_CALL_STOP = SIGTRAP | 0x80;
export const PTRACE_O_TRACEEXEC = 0x10;
export const PTRACE_O_EXITKILL = 0x100000;
export const PTRACE_EVENT_EXEC = 4;
/** Reported for PTRACE_INTERRUPT and for group stops of a seized thread. */
export const PTRACE_EVENT_STOP = 128;

/** Options of wait4(2), include/uapi/linux/wait.h. WAIT_ALL is __WALL: children of every kind. */
export const WNOHANG = 1;
export const WAIT_ALL = 0x40000000;

/** Registers of a stopped thread: struct user_regs_struct, arch/x86/include/asm/user_64.h: 27 words of eight bytes. */
export const REGISTER_NAMES = [
  'r15',
  'r14',
  'r13',
  'r12',
  'rbp',
  'rbx',
  'r11',
  'r10',
  'r9',
  'r8',
  'rax',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'orig_rax',
  'rip',
  'cs',
  'eflags',
  'rsp',
  'ss',
  'fs_base',
  'gs_base',
  'ds',
  'es',
  'fs',
  'gs',
] as const;
export type RegisterName = (typeof REGISTER_NAMES)[number];

const REGISTERS_SIZE = REGISTER_NAMES.length * 8;
const registerIndex = new Map(REGISTER_NAMES.map((name, index) => [name, index]));

/** A copy of a thread's registers. Reading one needs no system call. */
export class Registers {
  readonly #words: BigUint64Array;
  readonly #from: number;

  /** Those in `words` from index `from` on: of many threads there is one array. */
  constructor(words: BigUint64Array = new BigUint64Array(REGISTER_NAMES.length), from = 0) {
    this.#words = words;
    this.#from = from;
  }

  get(name: RegisterName): bigint {
    return this.#words[this.#from + (registerIndex.get(name) ?? 0)];
  }

  set(name: RegisterName, value: bigint): this {
    this.#words[this.#from + (registerIndex.get(name) ?? 0)] = BigInt.asUintN(64, value);
    return this;
  }

  copy(): Registers {
    return new Registers(this.#words.slice(this.#from, this.#from + REGISTER_NAMES.length));
  }

  get bytes(): Uint8Array {
    return new Uint8Array(this.#words.buffer, this.#words.byteOffset + this.#from * 8, REGISTERS_SIZE);
  }
}

/** Each returns 0, or -errno. */
export const ptrace = {
  seize: (tid: number, options: number): number =>
    systemCall(SYS.ptrace, PTRACE_REQUEST.seize, tid, 0, options),
  interrupt: (tid: number): number => systemCall(SYS.ptrace, PTRACE_REQUEST.interrupt, tid, 0, 0),
  /** Detaches and delivers `signal` (0: none). */
  detach: (tid: number, signal: number): number =>
    systemCall(SYS.ptrace, PTRACE_REQUEST.detach, tid, 0, signal),
  cont: (tid: number, signal: number): number => systemCall(SYS.ptrace, PTRACE_REQUEST.cont, tid, 0, signal),
  /**
   * Lets it run to the next entry into a system call, or the end of the one that it is in. There is no single-stepping here: a
   * thread whose tracer dies between two steps keeps the trap flag, and its next instruction kills the process.
   */
  contToSystemCall: (tid: number): number => systemCall(SYS.ptrace, PTRACE_REQUEST.systemCall, tid, 0, 0),
  getRegisters: (tid: number, into: Registers): number =>
    systemCallBuffer4(SYS.ptrace, PTRACE_REQUEST.getRegs, tid, 0, into.bytes),
  setRegisters: (tid: number, from: Registers): number =>
    systemCallBuffer4(SYS.ptrace, PTRACE_REQUEST.setRegs, tid, 0, from.bytes),
};

/** siginfo_t: si_signo, and si_code, in which the kernel tells of an event of ptrace's above the low byte. */
const SIGNAL_INFO_SIZE = 128;
const SI_CODE = 8;

/** The signal that a stopped thread is about to get; 0 if it stopped for ptrace, or runs. */
export function stoppedBySignal(tid: number): number {
  const info = new Uint8Array(SIGNAL_INFO_SIZE);
  if (systemCallBuffer4(SYS.ptrace, PTRACE_REQUEST.getSignalInfo, tid, 0, info) < 0) return 0;
  const view = new DataView(info.buffer);
  const code = view.getInt32(SI_CODE, true);
  const isOurs = code >> 8 === PTRACE_EVENT_STOP || code === SYSTEM_CALL_STOP;
  return isOurs ? 0 : view.getInt32(0, true);
}

/** NT_X86_XSTATE, include/uapi/linux/elf.h: the floating-point and vector registers as the processor saves them. */
const NT_X86_XSTATE = 0x202;
/** AMX tiles make it 11 KiB; nothing known is larger. */
const MAX_XSTATE = 16 << 10;

/** The extended state of a stopped thread, in the form of XSAVE (Intel SDM vol. 1, 13.4); undefined where there is none. */
export function readExtendedState(tid: number): Uint8Array | undefined {
  const state = new Uint8Array(MAX_XSTATE);
  const vector = new Uint8Array(16);
  const view = new DataView(vector.buffer);
  view.setBigUint64(0, addressOf(state), true);
  view.setBigUint64(8, BigInt(MAX_XSTATE), true);
  const result = systemCallBuffer4(SYS.ptrace, PTRACE_REQUEST.getRegisterSet, tid, NT_X86_XSTATE, vector);
  return result < 0 ? undefined : state.subarray(0, Number(view.getBigUint64(8, true)));
}

/** Most instructions of a seccomp filter (BPF_MAXINSNS), and bytes of one (struct sock_filter). */
const MAX_FILTER_INSTRUCTIONS = 4096;
const FILTER_INSTRUCTION_SIZE = 8;

/**
 * The program of a stopped thread's seccomp filter `index`, newest first, as struct sock_filter; undefined behind the last.
 * Returns -errno as a number where the kernel does not tell (it wants CAP_SYS_ADMIN).
 */
export function readSeccompFilter(tid: number, index: number): Uint8Array | number | undefined {
  const program = new Uint8Array(MAX_FILTER_INSTRUCTIONS * FILTER_INSTRUCTION_SIZE);
  const count = systemCallBuffer4(SYS.ptrace, PTRACE_REQUEST.seccompGetFilter, tid, index, program);
  if (count === -ERRNO.ENOENT) return undefined;
  return count < 0 ? count : program.slice(0, count * FILTER_INSTRUCTION_SIZE);
}

function readSignalMask(tid: number): Uint8Array {
  const mask = new Uint8Array(SIGNAL_SET_BYTES);
  systemCallBuffer4(SYS.ptrace, PTRACE_REQUEST.getSignalMask, tid, SIGNAL_SET_BYTES, mask);
  return mask;
}

function writeSignalMask(tid: number, mask: Uint8Array): void {
  systemCallBuffer4(SYS.ptrace, PTRACE_REQUEST.setSignalMask, tid, SIGNAL_SET_BYTES, mask);
}

/** The mask of blocked signals of a stopped thread. */
export const ptraceSignalMask = {
  get: readSignalMask,
  set: writeSignalMask,
  /** Every signal. */
  all: new Uint8Array(SIGNAL_SET_BYTES).fill(0xff),
};

/** What wait4 said of a thread. */
export type WaitResult =
  | { readonly kind: 'stopped'; readonly tid: number; readonly signal: number; readonly event: number }
  | { readonly kind: 'exited'; readonly tid: number; readonly status: number }
  | { readonly kind: 'killed'; readonly tid: number; readonly signal: number }
  | { readonly kind: 'none' }
  | { readonly kind: 'error'; readonly errno: number };

const statusBuffer = new Uint8Array(8);
const statusView = new DataView(statusBuffer.buffer);

/** Waits for a change of `tid` (a thread, traced or a child; -1: any). `block` false polls. */
export function waitForThread(tid: number, block: boolean, untraced = false): WaitResult {
  const WUNTRACED = 2;
  let result: number;
  const EINTR = 4;
  do {
    result = systemCallBuffer2(
      SYS.wait4,
      tid,
      statusBuffer,
      WAIT_ALL | (block ? 0 : WNOHANG) | (untraced ? WUNTRACED : 0),
    );
  } while (result === -EINTR);
  if (result < 0) return { kind: 'error', errno: -result };
  if (result === 0) return { kind: 'none' };
  const status = statusView.getInt32(0, true);
  return decodeWaitStatus(result, status);
}

/** The encoding of wait statuses: low 7 bits the signal, 0x7f stopped, bits 8..15 exit status or stop signal, then the event. */
export function decodeWaitStatus(tid: number, status: number): WaitResult {
  const low = status & 0x7f;
  if (low === 0x7f) return { kind: 'stopped', tid, signal: (status >> 8) & 0xff, event: status >> 16 };
  if (low === 0) return { kind: 'exited', tid, status: (status >> 8) & 0xff };
  return { kind: 'killed', tid, signal: low };
}
