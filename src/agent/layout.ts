// Where everything of ours lies in the target. Declared once: the emitted code and the tracer take their offsets from here.
//
//   control   one page, private, MADV_WIPEONFORK: a forked child reads zeros here and so never records
//   data      private, copied by fork, because a child returns through the same swapped return addresses:
//               header, trusted ranges, queue of free lanes, cache from thread to lane, lanes, shadow stacks
//   shared    a memfd that the tracer maps as well: the agent's pages, lane headers, then rings; it outlives the target
//   code      per cluster of modules, within +-2 GiB of their text: recorder, heads, bodies (recorder.ts, stubs.ts); a second
//             memfd, which the tracer can write while threads execute it, and which forked children keep
//
// A *lane* belongs to one thread for as long as that thread lives. Lane 0 belongs to nobody: an empty cache slot leads to
// it, and its thread pointer fits no thread.

import { OWNER_ENTRY_BYTES, PAGE, roundToPage } from '../linux/index.js';

/** Offsets in the control page. */
export const CONTROL = {
  /** u64: 1 while records are wanted. */
  enabled: 0,
  size: PAGE,
} as const;

/** Offsets in the header of the data region. All u64. */
export const DATA = {
  /** Queue of free lanes: index of the next to take, by threads (lock cmpxchg). */
  queuePop: 0,
  /** Index behind the last that is free, by the tracer. */
  queuePush: 8,
  /** Address behind the last lane. */
  lanesEnd: 24,
  /** Offset from the thread pointer at which the C library keeps the thread's id; 0: unknown. */
  tidOffset: 32,
  /** 1: a new lane asks the kernel for its thread's id (gettid); 0: a seccomp filter might not like it. */
  mayAskTid: 40,
  /** 1: deeper calls than the shadow stack may hold are not wanted (--depth) rather than lost. */
  depthIsFilter: 48,
  /** Magic number that tells the tracer that the agent is still mapped (the target did not execve). */
  magic: 56,
  /** Address of the journal; 0 as long as nothing has been changed. As `AGENT.journal`, which children of a fork do not have. */
  journal: 64,
  /** Number of trusted ranges of code, then pairs {start, length}. */
  trustedCount: 72,
  trusted: 80,
  size: PAGE,
} as const;

/** Room for trusted ranges in the header. */
export const TRUSTED_MAX = Math.floor((DATA.size - DATA.trusted) / 16);

/** "safepoke" read as a little-endian number. */
export const AGENT_MAGIC = 0x656b_6f70_6566_6173n;

/** Slots of the cache from a hash of the thread pointer to a lane's offset (u32). A power of two. */
export const CACHE_BITS = 16;

/** Odd 32-bit constant near 2^32/phi for multiplicative hashing (Knuth, TAOCP 6.4). */
export const HASH_MULTIPLIER = 0x9e37_79b1;
/** Thread pointers are aligned to 64 bytes (ELF TLS variant II, glibc's TCB_ALIGNMENT): lower bits tell nothing. */
export const HASH_SHIFT = 6;

/** Offsets in the shared region. */
export const SHARED = { agent: 0, headers: 2 * PAGE } as const;

/** Offsets in the agent's pages: what its thread is told and tells (agent-thread.ts), and what a later session must find. */
export const AGENT = {
  /** The tracer's list entry for the word that follows; then u32: the robust futex. */
  entry: 0,
  owner: OWNER_ENTRY_BYTES,
  /** u32: number of the newest command; that of the command that was done last; what to do; how many runs could not be turned back. */
  command: 64,
  done: 68,
  action: 72,
  failed: 76,
  /** struct timespec, for a pause. */
  pause: 80,
  /** u32: how many of the calls below to make. */
  callCount: 96,
  /** u32: 1 if the thread may make a process that shares the memory, to put return addresses back (return-listing.ts). */
  mayMend: 100,
  /** u64: what the thread turns off and frees when it is orphaned: the control page, the rings and their length; 0: not yet. */
  control: 104,
  rings: 112,
  ringBytes: 120,
  /** u64: address of the first lane that a thread can have. */
  lanes: 128,
  /** u64: how many text runs, the first of the table, have no hook of an unwinder. */
  plainRunCount: 136,
  /** u64: address of the table of text runs {start, length}; how many there are. */
  runs: 144,
  runCount: 152,
  /** u64: address of the journal; 0 as long as nothing has been changed. */
  journal: 160,
  /** u64: the tracer's process id, and its start time in clock ticks since boot, for process ids are used again. */
  tracerPid: 168,
  tracerStart: 176,
  /** u64: how many mappings there are; then {address, length} of each, as soon as it is made. */
  mappedCount: 184,
  mapped: 192,
  /** u64: address of the table of mappings of text that are writable for the time being (open-text.ts), as that of runs; how many there are. */
  opened: 1840,
  openedCount: 1848,
  /** u32: threads that return through a swapped return address, or may come to; the largest number as long as that is not known. */
  swapped: 1856,
  /** Rules that confine the thread (confinement.ts): struct landlock_ruleset_attr; i32: the thread's own descriptor of the memory, or -1. */
  rules: 1872,
  memoryFile: 1960,
  /** u32: what the thread gives up when it begins, and the user and the group that it gets instead; room for its capabilities (rights.ts). */
  giveUp: 1916,
  user: 1920,
  group: 1924,
  capabilities: 1928,
  /** Path of the process's own memory; name of the memory that code lies in; name of the thread. Each ended by a zero. */
  memoryPath: 1976,
  codeName: 2016,
  name: 2032,
  /** A thread block of zeros. */
  threadBlock: 2048,
  /** First word popped from the stack, which grows down from here: the address to begin at. */
  stack: 4080,
  /** System calls to make, a `CALL` each. */
  calls: PAGE,
  size: 2 * PAGE,
} as const;

/** Mappings that the agent's page has room for. */
export const MAPPED_MAX = Math.floor((AGENT.opened - AGENT.mapped) / 16);

/** A system call for the agent's thread to make. All u64. */
export const CALL = {
  number: 0,
  /** Six of them. */
  arguments: 8,
  /** What the kernel returned. */
  result: 56,
  size: 64,
} as const;

/** A write for the agent's thread to make, in the place of a call. All u64; the bytes are the low ones of theirs. */
export const WRITE = { address: 0, bytes: 8 } as const;

/** An entry in the table of text runs: {start, length}, two words that tell whether it is still ours: {address, u32 as we left it, u32 as it was}. */
export const TEXT_RUN = { start: 0, length: 8, witnesses: 16, witness: 16, size: 48 } as const;

/** System calls that can be asked for at once. */
export const CALLS_MAX = (AGENT.size - AGENT.calls) / CALL.size;

/** Offsets in a lane: private state that only its thread writes while it lives. All u64 unless said. */
export const LANE = {
  /** Thread pointer (fs base) of the owner. */
  threadPointer: 0,
  /** Address of a u32 that holds the thread's id: in the C library's thread block, or `tid` below if that is unknown. */
  tidPointer: 8,
  /** u32 */
  tid: 16,
  /** u32: records lost since the last LOST record. */
  lost: 20,
  /** Address of the lane's header in the shared region. */
  header: 24,
  /** Address of the first record. */
  ring: 32,
  /** Bytes of the ring, less one. */
  ringMask: 40,
  /** Bytes that may be in use before records are dropped. */
  ringLimit: 48,
  /** Address of the newest entry of the shadow stack; that of the sentinel when it is empty. */
  shadow: 56,
  shadowBase: 64,
  /** Entries at or above this address are not made. */
  shadowLimit: 72,
  /** Stack pointer of the recorder now at work on this thread; 0: none. A signal handler finds it set. */
  busy: 80,
  /** The thread's own stack, once the tracer knows it: lowest address and bytes. */
  stackLow: 88,
  stackSize: 96,
  /** Return slot of the unwinder that swapped return addresses were put back for; 0: none. */
  parked: 104,
  /** The first trusted range: code whose calls may have their return address swapped. */
  trustedStart: 112,
  trustedLength: 120,
  size: 128,
} as const;

/** An entry of a shadow stack: 32 bytes. */
export const SHADOW = {
  /** Address of the return-address slot; 0: the entry is void. The sentinel's is the largest number. */
  slot: 0,
  /** The return address that belongs there. */
  returnAddress: 8,
  /** What stands there instead. */
  trampoline: 16,
  /** u32: (function index << 4) | ENTRY */
  what: 24,
  /** u32: 1 while the true return address stands in the slot because an unwinder is at work. */
  parked: 28,
  size: 32,
} as const;

/** A lane's header in the shared region: two cache lines, the second written by the tracer only. */
export const HEADER = {
  /** u64: bytes ever reserved by the thread. */
  head: 0,
  /** u64: records dropped. In lane 0's header: those that no lane was free for, or whose thread had no thread pointer yet. */
  dropped: 8,
  /** u32 */
  tid: 16,
  /** u32: LANE_STATE */
  state: 20,
  /** u64 */
  threadPointer: 24,
  /** u64: bytes ever consumed by the tracer. */
  tail: 64,
  size: 128,
} as const;

export const LANE_STATE = { free: 0, live: 1, ended: 2 } as const;

/** Invalid thread pointer of a lane whose thread is known to be gone. */
export const NO_THREAD_POINTER = 1n;

/** Records that one thread may write beyond the limit: its recorder interrupted by handlers that record, and so on. */
const RING_SLACK_RECORDS = 64;
const RECORD_SIZE = 16;

/** What is chosen for a session, and the places that follow from it. Byte counts and offsets. */
export interface AgentGeometry {
  /** Lanes, lane 0 included. */
  readonly lanes: number;
  /** Bytes of a ring: a power of two. */
  readonly ringBytes: number;
  /** Open calls that a shadow stack holds. */
  readonly shadowEntries: number;
  /** Offsets in the data region. */
  readonly queue: number;
  readonly queueMask: number;
  readonly cache: number;
  readonly laneTable: number;
  readonly shadowStacks: number;
  readonly shadowStride: number;
  readonly dataBytes: number;
  /** Offsets in the shared region. */
  readonly rings: number;
  readonly sharedBytes: number;
  /** Bytes of a ring in use at which records begin to be dropped. */
  readonly ringLimit: number;
}

function powerOfTwoAtLeast(n: number): number {
  let power = 1;
  while (power < n) power *= 2;
  return power;
}

/** Lays out a session's regions. `ringBytes` is rounded up to a power of two of at least one page. */
export function planGeometry(lanes: number, ringBytes: number, maxShadowEntries: number): AgentGeometry {
  const ring = powerOfTwoAtLeast(Math.max(ringBytes, PAGE));
  const ringRecords = ring / RECORD_SIZE;
  // Every open call keeps room in the ring for the record of its end; half of the ring at most.
  const shadowEntries = Math.min(maxShadowEntries, ringRecords / 2);
  const queueSlots = powerOfTwoAtLeast(lanes);
  const queue = DATA.size;
  const cache = roundToPage(queue + queueSlots * 4);
  const laneTable = cache + 4 * 2 ** CACHE_BITS;
  const shadowStacks = roundToPage(laneTable + lanes * LANE.size);
  const shadowStride = roundToPage((shadowEntries + 2) * SHADOW.size);
  const rings = roundToPage(SHARED.headers + lanes * HEADER.size);
  return {
    lanes,
    ringBytes: ring,
    shadowEntries,
    queue,
    queueMask: queueSlots - 1,
    cache,
    laneTable,
    shadowStacks,
    shadowStride,
    dataBytes: shadowStacks + lanes * shadowStride,
    rings,
    sharedBytes: rings + lanes * ring,
    ringLimit: ring - Math.min(RING_SLACK_RECORDS, ringRecords / 4) * RECORD_SIZE,
  };
}
