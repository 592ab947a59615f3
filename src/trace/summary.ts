/** What a session did, for people and programs; `--summary` writes it as JSON. Times in microseconds and milliseconds. */
export interface SessionSummary {
  readonly pid: number;
  /** Functions that are traced. */
  readonly patched: number;
  /** Those of them that are traced by their entry only. */
  readonly entry_only: number;
  /** How sites were changed: number of sites by way. */
  readonly ways: Readonly<Record<string, number>>;
  /** How often a function was switched on or off while the session ran. */
  readonly switched: number;
  /** Functions that were asked for and not traced, by reason. */
  readonly refused: Readonly<Record<string, number>>;
  /** Records taken. */
  readonly records: number;
  /** Records that were not written, for whatever reason: with `records` they make all there were. */
  readonly dropped: number;
  /** Those of `dropped` that no lane was free for, or that were made before the program had set up its thread. */
  readonly laneless: number;
  /** Those of `dropped` that were begun and never finished: the thread ended, or a signal handler jumped away. */
  readonly abandoned: number;
  /** Lanes (a thread's part of the shared memory) that were not read on, as what stood there could not be true: counts are not exact then. */
  readonly corrupt: number;
  /** Records taken that are not in the recording, as only the newest were to be kept. */
  readonly not_kept: number;
  /** Threads that recorded. */
  readonly threads: number;
  /** Longest time that any one thread was held, as all were, so that code could be changed; and all that time. */
  readonly held_us: number;
  readonly held_total_us: number;
  /** Longest time that one thread stood for anything else: to make system calls for us, or to be looked at. */
  readonly lent_us: number;
  /** From the call of attach to the first function traced. */
  readonly attach_ms: number;
  /** Every site was read back and equals its original, or the target is no more. */
  readonly restored: boolean;
  /** Nothing of ours is left in the target's memory map. */
  readonly removed: boolean;
  /** Why the session ended. */
  readonly ended: SessionEnd;
  /** The target's exit status, or null if it runs on or is not known. */
  readonly exit_status: number | null;
  /** The signal that killed the target, or null. */
  readonly exit_signal: number | null;
  /** From inside only, and of the program's whole life: what the protocol counted, as the kernel's dyn_ftrace_total_info tells it. */
  readonly inside: {
    /** Times the patcher waited for signal handlers, and the longest of these waits. */
    readonly waits: number;
    readonly longest_wait_us: number;
    /** Times a handler made the change under way. */
    readonly helper_writes: number;
    /** How code is written: by /proc/self/mem, or unlocked by mprotect where that is not possible; then handlers wait, and help never. */
    readonly written_by: 'proc-self-mem' | 'mprotect';
  } | null;
  /** Entries recorded, by function. */
  readonly calls: Readonly<Record<string, number>>;
}

/**
 * `stopped`: by us; `loaded`: by us, since a library came that is to be traced as well; `exited`, `killed`, `gone`: the target ended (`gone`: how is not known); `exec`: it was seen to have become another program. What
 * executed another and ended between two looks, 20 ms, has `exited` or was `killed`.
 */
export type SessionEnd = 'stopped' | 'loaded' | 'exited' | 'killed' | 'gone' | 'exec';

/** What a session is doing at the moment; the names are those of the summary. */
export interface SessionStatus extends Pick<
  SessionSummary,
  'pid' | 'records' | 'dropped' | 'threads' | 'ways' | 'switched' | 'held_us' | 'lent_us' | 'inside'
> {
  /** Functions that record now, and those that are switched off. */
  readonly on: number;
  readonly off: number;
  /** Functions that were asked for and are not traced. */
  readonly refused: number;
  /** How long the last switch took. */
  readonly switch_us: number;
}
