/**
 * The bytes of a recording; docs/recording-format.md says the same for readers in other languages.
 *
 *      file   = prologue, header JSON, zeros to a multiple of 16, block, block, ...
 *
 *      prologue:  0        8         12           16
 *                 +--------+---------+------------+
 *                 |SAFEPOKE| version | JSON bytes |
 *                 +--------+---------+------------+
 *
 *      block:     0        4         8            12       16
 *                 +--------+---------+------------+--------+---------------+----------------+
 *                 |  type  |  lane   |  payload   | check  | payload       | zeros to a     |
 *                 |        |         |  bytes     |        |               | multiple of 16 |
 *                 +--------+---------+------------+--------+---------------+----------------+
 *
 * All numbers are unsigned 32-bit, little endian. `check` is the exclusive or of the three words before it and
 * BLOCK_CHECK: it tells a damaged or overwritten file from a block at no cost to the writer.
 */
export const MAGIC = 'SAFEPOKE';
export const FORMAT_VERSION = 2;
/** The former version, which is still read: return addresses were replaced, and a recorder told of calls that were unwound. */
export const FORMER_VERSION = 1;
export const PROLOGUE_BYTES = 16;
export const VERSION_OFFSET = 8;
export const HEADER_LENGTH_OFFSET = 12;
export const BLOCK_HEADER_BYTES = 16;
export const FILE_ALIGNMENT = 16;
/** "BLOK" in little-endian ASCII. */
export const BLOCK_CHECK = 0x4b4f_4c42;

/** Records of one lane, in the order in which its thread wrote them. */
export const BLOCK_RECORDS = 1;
/** One `RecordingMessage`, as UTF-8 JSON. */
export const BLOCK_JSON = 2;

/** No honest header or message is larger; a damaged length must not make the reader allocate without bound. */
export const MAX_JSON_BYTES = 64 * 1024 * 1024;

/** Bytes of zeros that follow `length` bytes. */
export function paddingAfter(length: number): number {
  return -length & (FILE_ALIGNMENT - 1);
}

export function blockCheck(type: number, lane: number, payloadBytes: number): number {
  return (type ^ lane ^ payloadBytes ^ BLOCK_CHECK) >>> 0;
}

/** `calls`: entries and exits, hence durations. `entries`: every record is a LEAF. */
export type RecordingMode = 'calls' | 'entries';

/** First thing in a recording: what was known when it began. */
export interface RecordingHeader {
  /** Of the format, as the file's first bytes tell it; undefined: the newest. */
  readonly formatVersion?: number;
  readonly pid: number;
  /** The target's command line, argument by argument. */
  readonly command: readonly string[];
  /** ISO 8601, when the recording began. */
  readonly startTime: string;
  readonly mode: RecordingMode;
  /** Ticks of the time stamp counter per second, as estimated at the start; `clock` messages are more exact. */
  readonly tscHz: number;
  /** The time stamp counter before the first record was possible, decimal: time 0 of the trace. */
  readonly startTsc: string;
  /** How the functions were chosen, for people to read: `-F` and `-N` as given. */
  readonly filters?: readonly string[];
  /** Calls that lasted less, in nanoseconds, are not wanted (`-t`); the records hold them all the same. */
  readonly minDurationNs?: number;
  /** Calls with more calls around them than this are not wanted (`-D`); the records hold them all the same. */
  readonly maxDepth?: number;
}

/** A function as written in a recording. */
export interface RecordedFunction {
  /** As the symbol table has it. */
  readonly name: string;
  /** Where it differs from `name`. */
  readonly demangled?: string;
  /** Path of the executable or library, or a name like `[vdso]`. */
  readonly module: string;
  /** In the target's memory, `0x` and hexadecimal digits. */
  readonly address: string;
}

/**
 * The functions `first`, `first + 1`, ... Indices are given out in order: `first` is the number of functions written
 * before. A function is written before the first record that names it.
 */
export interface FunctionsMessage {
  readonly kind: 'functions';
  readonly first: number;
  readonly items: readonly RecordedFunction[];
}

/** A lane is one thread's life: a thread id that the kernel gives out again gets a new lane. */
export interface ThreadMessage {
  readonly kind: 'thread';
  readonly lane: number;
  readonly tid: number;
  readonly name: string;
  /** Where its own stack lies, which no other thread or coroutine uses: from one address up to another. */
  readonly stack?: readonly string[];
}

export interface ThreadEndMessage {
  readonly kind: 'thread-end';
  readonly lane: number;
}

/** The time stamp counter and CLOCK_MONOTONIC in nanoseconds, read at the same moment, both decimal. */
export interface ClockMessage {
  readonly kind: 'clock';
  readonly tsc: string;
  readonly ns: string;
}

/** Records lost in a lane that no LOST record tells of: the thread wrote nothing after it dropped them. */
export interface LostMessage {
  readonly kind: 'lost';
  readonly lane: number;
  readonly records: number;
  /** They were taken and left out, as only the newest were to be kept; without it the ring was full. */
  readonly notKept?: boolean;
}

/** Last in a recording; without it the recording was cut short. */
export interface EndMessage {
  readonly kind: 'end';
  readonly summary: Readonly<Record<string, unknown>>;
}

export type RecordingMessage =
  FunctionsMessage | ThreadMessage | ThreadEndMessage | ClockMessage | LostMessage | EndMessage;
