import { CannotError } from '../errors/index.js';
import { FORMAT_VERSION, FORMER_VERSION } from './file-layout.js';

// `source` is how the user knows the recording: its path, usually.

export function foreign(source: string, why: string): CannotError {
  return new CannotError('RECORDING_FOREIGN', {
    tried: `read ${source}`,
    why,
    next: 'give a file that safepoke recorded',
  });
}

export function otherVersion(source: string, version: number): CannotError {
  return new CannotError('RECORDING_VERSION', {
    tried: `read ${source}`,
    why: `it is a recording of format version ${version}, and this safepoke reads versions ${FORMER_VERSION} and ${FORMAT_VERSION}`,
    next: 'read it with the version of safepoke that recorded it',
  });
}

export function malformed(source: string, at: number, why: string): CannotError {
  return new CannotError('RECORDING_MALFORMED', {
    tried: `read ${source}`,
    why: `at byte ${at} ${why}`,
    next: 'what came before that byte can be trusted; record again if it is not enough',
  });
}

/** `hasRecords`: something of it could be read all the same. */
export function truncated(source: string, at: number, within: string, hasRecords: boolean): CannotError {
  const used = hasRecords ? 'every complete record before that byte was used' : 'no record comes before that';
  return new CannotError('RECORDING_TRUNCATED', {
    tried: `read all of ${source}`,
    why: `it is cut off at byte ${at}, ${within}`,
    next: `${used}; copy the file again if the copy was cut short`,
  });
}
