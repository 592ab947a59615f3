import { CannotError } from '../errors/index.js';
import type { RecordedFunction, RecordingHeader, RecordingMessage } from './file-layout.js';
import { TscClock } from './tsc-clock.js';

/** A traced function. */
export interface FunctionInfo {
  /** What records call it. */
  readonly index: number;
  /** For people: demangled where it can be. */
  readonly name: string;
  /** As the symbol table has it. */
  readonly symbol: string;
  /** Path of the executable or library, or a name like `[vdso]`. */
  readonly module: string;
  /** Where its first byte stands in the target. */
  readonly address: bigint;
}

/** One thread's life. */
export interface ThreadInfo {
  readonly lane: number;
  readonly tid: number;
  readonly name: string;
  /** How many earlier threads of the trace had the same thread id. */
  readonly reuse: number;
  /** Where its own stack lies: from one address up to another. */
  readonly stack: readonly [bigint, bigint] | undefined;
}

/** What is known about a trace besides its records. It grows as messages arrive, from a file or from a live session. */
export class TraceInfo {
  readonly header: RecordingHeader;
  readonly clock: TscClock;
  readonly #functions: FunctionInfo[] = [];
  readonly #threads = new Map<number, ThreadInfo>();
  readonly #livesOfTid = new Map<number, number>();
  readonly #endedLanes = new Set<number>();
  #summary: Readonly<Record<string, unknown>> | undefined;

  constructor(header: RecordingHeader) {
    this.header = header;
    this.clock = new TscClock(BigInt(header.startTsc), header.tscHz);
  }

  get functions(): readonly FunctionInfo[] {
    return this.#functions;
  }

  get threads(): ReadonlyMap<number, ThreadInfo> {
    return this.#threads;
  }

  /** Of the `end` message, if it has come. */
  get summary(): Readonly<Record<string, unknown>> | undefined {
    return this.#summary;
  }

  /** The function with that index; a stand-in for one that no message has told of. */
  functionAt(index: number): FunctionInfo {
    return this.#functions[index] ?? unknownFunction(index);
  }

  /** The thread of that lane; a stand-in for one that no message has told of. */
  threadOf(lane: number): ThreadInfo {
    return this.#threads.get(lane) ?? { lane, tid: 0, name: '', reuse: lane, stack: undefined };
  }

  hasEnded(lane: number): boolean {
    return this.#endedLanes.has(lane);
  }

  /** Throws RECORDING_MALFORMED if functions do not come in order. */
  accept(message: RecordingMessage): void {
    switch (message.kind) {
      case 'functions':
        this.#addFunctions(message.first, message.items);
        break;
      case 'thread': {
        const known = this.#threads.get(message.lane);
        const sameThread = known?.tid === message.tid;
        const reuse = sameThread ? known.reuse : (this.#livesOfTid.get(message.tid) ?? 0);
        if (!sameThread) this.#livesOfTid.set(message.tid, reuse + 1);
        const { lane, tid, name, stack } = message;
        const [low = 0n, high = 0n] = (stack ?? []).map(BigInt);
        const own = low < high ? ([low, high] as const) : undefined;
        this.#threads.set(lane, {
          lane,
          tid,
          name,
          reuse,
          stack: own ?? (sameThread ? known.stack : undefined),
        });
        break;
      }
      case 'thread-end':
        this.#endedLanes.add(message.lane);
        break;
      case 'clock':
        this.clock.addReading(message);
        break;
      case 'end':
        this.#summary = message.summary;
        break;
      case 'lost':
    }
  }

  #addFunctions(first: number, items: readonly RecordedFunction[]): void {
    if (first !== this.#functions.length)
      throw new CannotError('RECORDING_MALFORMED', {
        tried: 'read the functions of the recording',
        why: `function ${first} follows ${this.#functions.length} functions, so some are missing`,
        next: 'record again; if it happens again, report it with the recording',
      });
    for (const item of items) {
      this.#functions.push({
        index: this.#functions.length,
        name: item.demangled ?? item.name,
        symbol: item.name,
        module: item.module,
        address: BigInt(item.address),
      });
    }
  }
}

export function unknownFunction(index: number): FunctionInfo {
  return { index, name: `(function ${index})`, symbol: '', module: '', address: 0n };
}
