import { fstatSync } from 'node:fs';
import { CannotError, isSafepokeError } from '../errors/index.js';
import type { SafepokeError } from '../errors/index.js';
import { RECORD_BYTES, RecordingReader, TraceInfo } from '../recording/index.js';
import { readPiece } from './input-file.js';

/** Messages are small and blocks of records are passed over, so a survey of the file needs no larger piece. */
const SURVEY_BYTES = 1 << 16;

/** Threads that lived in one trace; what is known of each takes some memory. */
const MAX_LANES = 1 << 22;

/** Stands for an offset where a lane lost records after all of its blocks so far. */
export const LOST_AFTER = -1;
/** The same of records that were taken and not kept. */
export const NOT_KEPT = -3;
/** Stands for an offset where a lane's thread ended. */
export const THREAD_END = -2;

/** What the lanes of a recording hold, in the order of the file; a field to an array, as blocks may be many. */
export interface Contents {
  readonly lanes: number[];
  /** Where a block of records stands in the file, or LOST_AFTER, NOT_KEPT or THREAD_END. */
  readonly offsets: number[];
  /** Bytes of a block; records missing for LOST_AFTER and NOT_KEPT. */
  readonly sizes: number[];
}

/** What a look through a recording finds without reading its records. */
export interface Survey {
  readonly info: TraceInfo;
  readonly contents: Contents;
  readonly fault: SafepokeError | undefined;
}

/** Throws what is wrong if not even the header is whole; later faults stand in the result. */
export function surveyFile(fd: number, path: string): Survey {
  const size = fstatSync(fd).size;
  const contents: Contents = { lanes: [], offsets: [], sizes: [] };
  const lanes = new Set<number>();
  const add = (lane: number, offset: number, bytes: number): void => {
    if (lanes.size === MAX_LANES && !lanes.has(lane))
      throw new CannotError('RECORDING_MALFORMED', {
        tried: `read all of ${path}`,
        why: `it tells of more than ${MAX_LANES} threads`,
        next: 'those before were read',
      });
    lanes.add(lane);
    contents.lanes.push(lane);
    contents.offsets.push(offset);
    contents.sizes.push(bytes);
  };
  const found: { info: TraceInfo | undefined } = { info: undefined };
  const reader = new RecordingReader(path, {
    onHeader: (header) => {
      found.info = new TraceInfo(header);
    },
    onMessage: (message) => {
      found.info?.accept(message);
      if (message.kind === 'lost')
        add(message.lane, message.notKept === true ? NOT_KEPT : LOST_AFTER, message.records);
      else if (message.kind === 'thread-end') add(message.lane, THREAD_END, 0);
    },
    onRecordsBlock: (lane, offset, payloadBytes) => {
      const present = Math.min(payloadBytes, size - offset);
      const whole = present - (present % RECORD_BYTES);
      if (whole > 0) add(lane, offset, whole);
    },
  });
  let fault: SafepokeError | undefined;
  try {
    readThrough(fd, path, size, reader);
    reader.finish();
  } catch (error) {
    if (!isSafepokeError(error)) throw error;
    fault = error;
  }
  if (found.info === undefined) throw fault ?? new Error('a recording came to its end without a header');
  return { info: found.info, contents, fault };
}

function readThrough(fd: number, path: string, size: number, reader: RecordingReader): void {
  const piece = Buffer.allocUnsafeSlow(SURVEY_BYTES);
  let at = 0;
  while (at < size) {
    const count = readPiece(fd, path, piece, 0, SURVEY_BYTES, at);
    if (count === 0) return;
    for (let used = 0; used < count;) {
      // Records are passed over, in this piece and beyond; a record that the end of the file cuts is not.
      const ahead = Math.min(reader.recordBytesAhead, size - at - used);
      const skipped = ahead - (ahead % RECORD_BYTES);
      if (skipped > 0) {
        reader.skip(skipped);
        used += skipped;
        continue;
      }
      // One block at a time, so that the records that follow its head are passed over too.
      const taken = Math.min(count - used, reader.bytesWanted);
      reader.push(piece.subarray(used, used + taken));
      used += taken;
    }
    at = reader.bytesRead;
  }
}
