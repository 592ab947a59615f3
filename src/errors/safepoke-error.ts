import { plain } from '../text/index.js';

/** Nothing that a person reads is longer; names may be. */
const LONGEST_PART = 2048;

/** What an error must tell: product promise 5. Each part is a phrase without a full stop. */
export interface ErrorDetails {
  /** What was tried, on what: "attach to process 4711". */
  readonly tried: string;
  /** Why it failed: "it is being traced by process 4712". */
  readonly why: string;
  /** What to do next: "end that tracer first". */
  readonly next: string;
  readonly cause?: unknown;
}

/**
 * Base of every error that safepoke throws on purpose. `code` is stable and meant for programs. Names in `details` are exact; in `message`,
 * which is for people, what a terminal would obey is escaped.
 */
export class SafepokeError extends Error {
  readonly code: string;
  readonly details: ErrorDetails;
  /** Exit status of the command line for this error: 1 "cannot", 2 "usage". */
  readonly exitStatus: number = 1;

  constructor(code: string, details: ErrorDetails) {
    super(
      `cannot ${plain(details.tried, LONGEST_PART)}: ${plain(details.why, LONGEST_PART)}; ${plain(details.next, LONGEST_PART)}`,
      details.cause === undefined ? undefined : { cause: details.cause },
    );
    this.name = 'SafepokeError';
    this.code = code;
    this.details = details;
  }
}

/** The request is well formed but cannot be met: exit status 1. */
export class CannotError extends SafepokeError {
  constructor(code: string, details: ErrorDetails) {
    super(code, details);
    this.name = 'CannotError';
  }
}

/** The request itself is wrong (an unknown option, a bad time or size): exit status 2. */
export class UsageError extends SafepokeError {
  override readonly exitStatus = 2;

  constructor(code: string, details: ErrorDetails) {
    super(code, details);
    this.name = 'UsageError';
  }
}

/** True for errors whose message is written for the user. */
export function isSafepokeError(error: unknown): error is SafepokeError {
  return error instanceof SafepokeError;
}
