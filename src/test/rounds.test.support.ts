// A hazard is something that targets do and that must not break them. Each is a scenario that goes round and round: `npm test`
// gives it a few seconds, `npm run soak` as long as it is told.
import { readFileSync } from 'node:fs';

/** One scenario. It fails by throwing. */
export interface Hazard {
  /** What the target does, and what holds all the same. */
  readonly name: string;
  readonly run: (rounds: Rounds) => Promise<void>;
}

/** The most memory that a process had while it warmed up, and afterwards, in bytes. */
export interface MemoryUse {
  readonly early: number;
  readonly late: number;
}

/** The rounds before this part of the time is over, or a minute, do not count for memory: caches fill, pages are touched first. */
const WARM_UP = 1 / 3;
const WARM_UP_MS = 60_000;
/** Memory may move by this without being called a leak. */
const TOLERANCE = 96 << 20;

const LONG_MS = 30_000;

/** Goes round until the time is over, but at least once: time never decides whether a test passes. */
export class Rounds {
  done = 0;
  readonly #began = performance.now();
  readonly #ms: number;
  readonly #least: number;
  readonly #uses = new Map<'target' | 'tracer', { early: number; late: number }>();

  readonly #notes = new Map<string, number>();
  readonly #counts = new Map<string, number>();

  /** There is time for rounds that take half a minute. */
  get isLong(): boolean {
    return this.#ms >= LONG_MS;
  }

  constructor(ms: number, least = 1) {
    this.#ms = ms;
    this.#least = least;
  }

  /** True if there is to be another round. `target` is looked at for its memory, as is whoever traces it. */
  next(target?: number, tracer = process.pid): boolean {
    const ms = performance.now() - this.#began;
    const isWarm = ms >= Math.min(WARM_UP * this.#ms, WARM_UP_MS);
    this.#look('tracer', tracer, isWarm);
    if (target !== undefined) this.#look('target', target, isWarm);
    if (ms >= this.#ms && this.done >= this.#least) return false;
    this.done++;
    return true;
  }

  /** Keeps the largest of numbers that are worth being told, and decide nothing. */
  note(what: string, number: number): void {
    this.#notes.set(what, Math.max(number, this.#notes.get(what) ?? 0));
  }

  /** Adds up, likewise. */
  count(what: string, number = 1): void {
    this.#counts.set(what, number + (this.#counts.get(what) ?? 0));
  }

  notes(): string[] {
    return [
      ...[...this.#notes].map(([what, number]) => `at most ${Math.round(number * 10) / 10} ${what}`),
      ...[...this.#counts].map(([what, number]) => `${number} ${what}`),
    ];
  }

  memory(of: 'target' | 'tracer'): MemoryUse | undefined {
    const use = this.#uses.get(of);
    return use === undefined ? undefined : { early: use.early || use.late, late: use.late || use.early };
  }

  /** What has grown and should not have. */
  leaks(): string[] {
    return (['target', 'tracer'] as const).filter((of) => {
      const use = this.memory(of);
      return use !== undefined && use.late > use.early * 1.5 + TOLERANCE;
    });
  }

  #look(of: 'target' | 'tracer', pid: number, isWarm: boolean): void {
    const use = this.#uses.get(of) ?? { early: 0, late: 0 };
    const now = residentBytes(pid);
    if (isWarm) use.late = Math.max(use.late, now);
    else use.early = Math.max(use.early, now);
    this.#uses.set(of, use);
  }
}

function residentBytes(pid: number): number {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    return Number(/^VmRSS:\s*(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}
