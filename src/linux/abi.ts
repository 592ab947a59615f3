// Numbers of the kernel's, and of C libraries, that several rooms need. Those of one place only stand there.

/** x86-64 has pages of this size, whatever larger ones there are besides. */
export const PAGE = 4096;

/** Start of the page that an address lies in. */
export function pageOf(address: number): number {
  return address - (address % PAGE);
}

/** The least number of whole pages that hold so many bytes, in bytes. */
export function roundToPage(bytes: number): number {
  return Math.ceil(bytes / PAGE) * PAGE;
}

/** include/uapi/asm-generic/mman-common.h and mman.h, include/uapi/linux/mman.h */
export const PROT = { none: 0, read: 1, write: 2, exec: 4 } as const;
export const MAP = {
  shared: 0x01,
  private: 0x02,
  fixed: 0x10,
  anonymous: 0x20,
  noReserve: 0x4000,
  fixedNoReplace: 0x100000,
} as const;
export const MREMAP = { mayMove: 1, fixed: 2, dontUnmap: 4 } as const;
/** `populateWrite` since Linux 5.14. */
export const MADV = {
  dontNeed: 4,
  remove: 9,
  dontFork: 10,
  dontDump: 16,
  wipeOnFork: 18,
  populateWrite: 23,
} as const;

/** include/uapi/linux/memfd.h */
export const MFD_CLOEXEC = 1;
export const MFD_ALLOW_SEALING = 2;

/** include/uapi/linux/futex.h: commands, their flag, and what the kernel adds to the word of a robust futex. */
export const FUTEX = { wait: 0, wake: 1, privateFlag: 128 } as const;
export const FUTEX_WAITERS = 0x8000_0000;
export const FUTEX_OWNER_DIED = 0x4000_0000;
/** As the number of those to wake. */
export const EVERYBODY = 0x7fff_ffff;

/**
 * Where glibc keeps a thread's id, counted from the thread pointer: struct pthread.tid, behind a tcbhead_t of 704 bytes and a list head;
 * so since 2.4. Never believed without a look.
 */
export const GLIBC_TID_OFFSET = 0x2d0;

/** Bytes of a signal set: the kernel's sigset_t of 64 signals. */
export const SIGNAL_SET_BYTES = 8;
/** struct sigaction as the kernel has it: handler, flags, restorer, mask; a word each. */
export const ACTION_WORDS = 4;
/** Of its flags, and of rt_sigprocmask: include/uapi/asm-generic/signal-defs.h, arch/x86/include/uapi/asm/signal.h. */
export const SA_SIGINFO = 0x4;
export const SA_RESTORER = 0x0400_0000;
export const SIG_UNBLOCK = 1;
/** Where a signal frame's struct ucontext has registers: arch/x86/include/uapi/asm/{ucontext,sigcontext}.h. */
export const UCONTEXT_REGISTERS = { rbp: 120, rax: 144, rcx: 152, rsp: 160, rip: 168 } as const;

/** Flags of open(2), the directory of openat(2) that is the current one, where lseek(2) counts from the beginning: include/uapi/linux/{fcntl,fs}.h. */
export const O_RDWR = 2;
export const O_CLOEXEC = 0x8_0000;
/** Opens nothing, and so does nothing to what it names; Node has no name for it. */
export const O_PATH = 0x20_0000;
export const AT_FDCWD = -100;
export const SEEK_SET = 0;
