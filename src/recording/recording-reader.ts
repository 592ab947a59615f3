import {
  BLOCK_HEADER_BYTES,
  BLOCK_JSON,
  BLOCK_RECORDS,
  FORMAT_VERSION,
  FORMER_VERSION,
  HEADER_LENGTH_OFFSET,
  MAGIC,
  MAX_JSON_BYTES,
  PROLOGUE_BYTES,
  VERSION_OFFSET,
  blockCheck,
  paddingAfter,
} from './file-layout.js';
import type { RecordingHeader, RecordingMessage } from './file-layout.js';
import { BadJson, parseHeader, parseMessage } from './message-json.js';
import { RECORD_BYTES } from './record-layout.js';
import { foreign, malformed, otherVersion, truncated } from './recording-errors.js';

/** What a reader tells of, in the order of the file. */
export interface RecordingListener {
  onHeader?(header: RecordingHeader): void;
  /** Whole records, as 32-bit words; valid until it returns, as they are a view of what was pushed. */
  onRecords?(lane: number, words: Uint32Array): void;
  onMessage?(message: RecordingMessage): void;
  /** A block of records begins: its payload stands at byte `offset` of the file. */
  onRecordsBlock?(lane: number, offset: number, payloadBytes: number): void;
}

type State = 'prologue' | 'header' | 'block' | 'message' | 'records' | 'ended';

const WITHIN: Readonly<Record<State, string>> = {
  prologue: 'in its first bytes',
  header: 'in its header',
  block: 'where its next block should begin',
  message: 'in a message',
  records: 'in a block of records',
  ended: '',
};

/**
 * Reads a recording piece by piece, from anywhere: `push` takes bytes in pieces of any size, `finish` says that there
 * are no more. Both throw `CannotError`: RECORDING_FOREIGN, RECORDING_VERSION, RECORDING_MALFORMED, RECORDING_TRUNCATED.
 * Everything before the fault has been told by then. Memory is bounded by the largest message.
 */
export class RecordingReader {
  readonly #source: string;
  readonly #listener: RecordingListener;
  #state: State = 'prologue';
  /** Bytes of the file that were pushed or skipped and are dealt with. */
  #offset = 0;
  /** Bytes that the state still needs. */
  #wanted = PROLOGUE_BYTES;
  /** What the state has of them so far; unused for records. */
  #pieces: Uint8Array[] = [];
  /** Length of the JSON without its padding. */
  #jsonBytes = 0;
  #lane = 0;
  #version = FORMAT_VERSION;
  /** A record of which one push ended in the middle. */
  readonly #split = new Uint8Array(RECORD_BYTES);
  #splitBytes = 0;

  /** @param source how the user knows the recording, for error messages */
  constructor(source: string, listener: RecordingListener) {
    this.#source = source;
    this.#listener = listener;
  }

  /** Bytes of records that come next and may be skipped instead of being pushed. */
  get recordBytesAhead(): number {
    return this.#state === 'records' && this.#splitBytes === 0 ? this.#wanted : 0;
  }

  /** Bytes of the file that were pushed or skipped so far. */
  get bytesRead(): number {
    return this.#offset;
  }

  /** Bytes until the current part of the file is whole: a caller that pushes no more can skip records after it. */
  get bytesWanted(): number {
    return this.#wanted;
  }

  /** Leaves out the next bytes, at most `recordBytesAhead` and a multiple of a record. */
  skip(bytes: number): void {
    if (bytes > this.recordBytesAhead || bytes % RECORD_BYTES !== 0)
      throw new RangeError(`${bytes} bytes may not be skipped here`);
    this.#took(bytes);
  }

  push(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#state === 'ended') throw malformed(this.#source, this.#offset, 'something follows its end');
      const piece = bytes.subarray(at, at + Math.min(this.#wanted, bytes.length - at));
      at += piece.length;
      if (this.#state === 'records') this.#pushRecords(piece);
      // Copied, as the caller may use its buffer again; not by slice(), which for a Node Buffer makes a view.
      else this.#pieces.push(new Uint8Array(piece));
      this.#took(piece.length);
    }
  }

  /** Says that there are no more bytes. Throws RECORDING_TRUNCATED unless the recording came to its end. */
  finish(): void {
    if (this.#state === 'ended') return;
    if (this.#state === 'prologue') {
      if (this.#offset === 0) throw foreign(this.#source, 'it is empty');
      this.#checkMagic(this.#gathered());
    }
    const hasRecords = this.#state !== 'prologue' && this.#state !== 'header';
    throw truncated(this.#source, this.#offset, WITHIN[this.#state], hasRecords);
  }

  #took(bytes: number): void {
    this.#offset += bytes;
    this.#wanted -= bytes;
    if (this.#wanted > 0) return;
    switch (this.#state) {
      case 'prologue':
        this.#endPrologue(this.#gathered());
        break;
      case 'header': {
        const header = { ...this.#json(parseHeader), formatVersion: this.#version };
        this.#await('block', BLOCK_HEADER_BYTES);
        this.#listener.onHeader?.(header);
        break;
      }
      case 'block':
        this.#endBlockHeader(this.#gathered());
        break;
      case 'message': {
        const message = this.#json(parseMessage);
        if (message?.kind === 'end') this.#await('ended', Number.POSITIVE_INFINITY);
        else this.#await('block', BLOCK_HEADER_BYTES);
        if (message !== undefined) this.#listener.onMessage?.(message);
        break;
      }
      case 'records':
        this.#await('block', BLOCK_HEADER_BYTES);
        break;
      case 'ended':
    }
  }

  #endPrologue(bytes: Uint8Array): void {
    this.#checkMagic(bytes);
    const view = new DataView(bytes.buffer);
    const version = view.getUint32(VERSION_OFFSET, true);
    if (version !== FORMAT_VERSION && version !== FORMER_VERSION) throw otherVersion(this.#source, version);
    this.#version = version;
    this.#awaitJson('header', view.getUint32(HEADER_LENGTH_OFFSET, true));
  }

  #checkMagic(bytes: Uint8Array): void {
    for (let i = 0; i < Math.min(MAGIC.length, bytes.length); i++)
      if (bytes[i] !== MAGIC.charCodeAt(i))
        throw foreign(this.#source, `it does not begin with "${MAGIC}", so it is not a recording`);
  }

  #endBlockHeader(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer);
    const type = view.getUint32(0, true);
    const lane = view.getUint32(4, true);
    const payloadBytes = view.getUint32(8, true);
    if (view.getUint32(12, true) !== blockCheck(type, lane, payloadBytes))
      throw this.#bad('the head of a block is damaged');
    if (type === BLOCK_JSON) {
      this.#awaitJson('message', payloadBytes);
    } else if (type === BLOCK_RECORDS) {
      if (payloadBytes === 0 || payloadBytes % RECORD_BYTES !== 0)
        throw this.#bad(`a block of ${payloadBytes} bytes does not hold whole records`);
      this.#lane = lane;
      this.#listener.onRecordsBlock?.(lane, this.#offset, payloadBytes);
      this.#await('records', payloadBytes);
    } else {
      throw this.#bad(`there is a block of unknown type ${type}`);
    }
  }

  #pushRecords(piece: Uint8Array): void {
    let at = 0;
    if (this.#splitBytes > 0) {
      at = Math.min(RECORD_BYTES - this.#splitBytes, piece.length);
      this.#split.set(piece.subarray(0, at), this.#splitBytes);
      this.#splitBytes += at;
      if (this.#splitBytes < RECORD_BYTES) return;
      this.#splitBytes = 0;
      this.#listener.onRecords?.(this.#lane, new Uint32Array(this.#split.buffer));
    }
    const whole = piece.length - at - ((piece.length - at) % RECORD_BYTES);
    if (whole > 0) {
      // The words are little endian, as is every machine that runs Node on x86 or Arm, and every browser.
      const aligned =
        (piece.byteOffset + at) % Uint32Array.BYTES_PER_ELEMENT === 0
          ? piece.subarray(at, at + whole)
          : new Uint8Array(piece.subarray(at, at + whole));
      this.#listener.onRecords?.(this.#lane, new Uint32Array(aligned.buffer, aligned.byteOffset, whole / 4));
    }
    const rest = piece.subarray(at + whole);
    this.#split.set(rest);
    this.#splitBytes = rest.length;
  }

  #await(state: State, bytes: number): void {
    this.#state = state;
    this.#wanted = bytes;
    this.#pieces = [];
  }

  #awaitJson(state: 'header' | 'message', bytes: number): void {
    if (bytes === 0 || bytes > MAX_JSON_BYTES) throw this.#bad(`a ${state} claims to have ${bytes} bytes`);
    this.#jsonBytes = bytes;
    this.#await(state, bytes + paddingAfter(bytes));
  }

  #json<T>(parse: (text: string) => T): T {
    try {
      return parse(new TextDecoder().decode(this.#gathered().subarray(0, this.#jsonBytes)));
    } catch (error) {
      if (error instanceof BadJson) throw this.#bad(error.message);
      throw error;
    }
  }

  #gathered(): Uint8Array {
    const only = this.#pieces[0];
    if (this.#pieces.length === 1) return only;
    const all = new Uint8Array(this.#pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of this.#pieces) {
      all.set(piece, at);
      at += piece.length;
    }
    return all;
  }

  #bad(why: string): Error {
    return malformed(this.#source, this.#offset, why);
  }
}
