// Where everything of ours lies in the target. Declared once: the emitted code and the tracer take their offsets from here.
//
//   control   one page, private, MADV_WIPEONFORK: a forked child reads zeros here and so never records
//   data      private: header, queue of free lanes, cache from thread to lane, lanes, marks of calls whose entries were lost
//   shared    a memfd that the tracer maps as well: the agent's pages, lane headers, then rings; it outlives the target
//   code      per cluster of modules, within +-2 GiB of their text: recorder and stubs (recorder.ts, stubs.ts); a second
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
  /** Magic number that tells the tracer that the agent is still mapped (the target did not execve). */
  magic: 56,
  /** Address of the journal; 0 as long as nothing has been changed. As `AGENT.journal`, which children of a fork do not have. */
  journal: 64,
  size: PAGE,
} as const;

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
  /** u64: what the thread turns off and frees when it is orphaned: the control page, the rings and their length; 0: not yet. */
  control: 104,
  rings: 112,
  ringBytes: 120,
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
  /** u32: records lost since the last LOST record. It and the next are looked at as one word. */
  lost: 24,
  /** u32: how many of the lane's marks are in use. */
  marks: 28,
  /** Address of the lane's header in the shared region. */
  header: 32,
  /** Address of the first record. */
  ring: 40,
  /** Bytes of the ring, less one. */
  ringMask: 48,
  /** Bytes that may be in use before records are dropped; and before entries are, which leave room for ends of calls. */
  ringLimit: 56,
  entryLimit: 64,
  /** Address of the lane's marks. */
  markTable: 72,
  size: 128,
} as const;

/** Marks of a lane: u32 each, the slot of a call whose entry was lost; 0: none. That of a slot is one of a few neighbours. */
export const MARK = {
  /** A power of two: no more calls than this have entries that are lost, and are still open, as a rule. */
  places: 1 << 15,
  tries: 8,
  bytes: 4,
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

/** What stands for a thread's pointer where recorders ask the kernel for its id: no address that a program can have. */
export function kernelPointer(tid: number): bigint {
  return BigInt.asUintN(64, ~(BigInt(tid) << BigInt(HASH_SHIFT)));
}

/** Records that one thread may write beyond the limit: its recorder interrupted by handlers that record, and so on. */
const RING_SLACK_RECORDS = 64;
const RECORD_SIZE = 16;

/** Room that entries leave for ends of calls, in records: as many calls are open at once as a stack of 8 MiB rarely has. At most half of a ring. */
const END_RECORDS = 1 << 15;

/** What is chosen for a session, and the places that follow from it. Byte counts and offsets. */
export interface AgentGeometry {
  /** Lanes, lane 0 included. */
  readonly lanes: number;
  /** Bytes of a ring: a power of two. */
  readonly ringBytes: number;
  /** Offsets in the data region. */
  readonly queue: number;
  readonly queueMask: number;
  readonly cache: number;
  readonly laneTable: number;
  readonly markTables: number;
  readonly markStride: number;
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
export function planGeometry(lanes: number, ringBytes: number): AgentGeometry {
  const ring = powerOfTwoAtLeast(Math.max(ringBytes, PAGE));
  const ringRecords = ring / RECORD_SIZE;
  const queueSlots = powerOfTwoAtLeast(lanes);
  const queue = DATA.size;
  const cache = roundToPage(queue + queueSlots * 4);
  const laneTable = cache + 4 * 2 ** CACHE_BITS;
  const markTables = roundToPage(laneTable + lanes * LANE.size);
  const markStride = roundToPage((MARK.places + MARK.tries) * MARK.bytes);
  const rings = roundToPage(SHARED.headers + lanes * HEADER.size);
  return {
    lanes,
    ringBytes: ring,
    queue,
    queueMask: queueSlots - 1,
    cache,
    laneTable,
    markTables,
    markStride,
    dataBytes: markTables + lanes * markStride,
    rings,
    sharedBytes: rings + lanes * ring,
    ringLimit: ring - Math.min(RING_SLACK_RECORDS, ringRecords / 4) * RECORD_SIZE,
  };
}

/** Bytes of a ring in use, of which `limit` may be, at which entries begin to be dropped. */
export function entryLimit(limit: number): number {
  return limit - Math.min(END_RECORDS * RECORD_SIZE, limit / 2);
}
