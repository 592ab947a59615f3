import { test } from 'node:test';
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import fc from 'fast-check';
import { MAP, PROT, mapOwn, placeOwnCode } from '../linux/index.js';
import { CpuSemantics, HEAD, TAIL, compile, foldWord, twoSites } from '../model/index.js';
import type { Image } from '../model/index.js';
import {
  BREAKPOINT,
  HEAD_SIZE,
  MCOUNT_INSN_SIZE,
  branch,
  calculate,
  call,
  compareSwap,
  count,
  fetchAdd,
  atomicAdd,
  label,
  leave,
  load,
  lockText,
  nmiOneWord,
  nmiSpan,
  noteLongest,
  protocols,
  readClock,
  set,
  smpMb,
  smpRmb,
  smpWmb,
  store,
  syncCore,
  unlockText,
  waitUntil,
} from '../protocol/index.js';
import type { Operand, Operation, Protocol, Test } from '../protocol/index.js';
import { COMPARE_SITE, STORE_TEXT, assemble, lowerProtocol } from './index.js';

/** Text is written by plain stores, into memory that is writable. */
const SURROUNDINGS = `${STORE_TEXT}${COMPARE_SITE}
sync_core:
    ret
unlock_text:
    mov eax, 0
lock_text:
    ret`;

test('the form of 2009, and the one that runs inside, are lowered to the listings that stand beside their operations', async () => {
  for (const protocol of [nmiOneWord, nmiSpan]) {
    const file = new URL(`../../src/x86/lowered-${protocol.name}.txt`, import.meta.url);
    assert.equal(lowerProtocol(protocol).listing, await readFile(file, 'utf8'));
  }
});

test('every fence and every atomic of a definition is in the machine code', () => {
  for (const protocol of protocols) {
    const operations = lowerProtocol(protocol).listing.split(/\n {4}; /);
    const of = (text: RegExp): readonly string[] => operations.filter((o) => text.test(o.split('\n')[0]));
    for (const o of of(/smp_mb\(\)$/)) assert.match(o, /\n {4}lock add dword \[rsp-8\], 0\b/);
    for (const o of of(/^(\d+\) )?atomic_add\(/)) assert.match(o, /\n {4}lock add /);
    for (const o of of(/= atomic_fetch_add\(/)) assert.match(o, /\n {4}lock xadd /);
    for (const o of of(/= cmpxchg\(/)) assert.match(o, /\n {4}lock cmpxchg /);
    const locks = operations.join('\n').match(/^ {4}lock /gm)?.length ?? 0;
    const wanted = of(/smp_mb\(\)$|atomic_|= cmpxchg\(|\+\+$/).length;
    assert.equal(locks, wanted, `${protocol.name}: no barrier that the definition does not have`);
  }
});

test('a listing with a mistaken word is a defect of the definition, and said to be', () => {
  const broken: Protocol = { ...nmiOneWord, words: [] };
  assert.throws(() => lowerProtocol(broken), /nmi-one-word has no word nmi_running/);
});

const values = ['r0', 'r1', 'r2'] as const;
const wordNames = ['w0', 'w1', 'w2'] as const;
const protocolWords: Protocol['words'] = [
  { name: 'w0', initial: 0, use: 'value', meaning: '' },
  { name: 'where', initial: 0, use: 'address', meaning: '' },
  { name: 'w1', initial: 2, use: 'value', meaning: '' },
  { name: 'times', initial: 0, use: 'statistic', meaning: '' },
  { name: 'what', initial: 0, use: 'code', meaning: '' },
  { name: 'w2', initial: 0x8000_0000, use: 'value', meaning: '' },
];

const FLAG = 0x8000_0000;
const HIGH_ONE = 0x1_0000;
/** Bounds within which the model's folded words and the machine's 32 bits mean the same. */
const MAX_LOW_STEPS = 6;
const MAX_HIGH_STEPS = 2;

const register = fc.constantFrom(...values);
const word = fc.constantFrom(...wordNames);
const small = fc.constantFrom<number>(0, 1, 2, 3, HIGH_ONE, FLAG);
const operand: fc.Arbitrary<Operand> = fc.oneof(register, small);
const mask: fc.Arbitrary<Operand> = fc.oneof(
  register,
  fc.constantFrom<number>(0xffff, 0x7fff_0000, FLAG, 0x7fff_ffff),
);
const comparison = fc.constantFrom<Test>('equal', 'not-equal', 'any-set', 'none-set');
const newCode = fc.constantFrom('new_code', 'old_code');

function writeText(at: Operand, code: Operand, offset: number, length: number): Operation {
  return { op: 'write-text', at, code, offset, length, status: 'status' };
}

/** One operation, or a few that belong together. Their labels get a number of their own afterwards. */
const step: fc.Arbitrary<readonly Operation[]> = fc.oneof(
  fc.tuple(register, small).map(([to, value]) => [set(to, value)]),
  fc
    .tuple(register, register, fc.constantFrom(1, HIGH_ONE))
    .map(([to, left, right]) => [calculate(to, left, 'plus', right)]),
  fc
    .tuple(register, register, fc.constantFrom('and' as const, 'or' as const), mask)
    .map(([to, left, by, right]) => [calculate(to, left, by, right)]),
  fc.tuple(register, word).map(([to, from]) => [load(to, from)]),
  fc.tuple(word, operand).map(([to, value]) => [store(to, value)]),
  fc.tuple(word, fc.constantFrom(1, -1, HIGH_ONE, -HIGH_ONE, FLAG)).map(([to, by]) => [atomicAdd(to, by)]),
  fc
    .tuple(register, word, fc.constantFrom(1, -1, HIGH_ONE, FLAG))
    .map(([old, to, by]) => [fetchAdd(old, to, by)]),
  fc
    .tuple(register, word, operand, operand)
    .map(([old, to, expected, desired]) => [compareSwap(old, to, expected, desired)]),
  fc.constantFrom([smpMb()], [smpWmb()], [smpRmb()], [syncCore()], [count('times')]),
  fc.constant([readClock('began'), noteLongest('times', 'began')]),
  fc.tuple(register, word).map(([to, from]) => [load(to, from), waitUntil(from, 'equal', to, 'times')]),
  word.map((from) => [waitUntil(from, 'none-set', 0, 'times')]),
  newCode.map((code) => [writeText('ip', code, 0, MCOUNT_INSN_SIZE)]),
  register.map((status) => [unlockText('ip', MCOUNT_INSN_SIZE, status), lockText('ip', MCOUNT_INSN_SIZE)]),
  newCode.map((code) => [writeText('ip', code, HEAD_SIZE, MCOUNT_INSN_SIZE - HEAD_SIZE)]),
  fc.constantFrom<Operand>('new_code', BREAKPOINT).map((code) => [writeText('ip', code, 0, HEAD_SIZE)]),
  newCode.map((code) => [
    store('where', 'ip'),
    store('what', code),
    load('a0', 'where'),
    load('c0', 'what'),
    writeText('a0', 'c0', 0, MCOUNT_INSN_SIZE),
  ]),
  fc
    .tuple(register, newCode)
    .map(([result, code]): readonly Operation[] => [{ op: 'compare-text', at: 'ip', code, result }]),
  fc
    .tuple(operand, comparison, operand, word)
    .map(([left, how, right, to]) => [branch(left, how, right, 'on'), store(to, 3), label('on')]),
  fc
    .tuple(fc.constantFrom<Test>('equal', 'not-equal'), word)
    .map(([how, to]) => [load('a0', 'where'), branch('a0', how, 'ip', 'on'), store(to, 1), label('on')]),
  fc
    .tuple(register, small)
    .map(([left, right]) => [branch(left, 'equal', right, 'on'), leave(), label('on')]),
);

function numberLabels(steps: readonly (readonly Operation[])[]): readonly Operation[] {
  return steps.flatMap((operations, n) =>
    operations.map((o) => {
      if (o.op === 'label') return { ...o, name: `${o.name}${n}` };
      return o.op === 'branch' ? { ...o, to: `${o.to}${n}` } : o;
    }),
  );
}

/** Steps by which a count may grow in two changes, with the routine that is called and the one that calls. */
function grows(operations: readonly Operation[], by: number): number {
  return operations.filter(
    (o) =>
      (o.op === 'calculate' && o.by === 'plus' && o.right === by) ||
      (o.op === 'fetch-add' && typeof o.value === 'number' && Math.abs(o.value) === by),
  ).length;
}

const program: fc.Arbitrary<Protocol> = fc
  .tuple(fc.array(step, { maxLength: 12 }), fc.array(step, { maxLength: 6 }))
  .map(([before, called]) => [numberLabels(before), numberLabels(called)] as const)
  .filter(
    ([a, b]) => grows([...a, ...b], 1) <= MAX_LOW_STEPS && grows([...a, ...b], HIGH_ONE) <= MAX_HIGH_STEPS,
  )
  .map(([operations, called]) => ({
    name: 'random',
    title: '',
    purpose: '',
    words: protocolWords,
    steps: [],
    routines: [
      { name: 'called', operations: called },
      { name: 'body', operations: [call('called'), ...operations] },
      { name: 'patch', operations: [set('result', 0), call('body')] },
      { name: 'nmi', operations: [] },
    ],
    patch: 'patch',
    nmi: 'nmi',
  }));

type NamedValue = readonly [name: string, value: number | string];

/** All shared memory after both changes of `twoSites`, in words that both sides can be put in. */
interface Memory {
  readonly words: readonly NamedValue[];
  readonly text: readonly (readonly number[])[];
}

function runInModel(protocol: Protocol): Memory {
  const compiled = compile(protocol, { cpus: 1, nmis: 0, memory: 'sc', overlap: 'any' }, twoSites);
  const semantics = new CpuSemantics(compiled, false);
  const cells = compiled.cells.map((c) => c.initial);
  let { cpu } = semantics.initial('patcher');
  while (semantics.isBusy(cpu)) {
    const [action] = semantics.actions(cpu);
    const outcome = semantics.perform(cpu, action, cells[action.cell] ?? 0, 0);
    assert.ok(outcome !== undefined && outcome.violation === undefined);
    if (outcome.written >= 0) cells[action.cell] = outcome.written;
    cpu = outcome.cpu;
  }
  const words = compiled.cells.flatMap((cell, i): readonly NamedValue[] => {
    if (cell.kind !== 'word') return [];
    const { name, use } = cell;
    if (use === 'address') return [[name, cells[i] === 0 ? 'none' : `site ${cells[i] - 1}`] as const];
    if (use === 'code') return [[name, compiled.buffers[cells[i]]?.name ?? 'none'] as const];
    return [[name, cells[i]] as const];
  });
  const text = twoSites.sites.map((_, site) =>
    [HEAD, TAIL].flatMap((piece) => compiled.pieces[cells[compiled.textBase + 2 * site + piece]]),
  );
  return { words, text };
}

const FRAME_AT = 1024;
const SITES_AT = 2048;
const BUFFERS_AT = 3072;
const SPACING = 16;

function runAsMachineCode(protocol: Protocol): Memory {
  const lowered = lowerProtocol(protocol);
  const code = assemble(
    `enter:
    push r15
    push rbp
    mov r15, rdi
    mov rbp, rsi
    call ${protocol.patch}
    pop rbp
    pop r15
    ret
${SURROUNDINGS}
${lowered.listing}`,
    0n,
  );
  const own = placeOwnCode(code.bytes);
  const mapping = mapOwn(4096, PROT.read | PROT.write, MAP.private | MAP.anonymous, -1);
  const bytes = new Uint8Array(mapping.bytes);
  const view = new DataView(mapping.bytes);
  const images: Image[] = [];
  const bufferOf = (image: Image): bigint => {
    let index = images.findIndex((known) => known.name === image.name);
    if (index < 0) index = images.push(image) - 1;
    bytes.set(image.bytes, BUFFERS_AT + index * SPACING);
    return mapping.address + BigInt(BUFFERS_AT + index * SPACING);
  };
  const siteAddress = (index: number): bigint => mapping.address + BigInt(SITES_AT + index * SPACING);
  bytes.set(lowered.block);
  twoSites.sites.forEach((site, index) => {
    bytes.set(site.initial.bytes, SITES_AT + index * SPACING);
  });
  const slot = (name: string): number => FRAME_AT + lowered.slots.get(name)!;
  for (const { site, from, to } of twoSites.changes) {
    view.setBigUint64(slot('ip'), siteAddress(site), true);
    view.setBigUint64(slot('old_code'), bufferOf(from[0]), true);
    view.setBigUint64(slot('new_code'), bufferOf(to[0]), true);
    own.call(0, mapping.address, mapping.address + BigInt(FRAME_AT));
  }
  const words = protocol.words.flatMap(({ name, use }): readonly NamedValue[] => {
    const { offset } = lowered.words.get(name)!;
    if (use === 'statistic') return [];
    if (use === 'value') return [[name, foldWord(view.getUint32(offset, true))] as const];
    const address = view.getBigUint64(offset, true);
    const index = (Number(address - mapping.address) - (use === 'address' ? SITES_AT : BUFFERS_AT)) / SPACING;
    if (address === 0n) return [[name, 'none'] as const];
    return [[name, use === 'address' ? `site ${index}` : images[index].name] as const];
  });
  const text = twoSites.sites.map((_, site) => [
    ...bytes.slice(SITES_AT + site * SPACING, SITES_AT + site * SPACING + MCOUNT_INSN_SIZE),
  ]);
  mapping.unmap();
  return { words, text };
}

test('random programs of operations leave in the machine the memory that they leave in the model', () => {
  fc.assert(
    fc.property(program, (protocol) => {
      assert.deepEqual(runAsMachineCode(protocol), runInModel(protocol));
    }),
    { numRuns: 400 },
  );
});
