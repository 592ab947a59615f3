// Where everything lies in the process under stress. Declared once: the listing, the writer of the executable and the reader
// of the results take their addresses from here. All below 2 GiB, so that an absolute address fits in an instruction.
//
//   CODE    r-x   the listing: threads, signal handlers, the lowered protocol
//   SITES   r-x   the functions whose code is changed (sites.ts)
//   DATA    rw-   signal actions, the changes to be made, code buffers
//   STACKS  rw-   one for each thread; its first word points to the thread's counters, which handlers find so
//   SHARED  rw-   a memfd that safepoke maps as well: what to do, and what was seen. It outlives a crash

export const CODE = 0x1000_0000;
export const SITES = 0x1100_0000;
export const DATA = 0x1200_0000;
export const SHARED = 0x1300_0000;
export const STACKS = 0x1400_0000;

/** A power of two: a handler finds its thread by rounding its stack pointer down. */
export const STACK_SIZE = 0x1_0000;
/** Offset in a stack, behind the pointer to the counters: u32, the thread's timer. */
export const STACK_TIMER = 8;
/** Room left at the top of a stack. */
export const STACK_TOP = STACK_SIZE - 64;
export const MAX_THREADS = 32;

/** Offsets in SHARED. All u64 unless said. */
export const CONTROL = {
  /** Threads that call the functions, the patcher not counted. */
  threads: 0,
  /** CLOCK_MONOTONIC, nanoseconds. */
  deadline: 8,
  /** Changes after which to end. */
  limit: 16,
  /** Changes for which the threads are stopped once. */
  batch: 24,
  /** Nanoseconds from the end of a signal's handler to the next signal; 0: none. */
  stormPeriod: 32,
  modifications: 64,
  /** Changes that the protocol said it could not make. */
  refused: 72,
  /** Time-stamp ticks that all changes, and the longest of them, took. */
  ticks: 80,
  longestTicks: 88,
  /** Both clocks, at the start and at the last look. */
  firstTicks: 96,
  firstNs: 104,
  lastTicks: 112,
  lastNs: 120,
  /** 1 once it has ended of itself. */
  finished: 128,
  /** u32: threads that stand in the rendezvous. */
  parked: 136,
  /** u32: counts the rendezvous that are over. */
  generation: 140,
  /** u32: threads that have begun. */
  ready: 144,
  /** u32: 1 once all have begun and changes may be made. */
  started: 148,
  /** The protocol's block. */
  block: 1024,
  counters: 4096,
} as const;

/** Offsets in the counters of one thread, which only that thread and its handlers write. */
export const COUNTERS = {
  /** Calls of functions with a site. */
  calls: 0,
  /** Calls that came back with what neither the old nor the new code gives. */
  wrong: 8,
  /** Time-stamp ticks of the longest pass over all functions. */
  longestPass: 16,
  signals: 24,
  traps: 32,
  tid: 40,
  size: 128,
} as const;

export const SHARED_SIZE = CONTROL.counters + (MAX_THREADS + 1) * COUNTERS.size;

/** Offsets in DATA. */
export const TABLES = {
  /** u32: the descriptor of /proc/self/mem. */
  memoryFile: 0,
  /** struct kernel_sigaction (32 bytes) of each signal. */
  actions: 64,
  memoryPath: 192,
  /** {site, old code, new code}, 24 bytes each. */
  changes: 256,
  codeBuffers: 1024,
  size: 4096,
} as const;

export const CHANGE_SIZE = 24;
export const CODE_BUFFER_SIZE = 8;
