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
import type { RecordedFunction, RecordingHeader, RecordingMessage } from './file-layout.js';
import { RECORD_BYTES } from './record-layout.js';

/** Where a recording goes. */
export interface RecordingSink {
  /** Takes the bytes of all chunks, in order, before it returns: the chunks may be views of a ring. */
  write(chunks: readonly Uint8Array[]): void;
}

/** Keeps messages far below what readers accept, even where names are kilobytes long: so many functions, or so long names. */
const FUNCTIONS_PER_MESSAGE = 4096;
const CHARACTERS_PER_MESSAGE = 1 << 20;
/** Members of a summary whose keys are longer together, such as the calls of a million functions, are left out: readers would refuse it. */
const MAX_MEMBER_CHARACTERS = 16 << 20;

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
    if (message.kind === 'functions') {
      for (let at = 0, next = 0; at < message.items.length || at === 0; at = next) {
        next = endOfPart(message.items, at);
        this.#writeJson({
          kind: 'functions',
          first: message.first + at,
          items: message.items.slice(at, next),
        });
        if (next === 0) return;
      }
    } else if (message.kind === 'end') this.#writeJson({ kind: 'end', summary: bounded(message.summary) });
    else this.#writeJson(message);
  }

  #writeJson(message: RecordingMessage): void {
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

/** Where the functions of one message end that begins with that one: at least behind it. */
function endOfPart(items: readonly RecordedFunction[], from: number): number {
  let characters = 0;
  let at = from;
  while (at < items.length && at - from < FUNCTIONS_PER_MESSAGE && characters < CHARACTERS_PER_MESSAGE) {
    const { name, demangled, module } = items[at++];
    characters += name.length + (demangled?.length ?? 0) + module.length;
  }
  return at;
}

function bounded(summary: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const kept = Object.entries(summary).filter(([, member]) => {
    if (typeof member !== 'object' || member === null) return true;
    let characters = 0;
    for (const key of Object.keys(member)) characters += key.length;
    return characters <= MAX_MEMBER_CHARACTERS;
  });
  return Object.fromEntries(kept);
}
