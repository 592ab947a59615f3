// Where everything lies that is loaded with a program. Declared once: the emitted code and the tracer take their offsets from
// here.
//
//   object   a shared object (shared-object.ts): code, and private data that a forked child gets a copy of
//   block    a part of a memfd, which the tracer maps as well: the agent's pages, the rendezvous, a buffer for what goes over. A program
//            that this one executes has the next part
import { AGENT } from '../agent/index.js';
import { DYNAMIC_ROOM } from '../elf/index.js';
import { PAGE } from '../linux/index.js';
import type { TargetMemory } from '../target/index.js';

/** The signal that calls threads together: the last one, which SIGRTMAX does not name where our object is loaded. */
export const RENDEZVOUS_SIGNAL = 64;

/** Addresses in the object. */
export const TEXT = 0x2000;
export const OBJECT_DATA = 0x1_0000;

/** Handlers of the program that can be told apart: a stub leads to each. */
export const HANDLERS_MAX = 512;
export const STUB_SIZE = 16;
export const STUBS = OBJECT_DATA - HANDLERS_MAX * STUB_SIZE;

const PRIVATE_START = OBJECT_DATA + DYNAMIC_ROOM;

/**
 * What a thread has counted in the protocol's word: all u32. It outlives the thread, so that what one has left behind which ended
 * within a handler can be taken back.
 */
export const OWN_COUNT = { tid: 0, count: 4, size: 8 } as const;
/** A power of two. Threads that find no room are not known when they have ended. */
export const OWN_COUNTS_MAX = 1024;

/** Addresses in the object's data. All u64 unless said. */
export const PRIVATE = {
  /** Distance of our thread-local word from the thread pointer, as the loader finds it. */
  threadLocal: PRIVATE_START,
  /** dlsym and __errno_location. */
  dlsym: PRIVATE_START + 8,
  errnoLocation: PRIVATE_START + 16,
  /**
   * Address of a word: how far the block is from `zeros`, in which nothing is asked. In a forked child the word reads as zero, and the
   * block is not mapped: a child may have given up rights that its parent has, and must not tell the parent's threads what to do.
   */
  blockAt: PRIVATE_START + 24,
  /** u32: descriptors that the program inherits from us: the block, the object. */
  blockFile: PRIVATE_START + 32,
  objectFile: PRIVATE_START + 36,
  /** u32: the process that was traced; a forked child has another id. */
  owner: PRIVATE_START + 40,
  /** u32: the descriptor of /proc/self/mem of the agent's thread, which shares none of the program's. */
  memoryFile: PRIVATE_START + 44,
  /** u32: 1: another program with our object has executed this one, which may do without us. */
  isSuccessor: PRIVATE_START + 52,
  /** u64: where the block begins in its file. */
  blockOffset: PRIVATE_START + 56,
  /** "LD_PRELOAD=/proc/self/fd/N", ended by a zero. */
  preload: PRIVATE_START + 64,
  memoryPath: PRIVATE_START + 128,
  /** struct timespec: how long to wait before looking whether the tracer lives. */
  patience: PRIVATE_START + 160,
  /** struct kernel_sigaction of the rendezvous. */
  action: PRIVATE_START + 176,
  /** Address of the C library's `environ`. */
  environ: PRIVATE_START + 208,
  /** u32: stands for errno where there is no C library. */
  noErrno: PRIVATE_START + 216,
  /** Address of what is read in the block's place where there is none. */
  zeros: PRIVATE_START + 224,
  /** Zero: what `blockAt` leads to where there is no block. */
  noBlock: PRIVATE_START + 232,
  /** The protocol's words. */
  protocol: PRIVATE_START + 256,
  /** Addresses of the functions that ours stand before. */
  real: PRIVATE_START + 1024,
  /** Names of those, each ended by a zero. */
  names: PRIVATE_START + 1536,
  /** The program's handlers; 0: free. */
  handlers: PRIVATE_START + 2560,
  /** u32: 1: threads can be told by the C library's words. */
  knowsThreads: PRIVATE_START + 48,
  /** What each thread has counted: see OWN_COUNT. Private, as a forked child counts for itself. */
  counts: PRIVATE_START + 2560 + HANDLERS_MAX * 8,
  end: PRIVATE_START + 2560 + HANDLERS_MAX * 8 + OWN_COUNTS_MAX * 8,
} as const;

export const PRIVATE_SIZE = PRIVATE.end - PRIVATE_START;
/** Loads the address of the block, or of zeros, into a register. Changes flags. */
export const loadBlock = (register: string): string => `
    mov ${register}, [rel ${PRIVATE.blockAt}]
    mov ${register}, [${register}]
    add ${register}, [rel ${PRIVATE.zeros}]`;

/** Of each program its own, where its children read zeros: what stands in the place of the block, then the word of `blockAt`. */
export const OWN_PAGES = { distance: AGENT.size + PAGE, size: AGENT.size + 2 * PAGE } as const;

/** The words by which one program's object differs from another's: all lie in the page that the loader itself writes into. */
export const PRIVATE_HEAD = { start: PRIVATE_START, end: PRIVATE.protocol } as const;
export const privateOffset = (address: number): number => address - PRIVATE_START;

/** Offsets in the block. All u32 unless said. */
export const BLOCK = {
  agent: 0,
  /** 1: the agent's thread serves, and the program waits. */
  ready: AGENT.size,
  /** 1: the program may begin. */
  go: AGENT.size + 4,
  /** Even: no rendezvous. Odd: one has been called; a thread waits until the number is another. */
  generation: AGENT.size + 8,
  /** Places ever taken: one that is late to leave keeps its own while others take further ones. */
  taken: AGENT.size + 12,
  /** The agent's thread's id, as the process knows it; the process's own. */
  agentTid: AGENT.size + 20,
  pid: AGENT.size + 24,
  /** u64: address at which the object is loaded. */
  object: AGENT.size + 32,
  /** u64: table of changes for the agent's thread to make, how many, how many are made; the status of the first that failed. */
  changes: AGENT.size + 40,
  changeCount: AGENT.size + 48,
  changed: AGENT.size + 52,
  changeStatus: AGENT.size + 56,
  /** i32: the agent's thread's descriptor of the memory; negative: it got none. */
  memoryFile: AGENT.size + 60,
  /** u64: address of the block itself in the target. */
  address: AGENT.size + 64,
  /** 1: the first thread has told where it is, and waits. */
  waiting: AGENT.size + 72,
  /** 1: the agent's thread is to give up a change for which it waits. */
  abandon: AGENT.size + 76,
  /** u64: its stack pointer at the change. */
  changeStack: AGENT.size + 80,
  /** i32: negative: what the kernel says when text is written by that descriptor. */
  memoryWrite: AGENT.size + 88,
  /** i32: 1: text must be unlocked (mprotect) to be written, as it cannot be otherwise; negative: and that is refused as well. */
  unlocking: AGENT.size + 92,
  /** u32: the agent's thread's descriptor of the block's file. */
  blockFile: AGENT.size + 96,
  /** u32: the rights (PROT_...) of the text that is to be changed, as it is unlocked and as it is locked again. */
  unlockedRights: AGENT.size + 100,
  rights: AGENT.size + 104,
  /** i32: what the kernel said of each, the last time. */
  unlockStatus: AGENT.size + 108,
  lockStatus: AGENT.size + 112,
  /** u64: that text, in which all changes of the table lie. */
  region: AGENT.size + 120,
  regionLength: AGENT.size + 128,
  /** Counts that handlers have left behind, as there was a handler without a stub. */
  left: AGENT.size + 136,
  /** How many handlers got a stub when threads stood; a signal whose handler got none, or 0; i32: what kept us from asking, or 0. */
  adopted: AGENT.size + 140,
  unadopted: AGENT.size + 144,
  adoptStatus: AGENT.size + 148,
  /** How often the agent's thread looks for a command before it sleeps: while threads stand none of theirs wants the processor. */
  linger: AGENT.size + 152,
  /** FOLLOW: whether a thread asks the tracer before it executes another program. */
  follow: AGENT.size + 156,
  /** The id of the thread that asks, or 0; how far that has come: EXECUTION. */
  asker: AGENT.size + 160,
  execution: AGENT.size + 164,
  /** What it asks for: EXECUTION_KIND; descriptors that it has for its successor; i32: of a directory, or of the program; flags. */
  executionKind: AGENT.size + 168,
  nextBlockFile: AGENT.size + 172,
  nextObjectFile: AGENT.size + 176,
  directory: AGENT.size + 180,
  executionFlags: AGENT.size + 184,
  /** i32: why a program has not got so far that it waits, or 0: an error of clone, or NO_LIBRARY. */
  startFailure: AGENT.size + 188,
  /** u64: addresses of the program's name, of the environment that it is to have, and of that in which PATH is. */
  path: AGENT.size + 192,
  givenEnvironment: AGENT.size + 200,
  ownEnvironment: AGENT.size + 208,
  /** Names by which the program's threads find the agent's thread's descriptors of the block and of the object. */
  keptBlock: AGENT.size + 256,
  keptObject: AGENT.size + 320,
  places: AGENT.size + PAGE,
  buffer: AGENT.size + PAGE + 64 * PAGE,
  /** The environment of a successor: pointers, then our variable. */
  environment: AGENT.size + PAGE + 64 * PAGE + (4 << 20),
  size: AGENT.size + PAGE + 64 * PAGE + (4 << 20) + (1 << 20),
} as const;

export const BUFFER_SIZE = BLOCK.environment - BLOCK.buffer;
export const ENVIRONMENT_SIZE = BLOCK.size - BLOCK.environment;
/** Room for the name of a descriptor. */
export const KEPT_NAME_BYTES = BLOCK.keptObject - BLOCK.keptBlock;

/** BLOCK.follow. `tired`: the tracer has not answered in time, and is not asked again. */
export const FOLLOW = { no: 0, yes: 1, tired: 2 } as const;
/** BLOCK.execution. `granted`: with our object; `denied`: without; `noFiles`: nobody was asked, as there are too few descriptors left. */
export const EXECUTION = { none: 0, asked: 1, granted: 2, denied: 3, noFiles: 4 } as const;
/** By a path (execve), by a name that is looked for in PATH (execvpe), by a descriptor (fexecve), by both (execveat). */
export const EXECUTION_KIND = { path: 0, search: 1, descriptor: 2, at: 3 } as const;

/** What a thread tells of itself in a rendezvous. All u64. */
export const PLACE = {
  /** Its id as the process knows it; stored last. */
  tid: 0,
  rip: 8,
  rsp: 16,
  fsBase: 24,
  /** 1: rip is to be changed when it leaves. */
  isMoved: 32,
  /** Handlers that it was in. */
  nested: 40,
  /** 1: it has left. It never will if a handler that ran meanwhile has jumped elsewhere. */
  hasLeft: 48,
  size: 64,
} as const;

/** A power of two: they are used in turn. */
export const PLACES_MAX = (BLOCK.buffer - BLOCK.places) / PLACE.size;

/** struct kernel_sigaction: handler, flags, restorer, mask of 8 bytes. */
export const KERNEL_ACTION = { handler: 0, mask: 24, size: 32 } as const;

/** An entry of the table of changes. All u64. */
export const CHANGE = { address: 0, before: 8, after: 16, length: 24, size: 32 } as const;

/** True if the block of a program that was started from inside begins at an address. */
export function isBlock(memory: TargetMemory, start: number): boolean {
  return memory.readWord(start + BLOCK.address) === BigInt(start);
}
