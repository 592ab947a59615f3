import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isSafepokeError } from '../errors/index.js';
import type { SafepokeError } from '../errors/index.js';
import { BLOCK_HEADER_BYTES, FORMAT_VERSION, MAGIC, VERSION_OFFSET } from './file-layout.js';
import type { RecordingMessage } from './file-layout.js';
import { RECORD_BYTES } from './record-layout.js';
import { RecordingReader } from './recording-reader.js';
import { SyntheticRecording } from './synthetic.test.support.js';

interface Read {
  readonly messages: RecordingMessage[];
  readonly words: Map<number, number[]>;
  readonly error: SafepokeError | undefined;
}

function read(bytes: Uint8Array, pieceSizes: readonly number[] = [bytes.length]): Read {
  const messages: RecordingMessage[] = [];
  const words = new Map<number, number[]>();
  const reader = new RecordingReader('it', {
    onRecords: (lane, some) => {
      assert.equal(some.length % 4, 0);
      const all = words.get(lane) ?? [];
      words.set(lane, all);
      for (const word of some) all.push(word);
    },
    onMessage: (message) => messages.push(message),
  });
  let error: SafepokeError | undefined;
  try {
    let at = 0;
    for (let i = 0; at < bytes.length; i++) {
      const size = Math.max(1, pieceSizes[i % pieceSizes.length]);
      // A buffer that is used again, as a file's reader does: nothing may be kept that is not copied.
      const piece = Buffer.from(bytes.subarray(at, at + size));
      reader.push(piece);
      piece.fill(0xee);
      at += size;
    }
    reader.finish();
  } catch (thrown) {
    if (!isSafepokeError(thrown)) throw thrown;
    error = thrown;
  }
  return { messages, words, error };
}

function sample(): SyntheticRecording {
  return new SyntheticRecording()
    .thread(0, 4711, 'server')
    .thread(1, 4712, 'worker')
    .enter(0, 10, 'main')
    .enter(0, 20, 'parse')
    .flush()
    .enter(1, 25, 'work')
    .leave(0, 30)
    .lost(0, 35, 3)
    .leave(1, 40)
    .leave(0, 50);
}

test('a recording reads the same in pieces of any size', () => {
  const bytes = sample().bytes();
  const whole = read(bytes);
  assert.equal(whole.error, undefined);
  assert.equal(whole.words.get(0)?.length, 5 * 4);
  assert.equal(whole.words.get(1)?.length, 2 * 4);
  assert.deepEqual(
    whole.messages.map((message) => message.kind),
    ['thread', 'thread', 'functions', 'functions', 'functions', 'end'],
  );
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 70 }), { minLength: 1, maxLength: 20 }), (sizes) => {
      const pieces = read(bytes, sizes);
      assert.deepEqual(pieces, whole);
    }),
  );
});

test('a recording cut at any byte gives its complete records and an error that names the byte', () => {
  const bytes = sample().bytes();
  let most = 0;
  for (let length = 16; length < bytes.length; length++) {
    const { words, error } = read(bytes.subarray(0, length));
    assert.equal(error?.code, 'RECORDING_TRUNCATED');
    assert.match(error.message, new RegExp(`byte ${length},`));
    const records = [...words.values()].reduce((sum, some) => sum + some.length / 4, 0);
    assert.ok(records >= most, 'a longer piece never gives fewer records');
    most = records;
  }
  assert.equal(most, 7);
});

test('a file that is not a recording is told apart from one of another version', () => {
  assert.equal(read(new Uint8Array()).error?.code, 'RECORDING_FOREIGN');
  assert.equal(read(Buffer.from('ELF and more of it')).error?.code, 'RECORDING_FOREIGN');
  const short = read(Buffer.from('SAFE')).error;
  assert.equal(short?.code, 'RECORDING_TRUNCATED');
  assert.match(short.message, /no record comes before that/);
  const other = Buffer.from(sample().bytes());
  assert.equal(other.toString('latin1', 0, MAGIC.length), MAGIC);
  other.writeUInt32LE(FORMAT_VERSION + 1, VERSION_OFFSET);
  const { error } = read(other);
  assert.equal(error?.code, 'RECORDING_VERSION');
  assert.match(error.message, /version 3, and this safepoke reads versions 1 and 2/);
});

test('a damaged block head is found, and so is anything after the end', () => {
  const bytes = sample().bytes();
  const longer = new Uint8Array(bytes.length + 1);
  longer.set(bytes);
  assert.match(read(longer).error?.message ?? '', /something follows its end/);
  const damaged = Buffer.from(bytes);
  const header = 16 + damaged.readUInt32LE(12);
  const firstBlock = header + (-header & 15);
  damaged[firstBlock + 4] ^= 1;
  assert.match(read(damaged).error?.message ?? '', /the head of a block is damaged/);
});

test('a header that promises nonsense is refused', () => {
  for (const header of [{ tscHz: 1e-300 }, { tscHz: 0 }, { startTsc: '-1' }, { pid: 1.5 }]) {
    const { error } = read(new SyntheticRecording('calls', header).bytes());
    assert.equal(error?.code, 'RECORDING_MALFORMED', JSON.stringify(header));
  }
});

test('functions by the ten thousand are written in messages of moderate size, in order', () => {
  const items = Array.from({ length: 10_000 }, (_, i) => ({ name: `f${i}`, module: 'm', address: '0x1' }));
  const { messages } = read(new SyntheticRecording().message({ kind: 'functions', first: 0, items }).bytes());
  const parts = messages.filter((message) => message.kind === 'functions');
  assert.deepEqual(
    parts.map(({ first }) => first),
    [0, 4096, 8192],
  );
  assert.deepEqual(
    parts.flatMap((part) => part.items),
    items,
  );
});

test('records may be skipped, and only records', () => {
  const bytes = sample().bytes();
  const kinds: string[] = [];
  const blocks: number[] = [];
  const reader = new RecordingReader('it', {
    onRecords: () => assert.fail('all records are skipped'),
    onMessage: (message) => kinds.push(message.kind),
    onRecordsBlock: (_lane, offset, payloadBytes) => {
      assert.equal(offset % BLOCK_HEADER_BYTES, 0);
      blocks.push(payloadBytes / RECORD_BYTES);
    },
  });
  assert.throws(() => reader.skip(16), RangeError);
  while (reader.bytesRead < bytes.length) {
    const ahead = reader.recordBytesAhead;
    if (ahead > 0) reader.skip(ahead);
    else reader.push(bytes.subarray(reader.bytesRead, reader.bytesRead + reader.bytesWanted));
  }
  reader.finish();
  assert.equal(kinds.at(-1), 'end');
  assert.equal(
    blocks.reduce((sum, count) => sum + count, 0),
    7,
  );
});

test('whatever is changed in a recording, reading it ends, and fails with an error for people if it fails', () => {
  const bytes = sample().bytes();
  const change = fc.record({ at: fc.nat(bytes.length - 1), to: fc.integer({ min: 0, max: 255 }) });
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 8 }), fc.nat(bytes.length), (changes, length) => {
      const mutated = bytes.slice(0, length);
      for (const { at, to } of changes) if (at < length) mutated[at] = to;
      read(mutated, [97]);
    }),
    { numRuns: 2000 },
  );
});
