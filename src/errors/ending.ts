// An attach is synchronous, for seconds where functions are many or a target does not answer, and the event loop stands still meanwhile. So
// whoever wants it to end is asked: between its phases, and by everything that waits.
import { CannotError } from './safepoke-error.js';

/** The code of the error with which work ends that was asked to. */
export const ENDED = 'ENDED';

/** Once the end is wanted: how long all waits together may take, for what is under way and for putting right what was changed. */
const ENDING_MS = 1400;
/** Each wait gets this part of the time that is left: others may come behind it. */
const SHARE = 1 / 2;
/** So many short steps take a millisecond or so. */
const STEPS_PER_LOOK = 256;
/** None is so late that it need not look at all. */
const LEAST_MS = 20;

interface Wish {
  readonly isWanted: () => boolean;
  /** performance.now() at which waits are to be over. */
  until: number;
  /** It has been thrown: whoever puts things right must not be kept from it. */
  isTold: boolean;
}

let wish: Wish | undefined;

function within<T>(next: Wish, work: () => T): T {
  const former = wish;
  wish = next;
  try {
    return work();
  } finally {
    wish = former;
  }
}

function isDue(current: Wish): boolean {
  if (current.until < Number.POSITIVE_INFINITY) return true;
  if (!current.isWanted()) return false;
  current.until = performance.now() + ENDING_MS;
  return true;
}

function ended(cause?: unknown): CannotError {
  return new CannotError(ENDED, {
    tried: 'begin the session',
    why: 'its end was asked for meanwhile',
    next: 'begin it again',
    cause,
  });
}

export const ending = {
  /**
   * Does `work`, which fails soon after `isWanted` has become true, unless it is past its last look.
   *
   * @throws CannotError ENDED, whatever came of that
   */
  during<T>(isWanted: (() => boolean) | undefined, work: () => T): T {
    if (isWanted === undefined) return work();
    const own: Wish = { isWanted, until: Number.POSITIVE_INFINITY, isTold: false };
    try {
      return within(own, work);
    } catch (error) {
      if (own.until < Number.POSITIVE_INFINITY) throw ended(error);
      throw error;
    }
  },

  /** Does `work`, which puts things right, and whose waits are to be over at that time (performance.now()). */
  by<T>(until: number, work: () => T): T {
    if (until === Number.POSITIVE_INFINITY) return work();
    return within({ isWanted: () => true, until, isTold: true }, work);
  },

  /** To be called where nothing is half done. @throws CannotError ENDED, once */
  look(): void {
    if (wish === undefined || wish.isTold || !isDue(wish)) return;
    wish.isTold = true;
    throw ended();
  },

  /** The same at a step, counted from 0, of many short ones. @throws CannotError ENDED, once */
  lookAt(step: number): void {
    if (step % STEPS_PER_LOOK === 0) ending.look();
  },

  /** For how many milliseconds to wait, of so many: fewer where the end is wanted. To be asked again and again. */
  patience(ms: number): number {
    if (wish === undefined || !isDue(wish)) return ms;
    return Math.min(ms, Math.max(LEAST_MS, (wish.until - performance.now()) * SHARE));
  },

  /** True if what is only for show may be left out. */
  get isWanted(): boolean {
    return wish !== undefined && (wish.until < Number.POSITIVE_INFINITY || wish.isWanted());
  },

  /** True if there is no time left to try anything once more. */
  get isOver(): boolean {
    return wish !== undefined && isDue(wish) && performance.now() > wish.until;
  },
};
