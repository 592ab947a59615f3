import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assemble, disassemble } from '../x86/index.js';
import { planGeometry } from './layout.js';
import {
  RECORDER_ENTRIES,
  THREAD_POINTER_BY_REGISTER,
  THREAD_POINTER_LABEL,
  recorderListing,
} from './recorder.js';
import { emitRecorder, emitRegion, regionBytes, type StubSite } from './stubs.js';

const geometry = planGeometry(128, 1 << 20, 1 << 15);
const places = { control: 0x7f00_1234_5000n, data: 0x7f00_1234_6000n };

test('the recorder assembles, with an entry for every kind of head', () => {
  const listing = recorderListing({ ...places, heads: 0x5555_0000_2000n, firstIndex: 0 }, geometry);
  const { labels, bytes } = assemble(listing, 0x5555_0000_0000n);
  for (const entry of RECORDER_ENTRIES) assert.ok(labels.has(entry), entry);
  assert.ok(bytes.length > 1000);
});

test('the recorder touches no register that it does not save, and none of the vector or x87 ones', () => {
  const listing = recorderListing({ ...places, heads: 0x5555_0000_2000n, firstIndex: 0 }, geometry);
  const text = disassemble(assemble(listing, 0x5555_0000_0000n).bytes, 0x5555_0000_0000n);
  for (const line of text.split('\n')) {
    const instruction = line.slice(line.indexOf('  ') + 2);
    // rbp is read by the frame variant (its slot lies above it); r11 is saved around the one system call.
    assert.doesNotMatch(instruction, /\b(r(8|9|10|12|13|14|15)[dwl]?|[xyz]mm\d+|st\(?\d?|mm\d)\b/, line);
    assert.doesNotMatch(instruction, /^(mov|lea|add|sub|pop|xadd) rbp,/, line);
  }
});

test('one bit tells whether a record is an entry or its exit, and heads map to consecutive function indices', () => {
  const sites: StubSite[] = Array.from({ length: 3 }, () => ({
    head: 'entry' as const,
    bodyBytes: 1,
    emitBody: (_address: number, into: Uint8Array, at: number) => {
      into[at] = 0xc3;
      return 1;
    },
  }));
  const size = regionBytes(sites);
  const region = emitRegion(0x5555_0000_0000n, size, sites, 7, places, geometry);
  assert.equal(region.bytes.length, size);
  assert.equal(region.bodies.length, 3);
  const view = new DataView(region.bytes.buffer);
  const heads = Number(region.heads - region.address);
  const target = (at: number): number => at + 5 + view.getInt32(at + 1, true);
  for (let i = 0; i < 3; i++) {
    const head = heads + 16 * i;
    assert.deepEqual(
      [view.getUint8(head), view.getUint8(head + 5), view.getUint8(head + 10)],
      [0xe8, 0xe8, 0xe9],
    );
    assert.equal(target(head), target(heads), 'every head calls the same entry');
    assert.equal(target(head + 5), region.bodies[i] - Number(region.address), 'and its own body');
    assert.equal(target(head + 10), target(heads + 10), 'and returns to the same exit');
  }
});

test('a body that needs more room than it said is refused, not truncated', () => {
  const sites: StubSite[] = [{ head: 'leaf', bodyBytes: 1, emitBody: () => 5000 }];
  assert.throws(() => emitRegion(0x5555_0000_0000n, regionBytes(sites), sites, 0, places, geometry), {
    code: 'STUB_TOO_LONG',
  });
});

test('the recorder that distrusts thread pointers fits into the place of the other', () => {
  const [trusting, distrusting] = (['memory', 'register'] as const).map((source) =>
    emitRecorder(0x5555_0000_0000n, 0, places, geometry, source),
  );
  assert.equal(trusting.bytes.length, distrusting.bytes.length);
  assert.deepEqual(trusting.labels, distrusting.labels);
  assert.doesNotMatch(disassemble(distrusting.bytes, 0n), /fs:/);
  for (const [label, offset] of trusting.labels) {
    if (label.startsWith(THREAD_POINTER_LABEL)) trusting.bytes.set(THREAD_POINTER_BY_REGISTER, offset);
  }
  assert.deepEqual(trusting.bytes, distrusting.bytes);
});
