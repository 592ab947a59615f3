import type { RecordingHeader, RecordingMessage, RecordingMode } from './file-layout.js';
import { KIND_ENTRY, KIND_EXIT, KIND_LEAF, KIND_LOST, RECORD_BYTES, writeRecord } from './record-layout.js';
import type { RecordKind } from './record-layout.js';
import { RecordingWriter } from './recording-writer.js';

/** Of synthetic recordings: large, so that both words of a time stamp matter. */
export const START_TSC = (7n << 32n) - 500n;
/** In units of slots, 8 bytes. */
const STACK_TOP = 0x0fff_ff00;
const STACK_SLOTS = 0x1_0000;
const FRAME_SLOTS = 32;
const SLOT_BYTES = 8;
/** Where the stack of a lane's thread begins, and ends, in slots. */
function stackOf(lane: number): readonly [number, number] {
  const top = STACK_TOP - lane * 2 * STACK_SLOTS;
  return [top - STACK_SLOTS, top + FRAME_SLOTS];
}

/** A recording made for a test. Its counter counts nanoseconds; slots follow from the depth unless they are given. */
export class SyntheticRecording {
  readonly #chunks: Uint8Array[] = [];
  readonly #writer: RecordingWriter;
  readonly #functions = new Map<string, number>();
  readonly #open = new Map<number, { name: string; slot: number }[]>();
  #lane = 0;
  #pending: Uint8Array[] = [];

  constructor(mode: RecordingMode = 'calls', header: Partial<RecordingHeader> = {}) {
    this.#writer = new RecordingWriter(
      { write: (chunks) => this.#chunks.push(joined(chunks)) },
      {
        pid: 4711,
        command: ['server', '--port', '1', '   '],
        startTime: '2026-01-02T03:04:05.000Z',
        mode,
        tscHz: 1e9,
        startTsc: START_TSC.toString(),
        ...header,
      },
    );
  }

  thread(lane: number, tid: number, name: string): this {
    const stack = stackOf(lane).map((slot) => `0x${(slot * SLOT_BYTES).toString(16)}`);
    return this.message({ kind: 'thread', lane, tid, name, stack });
  }

  message(message: RecordingMessage): this {
    this.flush();
    this.#writer.writeMessage(message);
    return this;
  }

  enter(lane: number, tick: number, name: string, slot?: number): this {
    const open = this.#openOf(lane);
    const at = slot ?? stackOf(lane)[1] - (open.length + 1) * FRAME_SLOTS;
    open.push({ name, slot: at });
    return this.record(lane, tick, KIND_ENTRY, name, at);
  }

  /** The innermost call of the lane ends. */
  leave(lane: number, tick: number, kind: RecordKind = KIND_EXIT): this {
    const call = this.#openOf(lane).pop();
    if (call === undefined) throw new Error('no call is open');
    return this.record(lane, tick, kind, call.name, call.slot);
  }

  /** The innermost call of the lane, whose thread has been told of, is gone, as another that is not traced shows, which returns there. */
  unwind(lane: number, tick: number): this {
    const call = this.#openOf(lane).pop();
    if (call === undefined) throw new Error('no call is open');
    return this.record(lane, tick, KIND_EXIT, call.name, call.slot + FRAME_SLOTS / 2);
  }

  leaf(lane: number, tick: number, name: string, slot: number): this {
    return this.record(lane, tick, KIND_LEAF, name, slot);
  }

  lost(lane: number, tick: number, count: number): this {
    return this.#raw(lane, tick, KIND_LOST, 0, count);
  }

  /** A record as it is told, whatever is open. */
  record(lane: number, tick: number, kind: RecordKind, name: string, slot: number): this {
    let index = this.#functions.get(name);
    if (index === undefined) {
      index = this.#functions.size;
      this.#functions.set(name, index);
      const address = `0x${(0x40_1000 + index * 16).toString(16)}`;
      this.message({ kind: 'functions', first: index, items: [{ name, module: '/bin/server', address }] });
    }
    return this.#raw(lane, tick, kind, index, slot);
  }

  /** Ends the block of records, as a drain of the ring does. */
  flush(): this {
    this.#writer.writeRecords(this.#lane, this.#pending);
    this.#pending = [];
    return this;
  }

  /** All bytes; with its `end` message unless told otherwise. */
  bytes(isComplete = true): Uint8Array {
    this.flush();
    if (isComplete) this.message({ kind: 'end', summary: {} });
    return joined(this.#chunks);
  }

  #raw(lane: number, tick: number, kind: RecordKind, functionIndex: number, slot: number): this {
    if (lane !== this.#lane) this.flush();
    this.#lane = lane;
    const bytes = new Uint8Array(RECORD_BYTES);
    writeRecord(new DataView(bytes.buffer), 0, { tsc: START_TSC + BigInt(tick), kind, functionIndex, slot });
    this.#pending.push(bytes);
    return this;
  }

  #openOf(lane: number): { name: string; slot: number }[] {
    let open = this.#open.get(lane);
    if (open === undefined) {
      open = [];
      this.#open.set(lane, open);
    }
    return open;
  }
}

export function joined(chunks: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}
