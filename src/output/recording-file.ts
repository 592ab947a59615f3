import { closeSync, fstatSync, statSync } from 'node:fs';
import { CannotError } from '../errors/index.js';
import type { SafepokeError } from '../errors/index.js';
import {
  CallBuilder,
  CallObjects,
  LaneMerger,
  RECORD_BYTES,
  builderOptions,
  lostRecord,
} from '../recording/index.js';
import type { Call, CallVisitor, TraceInfo } from '../recording/index.js';
import { openForReading, readPiece } from './input-file.js';
import { LOST_AFTER, NOT_KEPT, THREAD_END, surveyFile } from './survey.js';
import type { Contents } from './survey.js';

/** Read at once where the file is read from front to back. */
const STREAM_BYTES = 4 << 20;
/** Read at once for one lane where lanes are merged: as many lanes are in memory as there are threads. */
const LANE_BYTES = 1 << 16;

/** What became of the records of a recording. */
export interface ReadSummary {
  readonly records: number;
  /** Records that the recording says were dropped. */
  readonly lost: number;
  /** Records that the recording says were left out, as only the newest were to be kept. */
  readonly notKept: number;
  /** Records that made no sense; 0 in a sound recording. */
  readonly anomalies: number;
}

/** A recording on disk. Opening it surveys the file: functions, threads and clock are known before the first record. */
export class RecordingFile {
  readonly path: string;
  readonly info: TraceInfo;
  /** Why the file is not whole, if it is not: its complete records can be read all the same. */
  readonly fault: SafepokeError | undefined;
  readonly #fd: number;
  readonly #contents: Contents;

  /**
   * Throws RECORDING_UNREADABLE, RECORDING_FOREIGN or RECORDING_VERSION, and RECORDING_TRUNCATED or RECORDING_MALFORMED
   * if not even the header is whole.
   */
  constructor(path: string) {
    this.path = path;
    this.#fd = openForReading(path);
    try {
      const survey = surveyFile(this.#fd, path);
      this.info = survey.info;
      this.fault = survey.fault;
      this.#contents = survey.contents;
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  /** True if that path leads to this file: writing there would destroy what is being read. */
  isAt(path: string): boolean {
    const there = statSync(path, { throwIfNoEntry: false });
    const here = fstatSync(this.#fd);
    return there?.dev === here.dev && there.ino === here.ino;
  }

  /** Tells the visitor of all calls in the order of the file: each lane in order, lanes in any mixture. Fastest. */
  visit(visitor: CallVisitor): ReadSummary {
    const { info } = this;
    const builder = new CallBuilder(info.header.mode, info.clock, visitor, builderOptions(info, false));
    const { lanes, offsets, sizes } = this.#contents;
    const piece = Buffer.allocUnsafeSlow(STREAM_BYTES);
    let pieceStart = 0;
    let pieceEnd = 0;
    for (let i = 0; i < lanes.length; i++) {
      if (isLoss(offsets[i])) builder.addLost(lanes[i], sizes[i], offsets[i] === NOT_KEPT);
      else if (offsets[i] === THREAD_END) builder.endLane(lanes[i]);
      else {
        const end = offsets[i] + sizes[i];
        for (let at = offsets[i]; at < end;) {
          if (at < pieceStart || at >= pieceEnd) {
            pieceStart = at;
            pieceEnd = at + this.#read(piece, STREAM_BYTES, at);
          }
          const stop = Math.min(end, pieceEnd);
          const bytes = stop - at - ((stop - at) % RECORD_BYTES);
          if (bytes === 0) {
            // A record stands across the end of the piece: the next piece begins with it.
            pieceEnd = at;
            continue;
          }
          builder.addRecords(lanes[i], asWords(piece, at - pieceStart, bytes));
          at += bytes;
        }
      }
    }
    builder.finish();
    return builder;
  }

  /** Tells the visitor of all calls in the order of time. */
  visitByTime(visitor: CallVisitor): ReadSummary {
    const { builder, merger } = this.#merge(visitor);
    merger.finish();
    builder.finish();
    return builder;
  }

  /** All calls, each when it has ended, in the order of time. Throws `fault` after the last, if there is one. */
  *calls(): Generator<Call, void> {
    const ended: Call[] = [];
    const objects = new CallObjects(this.info, (call) => ended.push(call));
    const { builder, merger } = this.#merge(objects);
    while (merger.step()) {
      yield* ended;
      ended.length = 0;
    }
    builder.finish();
    yield* ended;
    if (this.fault !== undefined) throw this.fault;
  }

  #merge(visitor: CallVisitor): { builder: CallBuilder; merger: LaneMerger } {
    const { info } = this;
    const builder = new CallBuilder(info.header.mode, info.clock, visitor, builderOptions(info, true));
    const cursors = this.#laneCursors();
    const refill = (lane: number): Uint32Array | undefined => {
      const cursor = cursors.get(lane);
      return cursor === undefined ? undefined : this.#nextOfLane(cursor);
    };
    const merger = new LaneMerger(info.clock, builder, refill);
    for (const lane of cursors.keys()) {
      const first = refill(lane);
      if (first !== undefined) merger.push(lane, first);
      if (info.hasEnded(lane)) merger.endLane(lane);
    }
    return { builder, merger };
  }

  #laneCursors(): Map<number, LaneCursor> {
    const cursors = new Map<number, LaneCursor>();
    const { lanes, offsets, sizes } = this.#contents;
    for (let i = 0; i < lanes.length; i++) {
      if (offsets[i] === THREAD_END) continue;
      let cursor = cursors.get(lanes[i]);
      if (cursor === undefined) {
        cursor = { entries: [], next: 0, bytesDone: 0, buffer: Buffer.alloc(0) };
        cursors.set(lanes[i], cursor);
      }
      cursor.entries.push(i);
      const wanted = Math.min(LANE_BYTES, isLoss(offsets[i]) ? 0 : sizes[i]);
      if (cursor.buffer.length < wanted) cursor.buffer = Buffer.allocUnsafeSlow(wanted);
    }
    return cursors;
  }

  /** The buffer of the piece given before is used again: a merger asks for more when it has given all out. */
  #nextOfLane(cursor: LaneCursor): Uint32Array | undefined {
    if (cursor.next === cursor.entries.length) return undefined;
    const entry = cursor.entries[cursor.next];
    const { offsets, sizes } = this.#contents;
    if (isLoss(offsets[entry])) {
      cursor.next++;
      return lostRecord(sizes[entry], offsets[entry] === NOT_KEPT);
    }
    const bytes = Math.min(sizes[entry] - cursor.bytesDone, cursor.buffer.length);
    this.#readAll(cursor.buffer, bytes, offsets[entry] + cursor.bytesDone);
    cursor.bytesDone += bytes;
    if (cursor.bytesDone === sizes[entry]) {
      cursor.next++;
      cursor.bytesDone = 0;
    }
    return asWords(cursor.buffer, 0, bytes);
  }

  #readAll(buffer: Buffer, bytes: number, at: number): void {
    if (this.#read(buffer, bytes, at) < bytes) throw this.#changed();
  }

  /** Bytes read, at least one record unless the file was cut since it was surveyed. */
  #read(buffer: Buffer, bytes: number, at: number): number {
    let done = 0;
    while (done < bytes) {
      const count = readPiece(this.#fd, this.path, buffer, done, bytes - done, at + done);
      if (count === 0) break;
      done += count;
    }
    if (done < RECORD_BYTES) throw this.#changed();
    return done;
  }

  #changed(): CannotError {
    return new CannotError('RECORDING_UNREADABLE', {
      tried: `read ${this.path}`,
      why: 'it became shorter while it was read',
      next: 'wait until it is complete, then try again',
    });
  }
}

interface LaneCursor {
  /** Positions in `Contents`. */
  readonly entries: number[];
  next: number;
  /** Of the next entry's block. */
  bytesDone: number;
  buffer: Buffer;
}

function isLoss(offset: number): boolean {
  return offset === LOST_AFTER || offset === NOT_KEPT;
}

/** A view of whole records as words; copies where they do not stand at a multiple of a word. */
function asWords(buffer: Buffer, offset: number, bytes: number): Uint32Array {
  const start = buffer.byteOffset + offset;
  if (start % Uint32Array.BYTES_PER_ELEMENT === 0) return new Uint32Array(buffer.buffer, start, bytes / 4);
  return new Uint32Array(new Uint8Array(buffer.subarray(offset, offset + bytes)).buffer);
}
