import {
  BLOCK_HEADER_BYTES,
  BLOCK_JSON,
  BLOCK_RECORDS,
  FORMAT_VERSION,
  HEADER_LENGTH_OFFSET,
  MAGIC,
  PROLOGUE_BYTES,
  VERSION_OFFSET,
  blockCheck,
  paddingAfter,
} from './file-layout.js';
import type { RecordingHeader, RecordingMessage } from './file-layout.js';
import { RECORD_BYTES } from './record-layout.js';

/** Where a recording goes. */
export interface RecordingSink {
  /** Takes the bytes of all chunks, in order, before it returns: the chunks may be views of a ring. */
  write(chunks: readonly Uint8Array[]): void;
}

/** Keeps messages far below what readers accept, even where names are kilobytes long. */
const FUNCTIONS_PER_MESSAGE = 4096;

const encoder = new TextEncoder();

/** Writes a recording. Records pass through as the bytes that they are; nothing looks at them one by one. */
export class RecordingWriter {
  readonly #sink: RecordingSink;
  /** Filled anew for each block, as the sink is done with it when it returns. */
  readonly #blockHeader = new Uint8Array(BLOCK_HEADER_BYTES);
  readonly #blockView = new DataView(this.#blockHeader.buffer);
  #records = 0;
  #bytes = 0;

  constructor(sink: RecordingSink, header: RecordingHeader) {
    this.#sink = sink;
    const json = encoder.encode(JSON.stringify(header));
    const prologue = new Uint8Array(PROLOGUE_BYTES);
    prologue.set(encoder.encode(MAGIC));
    const view = new DataView(prologue.buffer);
    view.setUint32(VERSION_OFFSET, FORMAT_VERSION, true);
    view.setUint32(HEADER_LENGTH_OFFSET, json.length, true);
    this.#write([prologue, json, new Uint8Array(paddingAfter(json.length))]);
  }

  /** Records written so far, LOST records among them. */
  get records(): number {
    return this.#records;
  }

  /** Bytes written so far. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Writes the next records of a lane, as one block. Throws a RangeError unless the chunks hold whole records. */
  writeRecords(lane: number, chunks: readonly Uint8Array[]): void {
    let bytes = 0;
    for (const chunk of chunks) bytes += chunk.length;
    if (bytes === 0) return;
    if (bytes % RECORD_BYTES !== 0) throw new RangeError(`${bytes} bytes are not whole records`);
    this.#write([this.#header(BLOCK_RECORDS, lane, bytes), ...chunks]);
    this.#records += bytes / RECORD_BYTES;
  }

  /** Writes what is not a record. The `end` message is the last thing in a recording. */
  writeMessage(message: RecordingMessage): void {
    if (message.kind === 'functions' && message.items.length > FUNCTIONS_PER_MESSAGE) {
      for (let at = 0; at < message.items.length; at += FUNCTIONS_PER_MESSAGE) {
        const items = message.items.slice(at, at + FUNCTIONS_PER_MESSAGE);
        this.writeMessage({ kind: 'functions', first: message.first + at, items });
      }
      return;
    }
    const json = encoder.encode(JSON.stringify(message));
    const lane = 'lane' in message ? message.lane : 0;
    this.#write([
      this.#header(BLOCK_JSON, lane, json.length),
      json,
      new Uint8Array(paddingAfter(json.length)),
    ]);
  }

  #header(type: number, lane: number, payloadBytes: number): Uint8Array {
    this.#blockView.setUint32(0, type, true);
    this.#blockView.setUint32(4, lane, true);
    this.#blockView.setUint32(8, payloadBytes, true);
    this.#blockView.setUint32(12, blockCheck(type, lane, payloadBytes), true);
    return this.#blockHeader;
  }

  #write(chunks: readonly Uint8Array[]): void {
    for (const chunk of chunks) this.#bytes += chunk.length;
    this.#sink.write(chunks);
  }
}
