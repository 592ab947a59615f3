// A flight recorder: a recording of which only the newest records are kept, as many as fit. They are kept in memory and written
// when the recording ends; what there was no room for is counted per lane.
import type { RecordingMessage } from './file-layout.js';
import {
  KIND_BITS,
  KIND_ENTRY,
  KIND_EXIT,
  KIND_LOST,
  KIND_MASK,
  KIND_TAIL,
  RECORD_BYTES,
  RECORD_WORDS,
  SLOT_WORD,
  WHAT_WORD,
} from './record-layout.js';
import type { RecordingWriter } from './recording-writer.js';

/** Records that are kept, or a message that must stay behind them. */
type Item =
  | {
      readonly kind: 'records';
      readonly lane: number;
      readonly words: Uint32Array<ArrayBuffer>;
      readonly segment: Segment;
    }
  | { readonly kind: 'message'; readonly message: RecordingMessage };

/** Compaction of the queue waits until so many of its items are gone. */
const MANY_ITEMS = 4096;
/**
 * Records are kept in segments, which are used again when the records in them have gone: a copy of its own for each piece would
 * leave gigabytes to the garbage collector before it looks.
 */
const SEGMENT_BYTES = 1 << 20;

/** Pieces that the room holds at least. */
const PIECES = 16;

/** Memory that is filled from its beginning, and free again when all that stood in it has gone. */
interface Segment {
  readonly words: Uint32Array<ArrayBuffer>;
  used: number;
  items: number;
}

/** Takes what a RecordingWriter takes. */
export class NewestWriter {
  readonly #writer: RecordingWriter;
  readonly #room: number;
  /** What is given up goes by the piece: so little is given up that there was still room for. */
  readonly #pieceBytes: number;
  #items: Item[] = [];
  /** Items before this one are gone. */
  #first = 0;
  #bytes = 0;
  /** The one that is being filled. */
  #segment = freshSegment();
  readonly #free: Segment[] = [];
  #notKept = 0;
  /** By lane: records that were given and are not in the recording, and those that the ring had lost among them. */
  readonly #left = new Map<number, number>();
  readonly #lost = new Map<number, number>();
  readonly #ended: RecordingMessage[] = [];

  /** Keeps at most `room` bytes of records, and at least the piece that was written last. */
  constructor(writer: RecordingWriter, room: number) {
    this.#writer = writer;
    this.#room = room;
    const records = Math.floor(room / PIECES / RECORD_BYTES);
    this.#pieceBytes = Math.min(SEGMENT_BYTES, Math.max(1, records) * RECORD_BYTES);
  }

  writeRecords(lane: number, chunks: readonly Uint8Array[]): void {
    for (const chunk of chunks) {
      for (let at = 0; at < chunk.length; at += this.#pieceBytes)
        this.#keep(lane, chunk.subarray(at, at + this.#pieceBytes));
    }
    while (this.#bytes > this.#room && this.#first < this.#items.length - 1) this.#giveUp();
    if (this.#first < MANY_ITEMS || this.#first * 2 < this.#items.length) return;
    this.#items = this.#items.slice(this.#first);
    this.#first = 0;
  }

  /** Messages are all kept. Those that say what comes behind a lane's records wait with them. */
  writeMessage(message: RecordingMessage): void {
    if (message.kind === 'lost' || message.kind === 'thread-end')
      this.#items.push({ kind: 'message', message });
    else this.#writer.writeMessage(message);
  }

  /** Writes what is kept; only `clock` and `end` messages may follow. Returns how many records were not kept. */
  release(): number {
    const items = this.#items.slice(this.#first);
    this.#items = [];
    this.#first = 0;
    this.#leaveOutOrphans(items);
    for (const [lane, records] of this.#lost) this.#writer.writeMessage({ kind: 'lost', lane, records });
    for (const [lane, records] of this.#left)
      this.#writer.writeMessage({ kind: 'lost', lane, records, notKept: true });
    for (const message of this.#ended) this.#writer.writeMessage(message);
    for (const item of items) {
      if (item.kind === 'message') {
        this.#writer.writeMessage(item.message);
        continue;
      }
      const { buffer, byteOffset, byteLength } = item.words;
      this.#writer.writeRecords(item.lane, [new Uint8Array(buffer, byteOffset, byteLength)]);
    }
    return this.#notKept;
  }

  #keep(lane: number, records: Uint8Array): void {
    const length = records.length / Uint32Array.BYTES_PER_ELEMENT;
    if (this.#segment.used + length > this.#segment.words.length)
      this.#segment = this.#free.pop() ?? freshSegment();
    const segment = this.#segment;
    const words = segment.words.subarray(segment.used, segment.used + length);
    new Uint8Array(words.buffer, words.byteOffset, words.byteLength).set(records);
    segment.used += length;
    segment.items++;
    this.#items.push({ kind: 'records', lane, words, segment });
    this.#bytes += words.byteLength;
  }

  #leaveOut(lane: number): void {
    this.#notKept++;
    add(this.#left, lane, 1);
  }

  /** The oldest item goes. */
  #giveUp(): void {
    const item = this.#items[this.#first++];
    if (item.kind === 'message') {
      if (item.message.kind === 'lost') add(this.#lost, item.message.lane, item.message.records);
      else this.#ended.push(item.message);
      return;
    }
    const { words, segment } = item;
    this.#bytes -= words.byteLength;
    if (--segment.items === 0) {
      segment.used = 0;
      if (segment !== this.#segment) this.#free.push(segment);
    }
    for (let at = 0; at < words.length; at += RECORD_WORDS) {
      const isLost = (words[at + WHAT_WORD] & KIND_MASK) === KIND_LOST;
      if (isLost) add(this.#lost, item.lane, words[at + SLOT_WORD]);
      else this.#leaveOut(item.lane);
    }
  }

  /** Ends of calls whose beginning is not kept are not kept either: nobody could tell what they end. */
  #leaveOutOrphans(items: Item[]): void {
    /** The function whose call is open in a slot, by lanes. */
    const open = new Map<number, Map<number, number>>();
    items.forEach((item, i) => {
      if (item.kind !== 'records' || !(this.#left.has(item.lane) || this.#lost.has(item.lane))) return;
      let slots = open.get(item.lane);
      if (slots === undefined) open.set(item.lane, (slots = new Map<number, number>()));
      const { words } = item;
      let to = 0;
      for (let at = 0; at < words.length; at += RECORD_WORDS) {
        const what = words[at + WHAT_WORD];
        const kind = what & KIND_MASK;
        const slot = words[at + SLOT_WORD];
        if (kind === KIND_ENTRY) slots.set(slot, what >>> KIND_BITS);
        else if (kind === KIND_EXIT || kind === KIND_TAIL) {
          if (slots.get(slot) !== what >>> KIND_BITS) {
            this.#leaveOut(item.lane);
            continue;
          }
          slots.delete(slot);
        }
        if (to !== at) words.copyWithin(to, at, at + RECORD_WORDS);
        to += RECORD_WORDS;
      }
      items[i] = { ...item, words: words.subarray(0, to) };
    });
  }
}

function freshSegment(): Segment {
  return { words: new Uint32Array(SEGMENT_BYTES / Uint32Array.BYTES_PER_ELEMENT), used: 0, items: 0 };
}

function add(counts: Map<number, number>, lane: number, records: number): void {
  counts.set(lane, (counts.get(lane) ?? 0) + records);
}
