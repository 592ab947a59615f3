import assert from 'node:assert/strict';
import { readFileSync, realpathSync } from 'node:fs';
import { test } from 'node:test';
import { compile, compileCpp } from '../elf/gcc.test.support.js';
import { parseElf } from '../elf/index.js';
import { functionsOf, type FunctionSymbol } from '../symbols/index.js';
import {
  Mark,
  SITE_LENGTH,
  Trait,
  displacedAt,
  planModule,
  type ExitSite,
  type ModulePlan,
  type NoExitReason,
} from './index.js';

interface Planned {
  readonly plan: ModulePlan;
  readonly functions: readonly FunctionSymbol[];
}

function planned(bytes: Uint8Array): Planned {
  const elf = parseElf(bytes, 'fixture');
  const functions = functionsOf(elf);
  return { plan: planModule(elf, functions), functions };
}

function exitsOf({ plan, functions }: Planned, name: string): readonly ExitSite[] | NoExitReason {
  const found = functions.find(({ names }) => names.includes(name));
  assert.ok(found, name);
  return plan.exits.exitsOf(found.addressNumber);
}

/** Code, and for each exit what it is and how it fits, or why not. */
const cases: readonly (readonly [name: string, code: string, ...exits: string[]])[] = [
  ['padded', 'mov %rdi,%rax; imul $3,%rax; ret', 'return at'],
  [
    'pops',
    'push %rbx; call padded; call padded; lea 1(%rax),%rax; pop %rbx; ret; 1: call padded; jmp 1b',
    'return behind',
  ],
  ['bytes', 'lea (%rdi,%rdi),%rax; lea 1(%rax),%rax; ret $8', 'return at'],
  ['repeated', 'lea (%rdi,%rdi),%rax; lea 1(%rax),%rax; rep; ret', 'return at'],
  ['tiny', 'mov %edi,%eax; ret', 'return entry'],
  ['jumps', 'lea 1(%rdi),%rdi; lea 1(%rdi),%rdi; jmp pops', 'tail at'],
  ['jumps_by_pointer', 'lea 1(%rdi),%rdi; mov 8(%rdi),%rax; jmp *%rax', 'tail at'],
  ['jumps_by_slot', 'lea 1(%rdi),%rdi; lea 1(%rdi),%rdi; jmp *slot(%rip)', 'tail at'],
  ['jumps_if', 'lea 1(%rdi),%rdi; test %edi,%edi; jne pops; lea 2(%rdi),%rax; ret', 'tail? at', 'return at'],
  // A branch leads to a ret with code behind it: by a hole, by a copy; with a call in it, by the neighbour's or its own entry.
  [
    'by_hole',
    'push %rbx; call padded; test %eax,%eax; js 2f; 1: pop %rbx; ret; 2: call padded; jmp 1b; .p2align 4',
    'return hole',
  ],
  [
    'by_copy',
    'test %rdi,%rdi; mov %rsi,%rax; je 1f; imul %rdi,%rax; 1: ret; 2: lea 9(%rax),%rax; test %eax,%eax; jne 1b; jmp 2b',
    'return copy',
  ],
  ['never', 'push %rax; 1: call padded; jmp 1b'],
  ['falls', 'lea 1(%rdi),%rax; lea 1(%rax),%rax', 'falls-through'],
  ['middle', 'lea 1(%rdi),%rax; imul $3,%rax; .Lmiddle: add $1,%rax; ret', 'entered-inside'],
  ['into_middle', 'lea 2(%rdi),%rax; imul $5,%rax; jmp .Lmiddle', 'leaves-inside'],
  ['own', 'mov (%rsp),%rax; movzbl (%rax),%eax; ret', 'own-return'],
  ['unbalanced', 'push %rdi; lea 1(%rdi),%rax; lea 1(%rax),%rax; ret', 'odd-stack'],
  [
    'switches',
    'mov %rsi,%rax; lea 1(%rax),%rax; movslq (%rdi),%rdx; add %rax,%rdx; jmp *%rdx',
    'computed-jump',
  ],
];

test('each exit of each kind of code is found, and fits, or does not, as its bytes say', () => {
  const code = cases
    .map(
      ([name, text]) =>
        `.p2align 4\\n.globl ${name}\\n.type ${name},@function\\n${name}: ${text}\\n.size ${name},.-${name}\\n`,
    )
    .join('');
  const source = `__asm__(".text\\n${code}.data\\nslot: .quad 0\\n.text\\n"); int main(void) { return 0; }`;
  const file = planned(compile(source, '-no-pie'));
  for (const [name, , ...wanted] of cases) {
    const found = exitsOf(file, name);
    const told =
      typeof found === 'string'
        ? [found]
        : [...found]
            .sort((a, b) => a.exit - b.exit)
            .map(({ kind, fit, isConditional }) => `${kind}${isConditional ? '?' : ''} ${fit}`);
    assert.deepEqual(told, wanted, name);
  }
});

/** The same where no padding is within reach of a short jump. */
const tight: typeof cases = [
  // Not padded: the bytes behind are pushed.
  [
    'by_branch',
    'push %rbx; 1: call 3f; dec %eax; jg 1b; pop %rbx; ret; 3: push %rbx; 2: call 1b; jmp 2b',
    'return branches',
  ],
  [
    'by_neighbour',
    'push %rbx; call by_branch; test %eax,%eax; js 2f; 1: pop %rbx; ret; 2: push %rbx; call by_branch; pop %rbx; jmp 1b',
    'return made',
  ],
  ['neighbour', 'lea 1(%rdi),%rax; lea 1(%rax),%rax; lea 1(%rax),%rax; jmp by_branch', 'tail entry'],
];

test('where there is no padding, exits grow over branches, or have their hole at an entry', () => {
  const filler = (name: string): string =>
    `.type ${name},@function\\n${name}: .rept 60; push %rax; push %rbx; call ${name}; .endr; jmp ${name}\\n.size ${name},.-${name}\\n`;
  const code = tight
    .map(
      ([name, text]) =>
        `.globl ${name}\\n.type ${name},@function\\n${name}: ${text}\\n.size ${name},.-${name}\\n`,
    )
    .join('');
  const source = `__asm__(".text\\n${filler('before')}${code}${filler('behind')}"); int main(void) { return 0; }`;
  const file = planned(compile(source, '-no-pie'));
  for (const [name, , ...wanted] of tight) {
    const found = exitsOf(file, name);
    assert.deepEqual(
      typeof found === 'string' ? [found] : found.map(({ kind, fit }) => `${kind} ${fit}`),
      wanted,
      name,
    );
  }
  assertSound(file);
});

/** Fails unless every byte has one owner, nobody lands within a window, and whole instructions are displaced up to the exit. */
function assertSound({ plan, functions }: Planned): void {
  const owners = new Map<number, string>();
  const own = (address: number, length: number, who: string): void => {
    for (let at = address; at < address + length; at++) {
      assert.equal(owners.get(at), undefined, `0x${at.toString(16)}: ${who}`);
      owners.set(at, who);
    }
  };
  const { landings, exits, verdicts } = plan;
  const { ranges, regions } = landings;
  functions.forEach(({ addressNumber, name }, i) => {
    const verdict = verdicts.at(i);
    if (typeof verdict !== 'string') own(addressNumber + verdict.offset, SITE_LENGTH, `entry of ${name}`);
  });
  for (let i = 0; i < ranges.count; i++) {
    const start = ranges.starts[i];
    const found = ranges.has(i, Trait.fragment) ? [] : exits.exitsOf(start);
    if (typeof found === 'string') continue;
    for (const site of found) {
      const who = `exit at 0x${site.exit.toString(16)}: ${site.fit}`;
      const { address, length, hole, displacedLength, exit, exitLength } = site;
      if (site.fit === 'entry' || site.fit === 'copy') {
        assert.ok(exit >= address && exit + exitLength <= address + displacedLength, who);
        continue;
      }
      own(address, length, who);
      assert.equal(regions.marksWithin(address + 1, address + length) & Mark.landing, 0, who);
      if (hole !== undefined) {
        own(hole, SITE_LENGTH, who);
        assert.equal(regions.marksWithin(hole, hole + SITE_LENGTH) & Mark.landing, 0, who);
        const distance = hole - (address + length);
        assert.ok(distance >= -128 && distance <= 127, who);
      }
      assert.equal(address + displacedLength, exit + exitLength, who);
      const displaced = displacedAt(plan, address, displacedLength);
      assert.equal(displaced.length, site.displacedCount, who);
      const last = displaced[displaced.length - 1];
      assert.equal(address + last.offset, exit, who);
      // Whoever comes to the exit must have come by the window.
      for (const { offset } of displaced.slice(1))
        assert.equal(regions.marksAt(address + offset) & Mark.known, 0, who);
    }
  }
  assert.ok(owners.size > 0);
}

for (const path of [
  '/lib/x86_64-linux-gnu/libc.so.6',
  '/lib/x86_64-linux-gnu/libcrypto.so.3',
  '/usr/bin/redis-server',
]) {
  test(`every byte of ${path} has one owner, and nobody lands within a window`, () => {
    assertSound(planned(new Uint8Array(readFileSync(realpathSync(path)))));
  });
}

const SOURCE = `
  #include <algorithm>
  #include <map>
  #include <regex>
  #include <string>
  #include <vector>
  int main(int argc, char **argv) {
    std::map<std::string, std::vector<int>> all;
    for (int i = 0; i < argc; i++) all[argv[i]].push_back(i);
    std::regex word("([a-z]+)-([0-9]*)");
    int found = 0;
    for (auto &[name, numbers] : all) {
      std::sort(numbers.begin(), numbers.end(), [](int a, int b) { return a > b; });
      if (std::regex_search(name, word)) found++;
    }
    return found;
  }`;

/** Least share of functions with exits, by how the program is compiled. */
const LEAST: readonly (readonly [flag: string, share: number])[] = [
  ['-O0', 0.995],
  ['-Os', 0.8],
  ['-O2', 0.985],
];

for (const [flag, share] of LEAST) {
  test(`of a C++ program compiled with ${flag} at least ${share * 100} % of the functions have exits`, () => {
    const file = planned(compileCpp(SOURCE, flag));
    assertSound(file);
    const { ranges } = file.plan.landings;
    let all = 0;
    let fit = 0;
    for (let i = 0; i < ranges.count; i++) {
      if (ranges.has(i, Trait.fragment)) continue;
      all++;
      if (typeof file.plan.exits.exitsOf(ranges.starts[i]) !== 'string') fit++;
    }
    assert.ok(all > 100);
    assert.ok(fit / all >= share, `${fit} of ${all}`);
  });
}
