import assert from 'node:assert/strict';
import fc from 'fast-check';
import { isSafepokeError } from '../errors/index.js';
import {
  ChromeOutput,
  FoldedOutput,
  GraphOutput,
  JsonLinesOutput,
  RecordingFile,
  Report,
  filterCalls,
  type TextOutput,
  type TextSink,
} from '../output/index.js';
import { sampleRecording, withFile } from '../output/sample.test.support.js';
import { SyntheticRecording } from '../recording/synthetic.test.support.js';

/** The longest name in what is fuzzed, and more than the longest line's other parts. */
const LINE_BYTES = 1024;
/** Lines that are written whatever a recording holds. */
const FIXED_BYTES = 4096;

type MakeOutput = (file: RecordingFile, sink: TextSink) => TextOutput;

const outputs: ReadonlyMap<string, MakeOutput> = new Map<string, MakeOutput>([
  ['graph', (file, sink) => new GraphOutput(file.info, sink)],
  ['report', (file, sink) => new Report(file.info, sink)],
  ['chrome', (file, sink) => new ChromeOutput(file.info, sink)],
  ['folded', (file, sink) => new FoldedOutput(file.info, sink)],
  ['jsonl', (file, sink) => new JsonLinesOutput(file.info, sink)],
]);

/**
 * Reads a recording in every way there is. Throws where a reader throws what is not meant for people, or writes more than so many bytes
 * for each byte that it has read.
 */
export function readInEveryWay(bytes: Uint8Array): void {
  withFile(bytes, (path) => {
    let file: RecordingFile;
    try {
      file = new RecordingFile(path);
    } catch (error) {
      assert.ok(isSafepokeError(error), String(error));
      return;
    }
    try {
      const most = FIXED_BYTES + (bytes.length / 16) * LINE_BYTES;
      for (const [name, make] of outputs) {
        for (const order of ['file', 'time'] as const) {
          for (const filter of [{}, { minTicks: 1000 }, { maxDepth: 3 }]) {
            let written = 0;
            const output = make(file, (text) => (written += text.length));
            const visitor = filterCalls(output, filter);
            if (order === 'file') file.visit(visitor);
            else file.visitByTime(visitor);
            output.finish();
            assert.ok(written <= most, `${name} wrote ${written} bytes for ${bytes.length}`);
          }
        }
      }
      try {
        for (const call of file.calls()) assert.ok(call.end !== undefined);
      } catch (error) {
        assert.ok(isSafepokeError(error), String(error));
      }
    } finally {
      file.close();
    }
  });
}

interface Mutation {
  readonly at: number;
  readonly kind: 'flip' | 'set' | 'cut' | 'repeat' | 'drop';
  readonly value: number;
}

const mutation: fc.Arbitrary<Mutation> = fc.record({
  at: fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
  kind: fc.constantFrom('flip', 'set', 'cut', 'repeat', 'drop'),
  value: fc.constantFrom(0, 1, 2, 4, 16, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff),
});

function mutated(bytes: Uint8Array, { at, kind, value }: Mutation): Uint8Array {
  const position = Math.floor(at * bytes.length);
  const word = position - (position % 4);
  const length = Math.min(value % 256, bytes.length - position);
  switch (kind) {
    case 'flip': {
      const flipped = new Uint8Array(bytes);
      if (flipped.length > 0) flipped[position] ^= 1 << (value % 8);
      return flipped;
    }
    case 'set': {
      const set = new Uint8Array(bytes);
      if (word + 4 <= set.length) new DataView(set.buffer).setUint32(word, value, true);
      return set;
    }
    case 'cut':
      return bytes.slice(0, position);
    case 'repeat': {
      const piece = bytes.slice(position, position + length);
      return Uint8Array.from(Buffer.concat([bytes.slice(0, position), piece, bytes.slice(position)]));
    }
    case 'drop':
      return Uint8Array.from(Buffer.concat([bytes.slice(0, position), bytes.slice(position + length)]));
  }
}

/** Recordings of which bytes were changed, cut, repeated and dropped. */
export function fuzzRecordings(rounds: number, seed: number): void {
  const sample = sampleRecording().bytes();
  fc.assert(
    fc.property(fc.array(mutation, { minLength: 1, maxLength: 8 }), (mutations) => {
      readInEveryWay(mutations.reduce(mutated, sample));
    }),
    { numRuns: rounds, seed },
  );
}

const KINDS = [1, 2, 3, 4, 5, 0, 15] as const;

/** Whole recordings in which records say anything: ends without beginnings, time that goes back, any lane, any slot. */
export function fuzzCalls(rounds: number, seed: number): void {
  const record = fc.record({
    lane: fc.constantFrom(0, 1, 2, 0xffff_ffff),
    tick: fc.constantFrom(0, 1, 2, 500, 5000, -400, 2 ** 40, 2 ** 60),
    kind: fc.constantFrom(...KINDS),
    name: fc.constantFrom('f', 'g', 'constructor', '__proto__'),
    slot: fc.constantFrom(0, 32, 64, 0x7fff_f000, 0x8000_0000, 0xffff_ffff),
  });
  fc.assert(
    fc.property(
      fc.constantFrom('calls', 'entries'),
      fc.array(record, { maxLength: 200 }),
      (mode, records) => {
        const recording = new SyntheticRecording(mode);
        for (const { lane, tick, kind, name, slot } of records)
          recording.record(lane, tick, kind as 1, name, slot);
        readInEveryWay(recording.bytes());
      },
    ),
    { numRuns: rounds, seed },
  );
}
