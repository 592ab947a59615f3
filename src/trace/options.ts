import type { WayName } from './ways.js';

/** What to trace and how; shared by `attach` and `run`. */
export interface TraceOptions {
  /**
   * Patterns of functions to trace: globs, `/regular expressions/`, `MODULE!PATTERN`. A pattern without a module means the
   * executable. None: every traceable function of the executable.
   */
  readonly filters?: readonly string[];
  /** Patterns of functions not to trace. */
  readonly notrace?: readonly string[];
  /** Only calls of so many levels below the outermost are wanted. Outputs leave the others out; a recording notes it. */
  readonly depth?: number;
  /** `none`: entries without durations, at half the cost. Otherwise calls end where their functions are left. */
  readonly exits?: 'sites' | 'none';
  /** Bytes of each thread's ring: rounded up to a power of two. */
  readonly bufferBytes?: number;
  /** Bytes that the rings of all threads may fill. None: half of what the system and its control groups leave the target. */
  readonly ringMemoryBytes?: number;
  /** Only calls that last at least so many nanoseconds are wanted. Outputs leave the others out; a recording notes it. */
  readonly minDurationNs?: number;
  /** Of what goes to the recording only the newest records are kept, of so many bytes. */
  readonly newestBytes?: number;
  /** The session ends (`loaded`) when a library is loaded that the filters name, so that another can trace it as well. */
  readonly untilLoaded?: boolean;
  /**
   * The program changes its own code, by an object of ours that is loaded with it: no permission over it is needed. To attach so,
   * safepoke must have run it so.
   */
  readonly inside?: boolean;
  /**
   * From inside: what the process executes has our object loaded with it as well, and waits for `attach` when the session has ended
   * with `exec`: for two seconds, then it runs untraced.
   */
  readonly followExec?: boolean;
  /** The only way in which code may be changed; functions that it cannot change are refused. None: what disturbs the target least. */
  readonly way?: WayName;
  /**
   * Text stays read-only. Else it is writable while functions have our jumps, which keeps probes of the kernel (uprobes) that are put on
   * them meanwhile waiting until the session has ended: over a jump one would be the end of the program.
   */
  readonly readOnlyText?: boolean;
  /**
   * True once the session is to end though it has not begun yet: asked again and again while that goes on, since nobody else gets a turn. It is
   * given up then (`ENDED`), within two seconds.
   */
  readonly isEnding?: () => boolean;
  /** Told what the session has done and met, a line at a time. */
  readonly onNote?: (line: string) => void;
}

/** A thread that does nothing but call can write 1.5 GB/s: this holds a burst of five million records. Untouched, it costs nothing. */
export const DEFAULT_BUFFER_BYTES = 128 << 20;
/** Of the memory that the target can still get: the rest is its own. */
export const RING_MEMORY_PART = 1 / 2;
export const MIN_BUFFER_BYTES = 4096;
/** Ring offsets are 32-bit masks, and a ring must be mappable in one piece. */
export const MAX_BUFFER_BYTES = 1 << 30;
