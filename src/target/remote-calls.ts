// System calls made by a thread of the target for us. The thread is pointed at a `syscall` instruction that is already in
// the process (the vdso has one), let into the call and out of it, and put back exactly as it was. All its signals are blocked
// meanwhile. It is not single-stepped: the kernel tells of a step by a SIGTRAP that cannot be blocked, and a thread that has
// SIGTRAP blocked or ignored would lose that, and the process its handler.
import { CannotError } from '../errors/index.js';
import {
  PTRACE_EVENT_STOP,
  SYSCALL_STOP_BIT,
  errnoName,
  ptrace,
  ptraceSignalMask,
  readMaps,
  waitForThread,
  type WaitResult,
  type Registers,
} from '../linux/index.js';
import type { HeldThread } from './hold.js';
import type { TargetMemory } from './memory.js';

/** The bytes of `syscall`. */
const SYSCALL = [0x0f, 0x05] as const;
/** Bytes below the stack pointer that belong to the function that runs (System V ABI, 3.2.2), and then some. */
const BELOW_RED_ZONE = 512;
const NO_SYSTEM_CALL = -1n;
const SIGTRAP = 5;
const MAX_STOP_REPORTS = 8;

export function findSyscallInstruction(pid: number, memory: TargetMemory): bigint {
  const executable = (readMaps(pid) ?? []).filter((m) => m.permissions.includes('x'));
  const candidates = [
    ...executable.filter((m) => m.path === '[vdso]'),
    ...executable.filter((m) => m.path.startsWith('/')),
  ];
  for (const mapping of candidates) {
    const bytes = memory.readSome(mapping.start, Math.min(mapping.end - mapping.start, 4 << 20));
    for (let i = 0; i + 1 < bytes.length; i++) {
      if (bytes[i] === SYSCALL[0] && bytes[i + 1] === SYSCALL[1]) return BigInt(mapping.start + i);
    }
  }
  throw new CannotError('NO_SYSCALL', {
    tried: `find a system call instruction in process ${pid}`,
    why: 'neither the vdso nor any file that it maps has one',
    next: 'report this with /proc/PID/maps',
  });
}

/** A series of remote system calls on one held thread. */
export class RemoteCalls {
  readonly #thread: HeldThread;
  readonly #memory: TargetMemory;
  readonly #syscall: bigint;

  constructor(thread: HeldThread, memory: TargetMemory, syscallInstruction: bigint) {
    this.#thread = thread;
    this.#memory = memory;
    this.#syscall = syscallInstruction;
  }

  /**
   * Runs `work`, which may use `call` and `string`; the thread's registers, signal mask and stack are put back whatever
   * happens.
   */
  run<T>(work: (call: RemoteCall, string: (text: string) => bigint) => T): T {
    const { tid, registers } = this.#thread;
    const saved = registers.copy();
    const mask = ptraceSignalMask.block(tid);
    const scratch = Number(registers.get('rsp')) - BELOW_RED_ZONE;
    const overwritten = new Map<number, Uint8Array>();
    try {
      return work(
        (n, ...args) => this.#call(saved, n, args),
        (text) => {
          const bytes = new TextEncoder().encode(`${text}\0`);
          if (!overwritten.has(scratch))
            overwritten.set(scratch, this.#memory.read(scratch, BELOW_RED_ZONE / 2));
          this.#memory.write(scratch, bytes);
          return BigInt(scratch);
        },
      );
    } finally {
      for (const [address, bytes] of overwritten) this.#memory.write(address, bytes);
      ptrace.setRegisters(tid, saved);
      ptraceSignalMask.restore(tid, mask);
    }
  }

  #call(saved: Registers, n: number, args: readonly (number | bigint)[]): number {
    const { tid } = this.#thread;
    const registers = saved.copy();
    const argumentRegisters = ['rdi', 'rsi', 'rdx', 'r10', 'r8', 'r9'] as const;
    args.forEach((value, i) => registers.set(argumentRegisters[i], BigInt(value)));
    registers.set('rax', BigInt(n)).set('orig_rax', NO_SYSTEM_CALL).set('rip', this.#syscall);
    ptrace.setRegisters(tid, registers);
    this.#toSystemCall(n);
    this.#toSystemCall(n);
    ptrace.getRegisters(tid, registers);
    return Number(BigInt.asIntN(64, registers.get('rax')));
  }
  /** Lets the thread go on until it enters a system call, or, if it is in one, leaves it. */
  #toSystemCall(n: number): void {
    const { tid } = this.#thread;
    let result: WaitResult;
    let tries = 0;
    do {
      ptrace.toSystemCall(tid);
      result = waitForThread(tid, true);
      // A process that job control has stopped (SIGSTOP) may tell so once more before it goes on.
    } while (result.kind === 'stopped' && result.event === PTRACE_EVENT_STOP && ++tries < MAX_STOP_REPORTS);
    if (result.kind === 'stopped' && result.signal === (SIGTRAP | SYSCALL_STOP_BIT)) return;
    throw new CannotError('REMOTE_CALL', {
      tried: `make thread ${tid} run system call ${n}`,
      why: result.kind === 'stopped' ? `signal ${result.signal} came instead` : 'the thread ended',
      next: 'see whether the process still runs, and attach again if it does',
    });
  }
}

/** Returns what the kernel does: the result, or -errno. */
export type RemoteCall = (n: number, ...args: (number | bigint)[]) => number;

/** Throws where a remote call failed. `what` completes "cannot ...". */
export function expectSuccess(result: number, what: string, next: string): number {
  if (result >= 0 || result < -4095) return result;
  throw new CannotError('REMOTE_CALL', { tried: what, why: errnoName(-result), next });
}
