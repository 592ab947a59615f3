// Whether the threads of a process have thread pointers of their own at all times, which the recorder tells them apart by. Nearly all have:
// the C library sets one as a thread begins, and nothing changes it. Emulators, unikernels and some runtimes do, for a while; small static
// programs have none. A program that makes threads without the library may give them any, or one that another has.
import type { ElfFile } from '../elf/index.js';
import { SYS } from '../linux/index.js';
import type { Module } from '../target/index.js';

/** ARCH_SET_FS, asm/prctl.h, as an immediate operand. */
const ARCH_SET_FS = Buffer.from([0x02, 0x10, 0x00, 0x00]);
/** `mov r32, imm32` (B8 + register): Intel SDM, vol. 2B, "MOV". */
const MOV_IMM32 = [0xb8, 0xbf] as const;
/** Two bytes of each of `wrfsbase` (F3 REX.W 0F AE /2) and others, of which ModRM tells: Intel SDM, vol. 2D, "WRFSBASE". */
const GROUP_15 = Buffer.from([0x0f, 0xae]);
const WRFSBASE = [0xd0, 0xd7] as const;
const REP = 0xf3;
/** REX prefixes: Intel SDM, vol. 2A, 2.2.1. */
const REX = [0x40, 0x4f] as const;
const SYSCALL = Buffer.from([0x0f, 0x05]);
/** The number of arch_prctl among system calls, for who has the C library's syscall() make it. */
const ARCH_PRCTL = Buffer.from([0x9e, 0x00, 0x00, 0x00]);
/** Larger pieces of code are not looked through: browsers, which would have to be read whole. */
const MOST_CODE = 128 << 20;
/** What belongs to one call stands within so many bytes. */
const NEAR = 128;
/** `mov eax, SYS_clone`, with a system call behind it. */
const MOV_EAX_CLONE = Buffer.from([0xb8, SYS.clone, 0x00, 0x00, 0x00]);
/** The C library's clone(), as a whole name in a table of names. */
const CLONE_NAME = '\0clone\0';
/**
 * CLONE_THREAD, with CLONE_SIGHAND and CLONE_VM, without which the kernel makes no thread; the lowest byte is a signal, which threads send
 * none of, and what is in the highest is of new namespaces and the like: linux/sched.h.
 */
const THREAD_FLAGS = { mask: 0x7f01_09ff, bits: 0x1_0900 } as const;
/** `add`, `or` of eax with imm32; of any register, and `lea` and `mov`, with ModRM between: Intel SDM, vol. 2. */
const ON_EAX: ReadonlySet<number> = new Set([0x05, 0x0d]);
const ON_REGISTER: ReadonlySet<number> = new Set([0x81, 0x8d, 0xc7]);
/** Bytes of an operand. */
const IMMEDIATE = 4;

/**
 * Who sets the thread pointers of a process. `library`: the C library alone, once for each thread. `program`: threads that the program makes
 * may have others: each is to be looked at. `changes`: they change as it runs.
 */
export type ThreadPointerSetter = 'library' | 'program' | 'changes';

/** Decided by the files alone. */
export function threadPointerSetter(modules: readonly Module[]): ThreadPointerSetter {
  const interpreter = modules.find(({ isExecutable }) => isExecutable)?.elf().interpreter;
  let changes = 0;
  let makesThreads = false;
  for (const module of modules) {
    const elf = module.elf();
    // The loader and the C library set it for each thread, once.
    if (elf.soname !== undefined && /^(?:ld-linux|ld-musl|libc\.|libpthread\.)/.test(elf.soname)) continue;
    const found = look(elf);
    changes += found.changes;
    makesThreads ||= found.makesThreads;
  }
  // A static program sets its own: once, unless it is one that has none. What makes threads there may be the library in it.
  const isStatic = interpreter === undefined;
  if (isStatic ? changes !== 1 : changes > 0) return 'changes';
  return makesThreads || isStatic ? 'program' : 'library';
}

function isWithin(byte: number, [first, last]: readonly [number, number]): boolean {
  return byte >= first && byte <= last;
}

/** At how many places a file's code may change the thread pointer, and whether it may make threads without the library. */
function look(elf: ElfFile): { changes: number; makesThreads: boolean } {
  const clones = elf.mentions(CLONE_NAME);
  let makesThreads = false;
  const isCalled = elf.mentions('arch_prctl');
  let places = 0;
  for (const segment of elf.loaded) {
    if (!segment.executable || segment.fileSize > MOST_CODE) continue;
    const view = elf.segmentBytes(segment);
    if (view === undefined) continue;
    const code = Buffer.from(view.buffer, view.byteOffset, view.byteLength);
    for (let at = code.indexOf(ARCH_SET_FS); at > 0; at = code.indexOf(ARCH_SET_FS, at + 1)) {
      if (!isWithin(code[at - 1], MOV_IMM32)) continue;
      const behind = code.subarray(at, at + NEAR);
      const around = code.subarray(Math.max(0, at - NEAR), at + NEAR);
      if (isCalled || behind.includes(SYSCALL) || around.includes(ARCH_PRCTL)) places++;
    }
    for (let at = code.indexOf(GROUP_15); at >= 0; at = code.indexOf(GROUP_15, at + 1)) {
      if (!isWithin(code[at + 2] ?? 0, WRFSBASE)) continue;
      if (code[at - 1] === REP || (isWithin(code[at - 1] ?? 0, REX) && code[at - 2] === REP)) places++;
    }
    for (let at = code.indexOf(MOV_EAX_CLONE); at >= 0; at = code.indexOf(MOV_EAX_CLONE, at + 1))
      makesThreads ||= code.subarray(at, at + NEAR).includes(SYSCALL);
    makesThreads ||= clones && hasThreadFlags(code);
  }
  return { changes: places, makesThreads };
}

/** Something is computed with the flags of a thread: where a program calls clone() at all, they are meant for it. */
function hasThreadFlags(code: Buffer): boolean {
  for (let at = 2; at + IMMEDIATE <= code.length; at++) {
    if ((code.readInt32LE(at) & THREAD_FLAGS.mask) !== THREAD_FLAGS.bits) continue;
    const [before, last] = [code[at - 2], code[at - 1]];
    if (isWithin(last, MOV_IMM32) || ON_EAX.has(last) || ON_REGISTER.has(before)) return true;
  }
  return false;
}
