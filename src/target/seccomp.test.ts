import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runFilter } from './seccomp.js';

/** struct sock_filter as bytes. */
function program(...instructions: readonly (readonly [number, number, number, number])[]): Uint8Array {
  const bytes = new Uint8Array(instructions.length * 8);
  const view = new DataView(bytes.buffer);
  instructions.forEach(([code, jt, jf, k], i) => {
    view.setUint16(i * 8, code, true);
    view.setUint8(i * 8 + 2, jt);
    view.setUint8(i * 8 + 3, jf);
    view.setUint32(i * 8 + 4, k, true);
  });
  return bytes;
}

const LD_ABS = 0x20;
const JEQ = 0x15;
const RET = 0x06;
const ALLOW = 0x7fff0000;
const KILL = 0x80000000;
const AND = 0x54;

test('a filter that kills one system call kills it and lets others through', () => {
  const filter = program([LD_ABS, 0, 0, 0], [JEQ, 0, 1, 319], [RET, 0, 0, KILL], [RET, 0, 0, ALLOW]);
  assert.equal(runFilter(filter, { name: 'memfd_create', number: 319, arguments: [] }), KILL);
  assert.equal(runFilter(filter, { name: 'mmap', number: 9, arguments: [] }), ALLOW);
});

test('a filter that looks at arguments sees those that the call will have', () => {
  // Executable mappings are forbidden: prot is the third argument, at offset 16 + 2 * 8.
  const filter = program(
    [LD_ABS, 0, 0, 32],
    [AND, 0, 0, 4],
    [JEQ, 1, 0, 0],
    [RET, 0, 0, KILL],
    [RET, 0, 0, ALLOW],
  );
  assert.equal(runFilter(filter, { name: 'mmap', number: 9, arguments: [0, 4096, 5] }), KILL);
  assert.equal(runFilter(filter, { name: 'mmap', number: 9, arguments: [0, 4096, 3] }), ALLOW);
});

test('a filter for another architecture sees that this is x86-64', () => {
  const filter = program([LD_ABS, 0, 0, 4], [JEQ, 1, 0, 0xc000003e], [RET, 0, 0, KILL], [RET, 0, 0, ALLOW]);
  assert.equal(runFilter(filter, { name: 'mmap', number: 9, arguments: [] }), ALLOW);
});
