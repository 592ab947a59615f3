// The one door to the C library. `syscall(2)` is declared with fixed arguments: on x86-64 (System V ABI, 3.5.7) a variadic
// function takes its integer arguments in the same registers as any other.
import koffi from 'koffi';
import { constants } from 'node:os';
import { MADV, MAP, PROT } from './abi.js';

const libc = koffi.load(null);
const syscallIntegers = libc.func(
  'int64_t syscall(int64_t n, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)',
) as (...args: (number | bigint)[]) => number | bigint;
const syscallPointer4 = libc.func('int64_t syscall(int64_t n, int64_t a, int64_t b, int64_t c, void *d)') as (
  n: number,
  a: number | bigint,
  b: number | bigint,
  c: number | bigint,
  d: Uint8Array,
) => number | bigint;
const syscallPointer2 = libc.func('int64_t syscall(int64_t n, int64_t a, void *b, int64_t c, int64_t d)') as (
  n: number,
  a: number | bigint,
  b: Uint8Array,
  c: number | bigint,
  d: number | bigint,
) => number | bigint;
const syscallPointer3 = libc.func('int64_t syscall(int64_t n, int64_t a, int64_t b, void *c)') as (
  n: number,
  a: number | bigint,
  b: number | bigint,
  c: Uint8Array,
) => number | bigint;
const mmapFunction = libc.func(
  'void *mmap(void *addr, size_t len, int prot, int flags, int fd, int64_t off)',
) as (addr: bigint | null, len: bigint, prot: number, flags: number, fd: number, off: number) => bigint;

/** System call numbers, arch/x86/entry/syscalls/syscall_64.tbl. */
export const SYS = {
  read: 0,
  write: 1,
  open: 2,
  close: 3,
  poll: 7,
  lseek: 8,
  mmap: 9,
  mprotect: 10,
  munmap: 11,
  rt_sigaction: 13,
  rt_sigprocmask: 14,
  rt_sigreturn: 15,
  ioctl: 16,
  pread64: 17,
  pwrite64: 18,
  mremap: 25,
  madvise: 28,
  nanosleep: 35,
  getpid: 39,
  getsockopt: 55,
  clone: 56,
  fork: 57,
  execve: 59,
  exit: 60,
  wait4: 61,
  kill: 62,
  fcntl: 72,
  flock: 73,
  ptrace: 101,
  setgroups: 116,
  setresuid: 117,
  setresgid: 119,
  capget: 125,
  capset: 126,
  getpriority: 140,
  setpriority: 141,
  sched_setscheduler: 144,
  sched_getscheduler: 145,
  munlock: 150,
  prctl: 157,
  setrlimit: 160,
  gettid: 186,
  getxattr: 191,
  futex: 202,
  restart_syscall: 219,
  timer_create: 222,
  timer_settime: 223,
  clock_gettime: 228,
  clock_nanosleep: 230,
  exit_group: 231,
  tgkill: 234,
  keyctl: 250,
  openat: 257,
  set_robust_list: 273,
  fallocate: 285,
  process_vm_readv: 310,
  kcmp: 312,
  sched_setattr: 314,
  memfd_create: 319,
  execveat: 322,
  membarrier: 324,
  pidfd_open: 434,
  close_range: 436,
  landlock_create_ruleset: 444,
  landlock_restrict_self: 446,
  pidfd_getfd: 438,
} as const;

const errnoNames = new Map(Object.entries(constants.errno).map(([name, value]) => [value, name]));

/** `EPERM` for 1, and so on; `errno N` where the number has no name. */
export function errnoName(errno: number): string {
  return errnoNames.get(errno) ?? `errno ${errno}`;
}

export const ERRNO = constants.errno;

/** A system call with integer arguments. Returns the result, or -errno as the kernel itself does. */
export function systemCall(
  n: number,
  a: number | bigint = 0,
  b: number | bigint = 0,
  c: number | bigint = 0,
  d: number | bigint = 0,
  e: number | bigint = 0,
  f: number | bigint = 0,
): number {
  const result = Number(syscallIntegers(n, a, b, c, d, e, f));
  return result === -1 ? -koffi.errno() : result;
}

/** A system call whose fourth argument points to `buffer` (ptrace's data, wait4's rusage). */
export function systemCallBuffer4(
  n: number,
  a: number | bigint,
  b: number | bigint,
  c: number | bigint,
  buffer: Uint8Array,
): number {
  const result = Number(syscallPointer4(n, a, b, c, buffer));
  return result === -1 ? -koffi.errno() : result;
}

/** A system call whose second argument points to `buffer` (wait4's status). */
export function systemCallBuffer2(
  n: number,
  a: number | bigint,
  buffer: Uint8Array,
  c: number | bigint = 0,
  d: number | bigint = 0,
): number {
  const result = Number(syscallPointer2(n, a, buffer, c, d));
  return result === -1 ? -koffi.errno() : result;
}

/** A system call whose third argument points to `buffer` (ioctl, sched_setscheduler). */
export function systemCallBuffer3(
  n: number,
  a: number | bigint,
  b: number | bigint,
  buffer: Uint8Array,
): number {
  const result = Number(syscallPointer3(n, a, b, buffer));
  return result === -1 ? -koffi.errno() : result;
}

/** A mapping in safepoke's own process; `bytes` looks straight at it, nothing is copied. */
export interface OwnMapping {
  readonly address: bigint;
  readonly bytes: ArrayBuffer;
  /** Has the kernel find memory for a part, page aligned, as if it were written to, which it is not. False: it could not, or is too old. */
  populate(offset: number, length: number): boolean;
  /** The caller must not touch `bytes` afterwards: there is nothing behind it. */
  unmap(): void;
}

/** Maps memory into safepoke's own process. `fd` -1 is anonymous memory; `offset` counts in the file. Throws an Error with the errno's name. */
export function mapOwn(length: number, prot: number, flags: number, fd: number, offset = 0): OwnMapping {
  const address = mmapFunction(null, BigInt(length), prot, flags, fd, offset);
  if (BigInt.asIntN(64, address) === -1n) {
    throw new Error(`mmap of ${length} bytes: ${errnoName(koffi.errno())}`);
  }
  const bytes = koffi.view(address, length);
  return {
    address,
    bytes,
    populate: (offset, length) =>
      systemCall(SYS.madvise, address + BigInt(offset), length, MADV.populateWrite) === 0,
    unmap: () => {
      systemCall(SYS.munmap, address, length);
    },
  };
}

/** Machine code placed in safepoke's own process: how it reads the time-stamp counter and forks without Node's help. */
export interface OwnCode {
  readonly address: bigint;
  /** Calls the code at `offset` with up to six integer arguments (System V ABI). */
  call(offset: number, ...args: (number | bigint)[]): bigint;
}

const ownCodePrototype = koffi.proto(
  'int64_t safepoke_own_code(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)',
);

/** Maps `code` executable (and then read-only) in safepoke's own process. */
export function placeOwnCode(code: Uint8Array): OwnCode {
  const mapping = mapOwn(code.length, PROT.read | PROT.write, MAP.private | MAP.anonymous, -1);
  new Uint8Array(mapping.bytes).set(code);
  const result = systemCall(SYS.mprotect, mapping.address, code.length, PROT.read | PROT.exec);
  if (result < 0) throw new Error(`mprotect of our own code: ${errnoName(-result)}`);
  return {
    address: mapping.address,
    call: (offset, ...args) => {
      const padded = [...args, 0, 0, 0, 0, 0, 0].slice(0, 6);
      return BigInt(
        koffi.call(mapping.address + BigInt(offset), ownCodePrototype, ...padded) as number | bigint,
      );
    },
  };
}

/** The address of a buffer's bytes, for structures that hold pointers. The buffer must stay alive and unmoved. */
export function addressOf(buffer: Uint8Array): bigint {
  return koffi.address(buffer);
}
