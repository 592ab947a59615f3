import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { closeSync } from 'node:fs';
import { CannotError } from '../errors/index.js';
import { MAP, PROT, createMemoryFile, mapOwn } from '../linux/index.js';
import { CLOCK_UNIT_TICKS } from '../protocol/index.js';
import { COUNTERS, CONTROL, SHARED_SIZE } from './layout.js';
import type { StressExecutable } from './executable.js';

export interface ChildSettings {
  /** Threads that call the functions, the patcher not counted. */
  readonly threads: number;
  /** CLOCK_MONOTONIC, nanoseconds: when to end. */
  readonly deadline: bigint;
  /** Changes after which to end. */
  readonly modifications: number;
  /** Changes for which the threads are stopped once. */
  readonly batch: number;
  /** Nanoseconds from the end of a signal handler to the next signal to that thread; 0: none. */
  readonly stormPeriodNs: number;
}

/** How a process under stress ended: of itself, by a signal, by one that nobody knows, or killed as nothing moved any more. */
export type ChildEnd = 'finished' | 'stuck' | 'vanished' | NodeJS.Signals;

export interface ChildResult {
  readonly end: ChildEnd;
  readonly modifications: number;
  /** Changes that the protocol said it could not make. */
  readonly refused: number;
  readonly calls: number;
  readonly wrong: number;
  readonly signals: number;
  readonly traps: number;
  readonly totalNs: number;
  readonly longestNs: number;
  /** The longest that one pass of a thread over the functions took. */
  readonly longestPassNs: number;
  /** The protocol's words that only a report reads; times in nanoseconds. */
  readonly statistics: ReadonlyMap<string, number>;
}

/** A change that takes longer than this is not going to end. */
const STUCK_MS = 3000;
const WATCH_MS = 50;
/** CLOCK_MONOTONIC does not come so far. */
const NEVER_ENDS = { deadline: 2n ** 62n, modifications: Number.MAX_SAFE_INTEGER };
/** A process without a clock reading did not live long enough for any: its times are not known. */
const NO_CLOCK = 0;

/** The memory that safepoke and the process under stress share. */
export class SharedBlock {
  readonly fd = createMemoryFile('safepoke-stress', SHARED_SIZE);
  readonly #mapping = mapOwn(SHARED_SIZE, PROT.read | PROT.write, MAP.shared, this.fd);
  readonly #view = new DataView(this.#mapping.bytes);

  constructor(
    readonly executable: StressExecutable,
    settings: ChildSettings,
  ) {
    this.#set(CONTROL.threads, settings.threads);
    this.#view.setBigUint64(CONTROL.deadline, settings.deadline, true);
    this.#set(CONTROL.limit, settings.modifications);
    this.#set(CONTROL.batch, settings.batch);
    this.#set(CONTROL.stormPeriod, settings.stormPeriodNs);
    new Uint8Array(this.#mapping.bytes).set(executable.program.lowered.block, CONTROL.block);
    this.threads = settings.threads;
  }

  readonly threads: number;

  get modifications(): number {
    return this.#get(CONTROL.modifications);
  }

  get hasStarted(): boolean {
    return this.#view.getUint32(CONTROL.started, true) === 1;
  }

  get hasFinished(): boolean {
    return this.#get(CONTROL.finished) === 1;
  }

  /** For a patcher outside the process. */
  noteModification(): void {
    this.#set(CONTROL.modifications, this.modifications + 1);
  }

  noteRefusal(): void {
    this.#set(CONTROL.refused, this.#get(CONTROL.refused) + 1);
  }

  /** Something that grows as long as the process gets on. */
  get pulse(): bigint {
    return this.#view.getBigUint64(CONTROL.lastTicks, true);
  }

  result(end: ChildEnd): ChildResult {
    const ns = this.#get(CONTROL.lastNs) - this.#get(CONTROL.firstNs);
    const ticks = this.#get(CONTROL.lastTicks) - this.#get(CONTROL.firstTicks);
    const nsPerTick = ticks > 0 ? ns / ticks : NO_CLOCK;
    const threads = Array.from({ length: this.threads + 1 }, (_, i) => CONTROL.counters + i * COUNTERS.size);
    const sum = (offset: number): number =>
      threads.reduce((all, thread) => all + this.#get(thread + offset), 0);
    return {
      end,
      modifications: this.modifications,
      refused: this.#get(CONTROL.refused),
      calls: sum(COUNTERS.calls),
      wrong: sum(COUNTERS.wrong),
      signals: sum(COUNTERS.signals),
      traps: sum(COUNTERS.traps),
      totalNs: this.#get(CONTROL.ticks) * nsPerTick,
      longestNs: this.#get(CONTROL.longestTicks) * nsPerTick,
      longestPassNs: Math.max(...threads.map((t) => this.#get(t + COUNTERS.longestPass))) * nsPerTick,
      statistics: this.#statistics(nsPerTick),
    };
  }

  close(): void {
    this.#mapping.unmap();
    closeSync(this.fd);
  }

  #statistics(nsPerTick: number): ReadonlyMap<string, number> {
    const { protocol, lowered } = this.executable.program;
    const operations = protocol.routines.flatMap((r) => r.operations);
    const times = new Set(operations.flatMap((o) => (o.op === 'note-longest' ? [o.word] : [])));
    const found = new Map<string, number>();
    for (const { name, use } of protocol.words) {
      const place = lowered.words.get(name);
      if (use !== 'statistic' || place === undefined) continue;
      const value = this.#view.getUint32(CONTROL.block + place.offset, true);
      found.set(name, times.has(name) ? value * CLOCK_UNIT_TICKS * nsPerTick : value);
    }
    return found;
  }

  #get(offset: number): number {
    return Number(this.#view.getBigUint64(offset, true));
  }

  #set(offset: number, value: number): void {
    this.#view.setBigUint64(offset, BigInt(value), true);
  }
}

/** What acts on the process from outside; it returns when `isOver` is true. */
type Outside = (pid: number, shared: SharedBlock, isOver: () => boolean) => Promise<Partial<ChildResult>>;

/**
 * Runs the executable once, until it ends: of itself, crashed, or stuck. With `outside` it does not end of itself, as nobody must
 * end while he is held: it is killed when that is over.
 *
 * @throws CannotError STRESS_NOT_STARTED
 */
export async function runChild(
  path: string,
  executable: StressExecutable,
  settings: ChildSettings,
  outside?: Outside,
): Promise<ChildResult> {
  const { deadline, modifications } = settings;
  const shared = new SharedBlock(
    executable,
    outside === undefined ? settings : { ...settings, ...NEVER_ENDS },
  );
  let stopWatching = (): void => undefined;
  try {
    const child = spawn(path, [], { stdio: ['ignore', 'ignore', 'ignore', shared.fd] });
    const watch = watchChild(child, shared);
    stopWatching = watch.stop;
    const { ending } = watch;
    if (outside === undefined || child.pid === undefined) return shared.result(await ending);
    const seenEnd = { ended: false };
    const noteEnd = (): void => {
      seenEnd.ended = true;
    };
    ending.then(noteEnd, noteEnd);
    const isOver = (): boolean =>
      seenEnd.ended || process.hrtime.bigint() > deadline || shared.modifications >= modifications;
    const seen = await outside(child.pid, shared, isOver);
    const killed = !seenEnd.ended && child.kill('SIGKILL');
    const end = await Promise.race([ending, whenGone(child.pid)]);
    return { ...shared.result(killed && end === 'SIGKILL' ? 'finished' : end), ...seen };
  } finally {
    stopWatching();
    shared.close();
  }
}

/** Resolves when there is no such process any more, although Node has not been told: whoever held it has heard of its end. */
async function whenGone(pid: number): Promise<ChildEnd> {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
    try {
      process.kill(pid, 0);
    } catch {
      // Node may be about to tell: that is the better news.
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
      return 'vanished';
    }
  }
}

/** `ending` resolves when Node hears that the child has ended; until then it is killed if nothing moves for long. */
function watchChild(
  child: ChildProcess,
  shared: SharedBlock,
): { ending: Promise<ChildEnd>; stop: () => void } {
  let pulse = shared.pulse;
  let since = performance.now();
  let stuck = false;
  const watch = setInterval(() => {
    if (shared.pulse !== pulse) {
      pulse = shared.pulse;
      since = performance.now();
    } else if (performance.now() - since > STUCK_MS) {
      stuck = true;
      child.kill('SIGKILL');
    }
  }, WATCH_MS);
  const ending = new Promise<ChildEnd>((resolve, reject) => {
    child.on('error', (error) => {
      reject(
        new CannotError('STRESS_NOT_STARTED', {
          tried: 'start the process that is put under stress',
          why: error.message,
          next: 'see whether a security module forbids to execute a file in memory',
          cause: error,
        }),
      );
    });
    child.on('exit', (_status, signal) => {
      resolve(stuck ? 'stuck' : (signal ?? 'finished'));
    });
  });
  const stop = (): void => {
    clearInterval(watch);
    child.unref();
  };
  return { ending, stop };
}
