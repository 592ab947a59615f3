// What the agent must know of threads, read from outside while they are held.
import type { KnownThread } from '../agent/index.js';
import {
  GLIBC_TID_OFFSET,
  MAP,
  PROT,
  hasGuard,
  mapOwn,
  mappingAt,
  readStatus,
  roundToPage,
  type Mapping,
  type OwnMapping,
} from '../linux/index.js';
import type { HeldThread, Module, TargetMemory } from '../target/index.js';
import { prepareToFindFrames } from './signal-frames.js';
import { savedInstructionPointers, stackFrom } from './stacks.js';

/** Where C libraries keep a thread's id, counted from the thread pointer: glibc, and musl's struct pthread.tid. Never believed without a look. */
const TID_OFFSETS = [GLIBC_TID_OFFSET, 0x30, 0x38] as const;

/**
 * The stack of the main thread grows into room that the kernel keeps free below it: at least 128 MiB (mmap_base in
 * arch/x86/mm/mmap.c), so that whatever lies there is that stack.
 */
const MAIN_STACK_ROOM = 128 << 20;

/** True if the program is in a PID namespace of its own, where its threads have other ids than we know them by. */
export function hasOwnTids(pid: number): boolean {
  return (readStatus(pid)?.get('NSpid')?.split(/\s+/) ?? []).length > 1;
}

/** A thread's id as the program itself sees it. */
export function namespaceTid(pid: number, tid: number): number {
  const ids = readStatus(pid, tid)?.get('NSpid')?.split(/\s+/) ?? [];
  return Number(ids.at(-1) ?? tid);
}

/** pid_t */
const TID_SIZE = 4;

function tidIn(bytes: Uint8Array): number | undefined {
  if (bytes.length < TID_SIZE) return undefined;
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
}

/** `mov eax, set_tid_address`, then `syscall`, then `mov [register + offset], eax`, whose second byte has these bits so. */
const SET_TID_ADDRESS = Uint8Array.of(0xb8, 0xda, 0, 0, 0);
const SYSCALL = Uint8Array.of(0x0f, 0x05);
const STORE_EAX = 0x89;
const STORE_EAX_NEAR = { mask: 0xf8, bits: 0x40 };

/** The offset at which musl's start-up code in a program stores the thread's id; 0 if there is no such code. */
function muslTidOffset(modules: readonly Module[]): number {
  for (const module of modules) {
    const elf = module.elf();
    const start = elf.symbols.find((s) => s.name === '__init_tp');
    const code = start === undefined ? undefined : elf.bytesAt(start.address, start.size);
    if (code === undefined) continue;
    const bytes = Buffer.from(code.buffer, code.byteOffset, code.length);
    const call = bytes.indexOf(SYSCALL, Math.max(0, bytes.indexOf(SET_TID_ADDRESS)));
    if (call < 0) continue;
    const [store, operand, offset] = bytes.subarray(call + SYSCALL.length);
    if (store === STORE_EAX && (operand & STORE_EAX_NEAR.mask) === STORE_EAX_NEAR.bits)
      return TID_OFFSETS.find((known) => known === offset) ?? 0;
  }
  return 0;
}

/** Offset of the thread id in the thread block, if one is right for all threads that have a block; 0 if none is. */
export function findTidOffset(
  pid: number,
  threads: readonly HeldThread[],
  memory: TargetMemory,
  modules: readonly Module[],
): number {
  const blocks = threads
    .map((t) => ({ pointer: Number(t.registers.get('fs_base')), tid: namespaceTid(pid, t.tid) }))
    .filter(({ pointer }) => pointer !== 0);
  if (blocks.length === 0) {
    // A static program before its first instruction. Its own start-up code tells which library it is.
    const isGlibc = modules.some((m) => m.elf().symbols.some((s) => s.name === '__libc_setup_tls'));
    return isGlibc ? GLIBC_TID_OFFSET : muslTidOffset(modules);
  }
  return (
    TID_OFFSETS.find((offset) =>
      blocks.every(({ pointer, tid }) => tidIn(memory.readSome(pointer + offset, TID_SIZE)) === tid),
    ) ?? 0
  );
}

/** The range that surely belongs to one thread's stack and to nothing else; empty where that cannot be told. */
export function stackRange(
  maps: readonly Mapping[],
  threadPointer: number,
  isMain: boolean,
): { low: number; size: number } {
  if (isMain) {
    const stack = maps.find((m) => m.path === '[stack]');
    return stack === undefined
      ? { low: 0, size: 0 }
      : { low: stack.end - MAIN_STACK_ROOM, size: MAIN_STACK_ROOM };
  }
  // A thread made by the C library: guard pages, then the stack, and the thread block at its upper end.
  const index = mappingAt(maps, threadPointer);
  if (!hasGuard(maps, index)) return { low: 0, size: 0 };
  const { start } = maps[index];
  return { low: start, size: threadPointer - start };
}

/** What to tell the agent of the threads that are there when tracing begins. Threads without a thread pointer are left out. */
export function knownThreads(
  pid: number,
  threads: readonly HeldThread[],
  tidOffset: number,
  memory: TargetMemory,
): { tid: number; known: KnownThread }[] {
  const result: { tid: number; known: KnownThread }[] = [];
  const ownTids = hasOwnTids(pid);
  const withBlock = threads.filter((thread) => thread.registers.get('fs_base') !== 0n);
  const ids = memory.readMany(
    withBlock.map((thread) => ({
      address: Number(thread.registers.get('fs_base')) + tidOffset,
      length: TID_SIZE,
    })),
  );
  withBlock.forEach((thread, i) => {
    const threadPointer = thread.registers.get('fs_base');
    const tid = ownTids ? namespaceTid(pid, thread.tid) : thread.tid;
    const tidPointer = Number(threadPointer) + tidOffset;
    result.push({
      tid: thread.tid,
      known: {
        threadPointer,
        tid,
        // A thread that the C library did not make has no such field.
        tidPointer: tidOffset !== 0 && tidIn(ids[i]) === tid ? tidPointer : undefined,
      },
    });
  });
  return result;
}

const POINTER_SIZE = 8;

/** The word at a held thread's pointer is that pointer. */
export function pointsToItself({ registers }: HeldThread, memory: TargetMemory): boolean {
  const pointer = registers.get('fs_base');
  return pointer !== 0n && memory.readWord(Number(pointer)) === pointer;
}

/** What is read at once, and room for what a thread's stack holds as a rule, found before threads are held. */
const READ_AT_ONCE = 64 << 20;
const USUAL_STACK = 8 << 10;

/** What is read of held threads before their code is changed. */
export interface ThreadLook {
  /** Where signal handlers that run on the threads will return to: the saved instruction pointers in signal frames on their stacks. */
  readonly savedInstructionPointers: readonly number[];
  /** The word at each thread pointer is that pointer, as the ABI has it and the recorder's fast paths want it. */
  readonly pointToThemselves: boolean;
  /** The thread pointers: 0 of who has none. */
  readonly threadPointers: readonly bigint[];
}

/** Reads what must be known of threads while they are held. Made before they are, so that this takes as little time as can be. */
export class ThreadReader {
  readonly #room: OwnMapping;

  /** For about so many threads. */
  constructor(threads: number) {
    const flags = MAP.private | MAP.anonymous | MAP.noReserve;
    this.#room = mapOwn(READ_AT_ONCE, PROT.read | PROT.write, flags, -1);
    this.#room.populate(0, Math.min(roundToPage(threads * USUAL_STACK), READ_AT_ONCE));
    prepareToFindFrames();
  }

  look(threads: readonly HeldThread[], maps: readonly Mapping[], memory: TargetMemory): ThreadLook {
    const stacks = threads.map(({ registers }) => stackFrom(Number(registers.get('rsp')), maps));
    const found = savedInstructionPointers(stacks, maps, READ_AT_ONCE, (ranges) => {
      const bytes = ranges.reduce((sum, { length }) => sum + length, 0);
      const into = new Uint8Array(this.#room.bytes, 0, bytes);
      memory.readInto(ranges, into);
      return into;
    });
    return {
      savedInstructionPointers: found,
      pointToThemselves: this.#pointToThemselves(threads, memory),
      threadPointers: threads.map(({ registers }) => registers.get('fs_base')),
    };
  }

  #pointToThemselves(threads: readonly HeldThread[], memory: TargetMemory): boolean {
    const pointers = threads.map(({ registers }) => ({
      address: Number(registers.get('fs_base')),
      length: POINTER_SIZE,
    }));
    memory.readInto(pointers, new Uint8Array(this.#room.bytes, 0, pointers.length * POINTER_SIZE));
    const words = new Uint32Array(this.#room.bytes, 0, pointers.length * 2);
    return pointers.every(
      ({ address }, i) => address !== 0 && words[i * 2] + words[i * 2 + 1] * 2 ** 32 === address,
    );
  }

  /** It reads nothing any more. */
  close(): void {
    this.#room.unmap();
  }
}

/** For about so many threads. */
export function withReader<T>(threads: number, work: (reader: ThreadReader) => T): T {
  const reader = new ThreadReader(threads);
  try {
    return work(reader);
  } finally {
    reader.close();
  }
}

/** Where handlers that run on one held thread will return to. */
export function savedInstructionPointersOf(
  thread: HeldThread,
  maps: readonly Mapping[],
  memory: TargetMemory,
): readonly number[] {
  const stack = stackFrom(Number(thread.registers.get('rsp')), maps);
  return savedInstructionPointers([stack], maps, 0, ([range]) =>
    memory.readSome(range.address, range.length),
  );
}
