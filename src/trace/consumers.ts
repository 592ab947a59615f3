// Those who want to see calls while they are recorded. Records wait here, in lanes, until they are made calls of.
import {
  CallBuilder,
  CallObjects,
  LaneMerger,
  RECORD_BYTES,
  builderOptions,
  type Call,
  type CallVisitor,
  type TraceInfo,
} from '../recording/index.js';

/** Records handed on at once, in words: small enough that the rings are not forgotten meanwhile. */
const PIECE_WORDS = 4 * 4096;
/** A reader that never waits for anything lets others have a turn after this long. */
const TURN_MS = 4;
const BYTES_PER_WORD = 4;

/** One that is shown calls: merges the lanes by time, builds calls, shows them. */
export class Consumer {
  readonly #merger: LaneMerger;
  readonly #builder: CallBuilder;
  /** Bytes of records that wait. */
  backlog = 0;

  constructor(info: TraceInfo, visitor: CallVisitor) {
    this.#builder = new CallBuilder(info.header.mode, info.clock, visitor, builderOptions(info, true));
    this.#merger = new LaneMerger(info.clock, {
      addRecords: (lane, words, from, to) => {
        this.backlog -= (to - from) * BYTES_PER_WORD;
        this.#builder.addRecords(lane, words, from, to);
      },
      endLane: (lane) => {
        this.#builder.endLane(lane);
      },
    });
  }

  /** Takes a lane's next records, which must stay as they are. */
  push(lane: number, words: Uint32Array): void {
    this.backlog += words.byteLength;
    for (let at = 0; at < words.length; at += PIECE_WORDS) {
      this.#merger.push(lane, words.subarray(at, at + PIECE_WORDS));
    }
  }

  pushLost(lane: number, records: number): void {
    this.backlog += RECORD_BYTES;
    this.#merger.pushLost(lane, records);
  }

  endLane(lane: number): void {
    this.#merger.endLane(lane);
  }

  /** Shows calls older than `limit` until the time is over. True: there is more. */
  feed(limit: number, until: number): boolean {
    while (this.step(limit)) if (performance.now() > until) return true;
    return false;
  }

  /** Shows all that is left. */
  finish(): void {
    this.#merger.finish();
    this.#builder.finish();
  }

  /** Makes calls of the next records older than `limit`; false if there are none. */
  protected step(limit: number): boolean {
    return this.#merger.step(limit);
  }
}

/** One that asks for calls: they are made when it does, and not before. */
export class CallReader extends Consumer {
  readonly #ready: Call[];
  #limit = Number.NEGATIVE_INFINITY;
  #end: 'whole' | 'broken' | undefined;
  #wake: (() => void) | undefined;
  #until = 0;

  constructor(info: TraceInfo) {
    const ready: Call[] = [];
    super(
      info,
      new CallObjects(info, (call) => {
        ready.push(call);
      }),
    );
    this.#ready = ready;
  }

  /** Calls older than `limit` may be asked for. */
  override feed(limit: number): boolean {
    this.#limit = limit;
    this.#wake?.();
    return false;
  }

  /** There will be no more records. */
  override finish(): void {
    this.#endWith('whole');
  }

  /** There will be no more records, though the session did not come to its end: calls still open are not told of. */
  breakOff(): void {
    this.#endWith('broken');
  }

  /** Calls in the order in which they end, until there are no more. */
  async *calls(): AsyncGenerator<Call, void> {
    while (await this.#more()) {
      for (const call of this.#ready.splice(0)) {
        if (performance.now() > this.#until) await this.#giveTurn();
        yield call;
      }
    }
  }

  /** Waits until calls are ready; false: there are no more. */
  async #more(): Promise<boolean> {
    while (this.#ready.length === 0) {
      if (this.step(this.#limit)) {
        if (performance.now() > this.#until) await this.#giveTurn();
      } else if (this.#end === undefined) {
        await new Promise<void>((resolve) => (this.#wake = resolve));
      } else {
        if (this.#end === 'whole') super.finish();
        break;
      }
    }
    return this.#ready.length > 0;
  }

  #endWith(end: 'whole' | 'broken'): void {
    this.#end ??= end;
    this.#limit = Number.POSITIVE_INFINITY;
    this.#wake?.();
  }

  async #giveTurn(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.#until = performance.now() + TURN_MS;
  }
}
