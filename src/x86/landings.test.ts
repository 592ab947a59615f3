import assert from 'node:assert/strict';
import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { compile } from '../elf/gcc.test.support.js';
import { parseElf } from '../elf/index.js';
import { functionsOf, type FunctionSymbol } from '../symbols/index.js';
import { ModuleLandings, Verdicts, analyseFunctions, Mark } from './index.js';

/** Debian's own programs; where one is missing: `scripts/setup.sh` installs it. */
const REAL = [
  process.execPath,
  '/lib/x86_64-linux-gnu/libc.so.6',
  '/lib/x86_64-linux-gnu/libcrypto.so.3',
  '/usr/bin/redis-server',
  '/usr/lib/x86_64-linux-gnu/libsqlite3.so.0',
];
/** Subsets of the functions of each file that are asked for; each analyses the whole file again. */
const SUBSETS = 3;
/** A file with more code is asked for one subset: it takes seconds. */
const LARGE = 32 * 1024 * 1024;
/** Share of functions that the superset of landings may cost, at most. */
const MOST_LOST = 0.004;

/** What is said of a function that is asked for by its address. */
function verdicts(
  bytes: Uint8Array,
  choose: (f: FunctionSymbol, index: number) => boolean,
): Map<number, string> {
  const elf = parseElf(bytes, 'file');
  const all = functionsOf(elf);
  const { candidates, refusals } = analyseFunctions(elf, all.filter(choose), all);
  const found = new Map<number, string>();
  for (const { function: f, reason } of refusals) found.set(f.addressNumber, reason);
  for (const site of candidates) {
    const {
      function: f,
      kind,
      addressNumber,
      displacedLength,
      displacedCount,
      isWhole,
      usesOwnReturn,
    } = site;
    found.set(
      f.addressNumber,
      JSON.stringify([kind, addressNumber, displacedLength, displacedCount, isWhole, usesOwnReturn]),
    );
  }
  return found;
}

for (const path of REAL) {
  test(`the verdicts on functions of ${path} are the same, however many are asked for`, () => {
    assert.ok(existsSync(path), `${path} is missing: run scripts/setup.sh`);
    const bytes = new Uint8Array(readFileSync(realpathSync(path)));
    const whole = verdicts(bytes, () => true);
    assert.ok(whole.size > 100);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1_000_000 }), fc.nat(), (share, seed) => {
        const part = verdicts(bytes, (_, i) => ((i * 7919 + seed) * 104_729) % 1_000_003 < share);
        for (const [address, verdict] of part) assert.equal(verdict, whole.get(address));
      }),
      { numRuns: bytes.length > LARGE ? 1 : SUBSETS },
    );
  });

  test(`the conservative answer costs hardly any function of ${path}`, () => {
    const elf = parseElf(new Uint8Array(readFileSync(realpathSync(path))), path);
    const all = functionsOf(elf);
    const landings = ModuleLandings.of(elf, all);
    const answers = Verdicts.of(elf, all);
    let lost = 0;
    all.forEach(({ addressNumber }, i) => {
      if (answers.at(i) !== 'branched-into') return;
      const known = landings.regions.marksWithin(addressNumber + 1, addressNumber + 9) & Mark.known;
      if (known === 0) lost++;
    });
    assert.ok(lost / all.length < MOST_LOST, `${lost} of ${all.length}`);
  });
}

test('every direct branch, wherever it is decoded, is a landing', () => {
  const source = `
    __asm__(".text\\n.globl hidden\\n.type hidden,@function\\nhidden: mov %rdi,%rax\\n.Lin: mov %rsi,%rdx\\nret\\n.size hidden,.-hidden\\n"
      // Bytes that nobody is said to execute: data, as far as symbols tell.
      ".type bytes,@object\\nbytes: .byte 0x06\\n jmp .Lin\\n.size bytes,.-bytes\\n");
    int main(void) { return 0; }`;
  const elf = parseElf(compile(source), 'fixture');
  const all = functionsOf(elf);
  const hidden = all.find(({ name }) => name === 'hidden');
  assert.ok(hidden);
  const { refusals } = analyseFunctions(elf, [hidden], all);
  assert.deepEqual(
    refusals.map(({ reason }) => reason),
    ['branched-into'],
  );
});

test('code and data larger than any function are looked at whole', () => {
  // 65 MiB of each: int3, and zeros with the address of an instruction after them.
  const source = `
    __asm__(".text\\n.globl plain\\n.type plain,@function\\nplain: mov %rdi,%rax\\nmov %rsi,%rdx\\nret\\n.size plain,.-plain\\n"
      ".globl named\\n.type named,@function\\nnamed: mov %rdi,%rax\\n.Lin: mov %rsi,%rdx\\nret\\n.size named,.-named\\n"
      ".skip 65 << 20, 0xcc\\n.data\\n.skip 65 << 20\\n.balign 8\\n.quad .Lin\\n.text\\n");
    int main(void) { return 0; }`;
  const elf = parseElf(compile(source, '-no-pie'), 'fixture');
  const all = functionsOf(elf);
  const { candidates, refusals } = analyseFunctions(
    elf,
    all.filter(({ name }) => name === 'plain' || name === 'named'),
    all,
  );
  assert.deepEqual(
    candidates.map(({ function: { name } }) => name),
    ['plain'],
  );
  assert.deepEqual(
    refusals.map(({ function: { name }, reason }) => [name, reason]),
    [['named', 'branched-into']],
  );
});

test('verdicts are the same after they were written down, and bytes that are none are none', () => {
  const elf = parseElf(compile('int main(void) { return 0; }', '-static'), 'fixture');
  const all = functionsOf(elf);
  const found = Verdicts.of(elf, all);
  const again = Verdicts.fromBytes(found.toBytes().slice(), all.length);
  assert.ok(again);
  for (let i = 0; i < all.length; i++) assert.deepEqual(again.at(i), found.at(i));
  assert.equal(Verdicts.fromBytes(found.toBytes(), all.length + 1), undefined);
  const odd = found.toBytes().slice();
  odd[0] = 0xff;
  assert.equal(Verdicts.fromBytes(odd, all.length), undefined);
});
