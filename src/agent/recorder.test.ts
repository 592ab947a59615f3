import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KIND_ENTRY, KIND_EXIT, KIND_LEAF, KIND_LOST, KIND_TAIL, RECORD_BYTES } from '../recording/index.js';
import { assemble, disassemble, type DisplacedCode } from '../x86/index.js';
import { HEADER, LANE, LANE_STATE, planGeometry } from './layout.js';
import { FLAGS, OwnRecorder, REGISTERS, type StubPlan } from './recorder.test.support.js';
import {
  RECORDER_ENTRIES,
  THREAD_POINTER_BY_REGISTER,
  THREAD_POINTER_LABEL,
  recorderListing,
} from './recorder.js';
import { cellSwitch, emitRecorder, emitRegion, regionBytes, type StubSite } from './stubs.js';

const geometry = planGeometry(128, 1 << 20);
const places = { control: 0x7f00_1234_5000n, data: 0x7f00_1234_6000n };

test('the recorder assembles, with a way in for every kind of cell', () => {
  const listing = recorderListing({ ...places, cells: 0x5555_0000_2000n, firstCell: 0 }, geometry);
  const { labels, bytes } = assemble(listing, 0x5555_0000_0000n);
  for (const entry of RECORDER_ENTRIES) assert.ok(labels.has(entry), entry);
  assert.ok(bytes.length > 1000);
});

test('the recorder touches no register that it does not save, and none of the vector or x87 ones', () => {
  const listing = recorderListing({ ...places, cells: 0x5555_0000_2000n, firstCell: 0 }, geometry);
  const text = disassemble(assemble(listing, 0x5555_0000_0000n).bytes, 0x5555_0000_0000n);
  for (const line of text.split('\n')) {
    const instruction = line.slice(line.indexOf('  ') + 2);
    // rbp is read by the frame variant (its slot lies above it); r11 is saved around the one system call.
    assert.doesNotMatch(instruction, /\b(r(8|9|10|12|13|14|15)[dwl]?|[xyz]mm\d+|st\(?\d?|mm\d)\b/, line);
    assert.doesNotMatch(instruction, /^(mov|lea|add|sub|pop|xadd) rbp,/, line);
  }
});

test('a stub that needs more room than it said is refused, not truncated', () => {
  const sites: StubSite[] = [{ functionIndex: 0, stubBytes: 16, stubShift: 0, emitStub: () => 5000 }];
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

// What follows executes the recorder in this process.

/** Code from a listing, of which nothing depends on where it stands. `leaves`: its last instruction is a ret. */
function codeOf(listing: string, goesOnAt = 0): DisplacedCode {
  const { bytes } = assemble(listing, 0n);
  const isReturn = bytes.at(-1) === 0xc3;
  const body = isReturn ? bytes.length - 1 : bytes.length;
  const displaced: DisplacedCode['displaced'][number][] = [];
  const plain = { form: 'verbatim' as const, fixOffset: 0, target: undefined };
  if (body > 0) displaced.push({ offset: 0, length: body, endsFlow: false, ...plain });
  if (isReturn) displaced.push({ offset: body, length: 1, endsFlow: true, ...plain });
  return {
    // What it does not end by itself goes on there.
    addressNumber: goesOnAt - bytes.length,
    displacedLength: bytes.length,
    displacedCount: displaced.length,
    displaced,
    original: bytes,
    function: { name: 'f', addressNumber: 0 },
  };
}

/** A function that is one stub: recorded where it begins, and where it returns. */
function whole(functionIndex: number, listing: string): StubPlan {
  const code = codeOf(listing);
  return {
    functionIndex,
    begins: 'entry',
    code: () => code,
    exits: [{ index: code.displaced.length - 1, kind: 'return' }],
  };
}

/** A function that jumps to another. */
function tailCall(functionIndex: number, target: () => number): StubPlan {
  const jump = { offset: 0, length: 5, form: 'branch' as const, fixOffset: 0, endsFlow: true };
  return {
    functionIndex,
    begins: 'entry',
    code: () => ({
      addressNumber: 0,
      displacedLength: 5,
      displacedCount: 1,
      displaced: [{ ...jump, target: BigInt(target()) }],
      original: Uint8Array.of(0xe9, 0, 0, 0, 0),
      function: { name: 'g', addressNumber: 0 },
    }),
    exits: [{ index: 0, kind: 'tail' }],
  };
}

/** The lane that the first thread takes. */
const FIRST = 1;

test('every register and every flag is as it was, whatever it was, at the entry and at the exit', () => {
  const own = new OwnRecorder([whole(3, 'nop\nret')], { ringBytes: 1 << 12 });
  const word = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
  fc.assert(
    fc.property(
      fc.array(word, { minLength: REGISTERS.length, maxLength: REGISTERS.length }),
      word,
      fc.nat(200),
      (values, flags, when) => {
        // With a full ring it goes another way.
        if (when === 0) own.take(FIRST);
        const file = BigUint64Array.from([...values, (flags & FLAGS) | 0x202n]);
        const left = own.call(0, file);
        REGISTERS.forEach((name, i) => {
          assert.equal(left[i], file[i], name);
        });
        assert.equal(left[REGISTERS.length] & FLAGS, flags & FLAGS, 'flags');
      },
    ),
    { numRuns: 2000 },
  );
  assert.ok(own.dropped(FIRST) > 0, 'the ring was full at times');
});

test('an entry and its exit have one slot, and a nested call has another below', () => {
  const own: OwnRecorder = new OwnRecorder([
    whole(5, 'ret'),
    whole(6, `sub rsp, 40\nmov rax, r12\ncall rax\nadd rsp, 40\nret`),
  ]);
  const file = new BigUint64Array(REGISTERS.length + 1);
  file[REGISTERS.indexOf('r12')] = BigInt(own.region.stubs[0]);
  own.call(1, file);
  const records = own.take(FIRST);
  assert.deepEqual(
    records.map(({ kind, functionIndex }) => [kind, functionIndex]),
    [
      [KIND_ENTRY, 6],
      [KIND_ENTRY, 5],
      [KIND_EXIT, 5],
      [KIND_EXIT, 6],
    ],
  );
  assert.equal(records[0].slot, records[3].slot);
  assert.equal(records[1].slot, records[2].slot);
  // In units of 8 bytes: 40 of them, and the return address.
  assert.equal(records[0].slot - records[1].slot, 6);
  assert.ok(records.every(({ tsc }, i) => i === 0 || tsc >= records[i - 1].tsc));
});

test('a jump to another function ends one call, and the next begins with the same slot', () => {
  let target = 0;
  const plans = [whole(1, 'ret'), tailCall(2, () => target)];
  const own: OwnRecorder = new OwnRecorder(plans, {
    onPlace: (address) => {
      target = address;
    },
  });
  own.call(1);
  const records = own.take(FIRST);
  assert.deepEqual(
    records.map(({ kind, functionIndex }) => [kind, functionIndex]),
    [
      [KIND_ENTRY, 2],
      [KIND_TAIL, 2],
      [KIND_ENTRY, 1],
      [KIND_EXIT, 1],
    ],
  );
  assert.equal(new Set(records.map(({ slot }) => slot)).size, 1);
});

test('what is traced by its entry only has one record, and switched off it has none', () => {
  const leaf: StubPlan = { ...whole(4, 'ret'), begins: 'leaf', exits: [] };
  const own = new OwnRecorder([leaf]);
  own.call(0);
  own.enable(false);
  own.call(0);
  assert.deepEqual(
    own.take(FIRST).map(({ kind, functionIndex }) => [kind, functionIndex]),
    [[KIND_LEAF, 4]],
  );
});

test('where something has been pushed the slot is still that of the return address', () => {
  const DEPTH = 24;
  const { length } = REGISTERS;
  for (const begins of ['entry', 'leaf'] as const) {
    let end = 0;
    const silent = { begins: undefined, exits: [] };
    // The end of the function, which may fault and so stays where it is; the exit is recorded before it.
    const rest: StubPlan = { functionIndex: 1, code: () => codeOf(`add rsp, ${DEPTH}\nret`), ...silent };
    const exits = begins === 'entry' ? [{ index: 1, kind: 'return' as const, depth: DEPTH }] : [];
    const deep: StubPlan = { functionIndex: 2, begins, depth: DEPTH, code: () => codeOf('nop', end), exits };
    const pushes: StubPlan = {
      ...whole(3, `sub rsp, ${DEPTH}\npush r12\nret`),
      begins: 'entry',
      exits: [],
    };
    const onPlace = (address: number): void => {
      end = address;
    };
    const own: OwnRecorder = new OwnRecorder([rest, deep, pushes], { onPlace });
    const file = new BigUint64Array(length + 1);
    for (let i = 0; i < length; i++) file[i] = BigInt(i) << 40n;
    file[REGISTERS.indexOf('r12')] = BigInt(own.region.stubs[1]);
    const left = own.call(2, file);
    assert.deepEqual(left.slice(0, length), file.slice(0, length));
    const records = own.take(FIRST);
    assert.deepEqual(
      records.map(({ kind, functionIndex }) => [kind, functionIndex]),
      begins === 'leaf'
        ? [
            [KIND_ENTRY, 3],
            [KIND_LEAF, 2],
          ]
        : [
            [KIND_ENTRY, 3],
            [KIND_ENTRY, 2],
            [KIND_EXIT, 2],
          ],
    );
    assert.equal(new Set(records.map(({ slot }) => slot)).size, 1);
    // Switched off it does nothing.
    const cell = own.region.entryCells.get(1) ?? -1;
    assert.equal(cellSwitch(own.region, cell, false) & 0xff_ffff_ffffn, 0x00_0044_1f0fn);
  }
});

test('a full ring drops whole calls: the end of a call whose entry was lost is lost with it, and the count is exact', () => {
  const own: OwnRecorder = new OwnRecorder(
    [whole(1, 'ret'), whole(2, 'sub rsp, 8\nmov rax, r12\ncall rax\nadd rsp, 8\nret')],
    { ringBytes: 4096 },
  );
  const file = new BigUint64Array(REGISTERS.length + 1);
  file[REGISTERS.indexOf('r12')] = BigInt(own.region.stubs[0]);
  let made = 0;
  let taken = 0;
  let told = 0;
  const open = new Map<number, number>();
  for (let i = 0; i < 5000; i++) {
    own.call(1, file);
    made += 4;
    // Emptied now and then, whatever is open.
    if (i % 701 !== 0 && i !== 4999) continue;
    for (const { kind, slot, functionIndex } of own.take(FIRST)) {
      if (kind === KIND_LOST) {
        told += slot;
        continue;
      }
      taken++;
      if (kind === KIND_ENTRY) open.set(slot, functionIndex);
      else {
        assert.equal(open.get(slot), functionIndex, 'no end without its beginning');
        open.delete(slot);
      }
    }
    assert.equal(open.size, 0, 'no beginning without its end');
  }
  assert.equal(taken + own.dropped(FIRST), made);
  assert.ok(told > 0 && told <= own.dropped(FIRST));
  assert.equal(own.lane(FIRST).getUint32(LANE.marks, true), 0, 'no mark is left');
});

test('entries leave room for the ends of calls that are open', () => {
  const own: OwnRecorder = new OwnRecorder(
    [
      // Calls itself r13 times.
      whole(1, 'sub rsp, 8\ntest r13, r13\njz out\ndec r13\ncall r12\nout:\nadd rsp, 8\nret'),
    ],
    { ringBytes: 4096 },
  );
  const file = new BigUint64Array(REGISTERS.length + 1);
  file[REGISTERS.indexOf('r12')] = BigInt(own.region.stubs[0]);
  file[REGISTERS.indexOf('r13')] = 300n;
  own.call(0, file);
  const records = own.take(FIRST).filter(({ kind }) => kind !== KIND_LOST);
  const entries = records.filter(({ kind }) => kind === KIND_ENTRY);
  assert.ok(entries.length > 10 && entries.length < 301);
  assert.equal(records.length, 2 * entries.length);
  assert.equal(records.length + own.dropped(FIRST), 2 * 301);
});

test('a frame that was left by a jump does not keep a later one with its slot from being recorded', () => {
  const own: OwnRecorder = new OwnRecorder([whole(1, 'ret'), { ...whole(2, 'ret'), exits: [] }], {
    ringBytes: 4096,
  });
  while (own.dropped(FIRST) < 2) own.call(0);
  // Its entry is lost, and it has no end.
  own.call(1);
  assert.equal(own.lane(FIRST).getUint32(LANE.marks, true), 1);
  own.take(FIRST);
  own.call(0);
  const kinds = own.take(FIRST).map(({ kind }) => kind);
  assert.deepEqual(kinds, [KIND_LOST, KIND_ENTRY, KIND_EXIT]);
  assert.equal(own.lane(FIRST).getUint32(LANE.marks, true), 0);
});

test('more marks than there is room for lose none of the count', () => {
  const own: OwnRecorder = new OwnRecorder(
    [whole(1, 'sub rsp, 8\ntest r13, r13\njz out\ndec r13\ncall r12\nout:\nadd rsp, 8\nret')],
    { ringBytes: 4096 },
  );
  const file = new BigUint64Array(REGISTERS.length + 1);
  file[REGISTERS.indexOf('r12')] = BigInt(own.region.stubs[0]);
  file[REGISTERS.indexOf('r13')] = 20_000n;
  own.call(0, file);
  const records = own.take(FIRST).filter(({ kind }) => kind !== KIND_LOST);
  assert.equal(records.length + own.dropped(FIRST), 2 * 20_001);
});

test('a thread that gets the block of one that has ended gets a lane of its own, and without one its records are counted', () => {
  const own = new OwnRecorder([whole(1, 'ret')], { lanes: 3 });
  own.call(0);
  assert.equal(own.take(FIRST).length, 2);
  // As if somebody else's id stood in the block.
  own.lane(FIRST).setBigUint64(LANE.tidPointer, BigInt(own.laneAddress(0) + LANE.tid), true);
  own.lane(FIRST).setUint32(LANE.tid, 4711, true);
  own.lane(0).setUint32(LANE.tid, 4712, true);
  own.call(0);
  assert.equal(own.take(FIRST).length, 0);
  assert.equal(own.header(FIRST).getUint32(HEADER.state, true), LANE_STATE.ended);
  assert.equal(own.take(2).length, 2);
  own.lane(2).setBigUint64(LANE.threadPointer, 1n, true);
  own.call(0);
  assert.equal(own.dropped(0), 2, 'no lane is left');
});

test('records of a ring stand one behind the other, round and round', () => {
  const own = new OwnRecorder([whole(1, 'ret')], { ringBytes: 4096 });
  for (let i = 0; i < 1000; i++) {
    own.call(0);
    assert.equal(own.take(FIRST).length, 2);
  }
  assert.equal(Number(own.header(FIRST).getBigUint64(HEADER.head, true)), 2000 * RECORD_BYTES);
});
