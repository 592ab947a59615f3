// What makes it safe to be killed while a thread of the target works for us. Before the thread is pointed anywhere, a signal
// frame with all that it was doing lies on its stack, and the instruction behind every borrowed `syscall` returns into
// rt_sigreturn. A thread that loses its tracer at any point makes at most one system call more, and then goes on as it was.
import { SYS, readExtendedState, readMaps, type Mapping, type Registers } from '../linux/index.js';
import type { TargetMemory } from './memory.js';
import { makesCallAgain } from './stops.js';

/** `syscall; ret`: what remote calls are made with. */
const SYSCALL_RET = Uint8Array.of(0x0f, 0x05, 0xc3);
/** `mov rax, 15; syscall`: the C libraries' way back from a signal handler. */
const SIGRETURN = Uint8Array.of(0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05);
/** `pop rax; ret` */
const POP_RAX_RET = Uint8Array.of(0x58, 0xc3);
/** `syscall` alone */
const SYSCALL = Uint8Array.of(0x0f, 0x05);

const MAX_SEARCHED = 8 << 20;

/** Instructions of the target that are lent for system calls. */
export interface BorrowedCode {
  /** Address of a `syscall`, followed by `ret` if `wayBack` is there. */
  readonly syscall: bigint;
  /** Words to pop from the stack, the first by that `ret`, that make it run rt_sigreturn; undefined where there is no such code. */
  readonly wayBack: readonly bigint[] | undefined;
}

/** Looks for the instructions in the files that the process maps. Undefined if there is no `syscall` at all. */
export function findBorrowedCode(pid: number, memory: TargetMemory): BorrowedCode | undefined {
  const executable = (readMaps(pid) ?? []).filter((m) => m.permissions.includes('x'));
  const searched = [
    ...executable.filter((m) => m.path === '[vdso]'),
    ...executable.filter((m) => m.path.startsWith('/')),
  ];
  const texts = new Map<Mapping, Buffer>();
  const find = (pattern: Uint8Array): bigint | undefined => {
    for (const mapping of searched) {
      let bytes = texts.get(mapping);
      if (bytes === undefined) {
        const some = memory.readSome(mapping.start, Math.min(mapping.end - mapping.start, MAX_SEARCHED));
        bytes = Buffer.from(some.buffer, some.byteOffset, some.length);
        texts.set(mapping, bytes);
      }
      const at = bytes.indexOf(pattern);
      if (at >= 0) return BigInt(mapping.start + at);
    }
    return undefined;
  };
  const syscallRet = find(SYSCALL_RET);
  if (syscallRet === undefined) {
    const syscall = find(SYSCALL);
    return syscall === undefined ? undefined : { syscall, wayBack: undefined };
  }
  const sigreturn = find(SIGRETURN);
  if (sigreturn !== undefined) return { syscall: syscallRet, wayBack: [sigreturn] };
  const popRax = find(POP_RAX_RET);
  return {
    syscall: syscallRet,
    wayBack: popRax === undefined ? undefined : [popRax, BigInt(SYS.rt_sigreturn), syscallRet],
  };
}

/** struct ucontext and struct sigcontext of x86-64 (arch/x86/include/uapi/asm/{ucontext,sigcontext}.h): byte offsets. */
const UCONTEXT = {
  flags: 0,
  stackFlags: 24,
  registers: 40,
  segments: 184,
  fpstate: 224,
  mask: 296,
  size: 304,
} as const;
/** Order of the general registers in struct sigcontext. */
const SIGCONTEXT_ORDER = [
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rdi',
  'rsi',
  'rbp',
  'rbx',
  'rdx',
  'rax',
  'rcx',
  'rsp',
  'rip',
  'eflags',
] as const;
/** UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS */
const UC_FLAGS = 7n;
/** No flags that sigaltstack(2) knows: the kernel then leaves the alternate stack as it is. */
const KEEP_ALTSTACK = 0xff;
/** struct _fpx_sw_bytes, at the end of the legacy area of the extended state; its marks. */
const SOFTWARE_BYTES = 464;
const FP_XSTATE_MAGIC1 = 0x46505853;
const FP_XSTATE_MAGIC2 = 0x46505845;
const FP_XSTATE_MAGIC2_SIZE = 4;
/** XRSTOR wants its operand at a multiple of this. */
const XSTATE_ALIGNMENT = 64;
/** Bytes below the stack pointer that belong to the function that runs (System V ABI, 3.2.2). */
const RED_ZONE = 128;

const EINTR = -4n;
export const SYSCALL_LENGTH = 2n;

/** Calls that the kernel, once it has begun them again, goes on calling restart_syscall. */
const RESTARTED: ReadonlySet<number> = new Set([SYS.poll, SYS.nanosleep, SYS.futex, SYS.clock_nanosleep]);
/** `mov eax, NUMBER` right before the `syscall`, as C libraries have it. */
const MOV_EAX = 0xb8;
const MOV_EAX_LENGTH = 5;

/** Bytes for the stack of a held thread. */
export interface ReturnFrame {
  /** Where they go, and what the stack pointer is to be while the thread works for us. */
  readonly address: number;
  readonly bytes: Uint8Array;
}

/**
 * The registers as rt_sigreturn is to set them. A call that the stop interrupted is made again: not as the kernel would (it knows
 * how much of a timeout is left), but whole, for rt_sigreturn forgets where it was.
 */
function resumed(registers: Registers, memory: TargetMemory): Registers {
  if (!makesCallAgain(registers)) return registers;
  const call = registers.get('orig_rax');
  const begun =
    call === BigInt(SYS.restart_syscall) ? restartedCall(Number(registers.get('rip')), memory) : call;
  if (begun === undefined) return registers.copy().set('rax', EINTR);
  return registers
    .copy()
    .set('rax', begun)
    .set('rip', registers.get('rip') - SYSCALL_LENGTH);
}

/**
 * The call behind a restart_syscall, whose arguments are still in their registers, by the instruction that chose it. Undefined if
 * another one did.
 */
function restartedCall(rip: number, memory: TargetMemory): bigint | undefined {
  const bytes = memory.readSome(rip - Number(SYSCALL_LENGTH) - MOV_EAX_LENGTH, MOV_EAX_LENGTH);
  if (bytes.length < MOV_EAX_LENGTH || bytes[0] !== MOV_EAX) return undefined;
  const call = new DataView(bytes.buffer, bytes.byteOffset).getUint32(1, true);
  return RESTARTED.has(call) ? BigInt(call) : undefined;
}

/** Builds the frame for a held thread with these registers and signal mask; undefined if its vector registers cannot be read. */
export function buildReturnFrame(
  tid: number,
  registers: Registers,
  mask: Uint8Array,
  wayBack: readonly bigint[],
  memory: TargetMemory,
): ReturnFrame | undefined {
  const state = readExtendedState(tid);
  if (state === undefined || state.length < SOFTWARE_BYTES + 48) return undefined;
  const chain = wayBack.length * 8;
  const top = Number(registers.get('rsp')) - RED_ZONE;
  const stateAt =
    Math.floor((top - state.length - FP_XSTATE_MAGIC2_SIZE) / XSTATE_ALIGNMENT) * XSTATE_ALIGNMENT;
  const address = Math.floor((stateAt - UCONTEXT.size - chain) / 16) * 16;
  const bytes = new Uint8Array(top - address);
  const view = new DataView(bytes.buffer);
  wayBack.forEach((word, i) => {
    view.setBigUint64(i * 8, word, true);
  });
  view.setBigUint64(chain + UCONTEXT.flags, UC_FLAGS, true);
  view.setUint32(chain + UCONTEXT.stackFlags, KEEP_ALTSTACK, true);
  const restored = resumed(registers, memory);
  SIGCONTEXT_ORDER.forEach((name, i) => {
    view.setBigUint64(chain + UCONTEXT.registers + i * 8, restored.get(name), true);
  });
  view.setUint16(chain + UCONTEXT.segments, Number(registers.get('cs')), true);
  view.setUint16(chain + UCONTEXT.segments + 6, Number(registers.get('ss')), true);
  view.setBigUint64(chain + UCONTEXT.fpstate, BigInt(stateAt), true);
  bytes.set(mask, chain + UCONTEXT.mask);
  const at = stateAt - address;
  bytes.set(state, at);
  // Where ptrace shows which features are enabled, a signal frame says how long it is and what is in it.
  const features = view.getBigUint64(at + SOFTWARE_BYTES, true);
  view.setUint32(at + SOFTWARE_BYTES, FP_XSTATE_MAGIC1, true);
  view.setUint32(at + SOFTWARE_BYTES + 4, state.length + FP_XSTATE_MAGIC2_SIZE, true);
  view.setBigUint64(at + SOFTWARE_BYTES + 8, features, true);
  view.setUint32(at + SOFTWARE_BYTES + 16, state.length, true);
  view.setUint32(at + state.length, FP_XSTATE_MAGIC2, true);
  return { address, bytes };
}
