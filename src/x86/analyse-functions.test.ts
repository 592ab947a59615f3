import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { CannotError } from '../errors/index.js';
import { compile, compileCpp } from '../elf/gcc.test.support.js';
import { parseElf, type ElfFile } from '../elf/index.js';
import { functionsOf, type FunctionSymbol } from '../symbols/index.js';
import {
  analyseFunctions,
  relocateSite,
  Mark,
  ModuleLandings,
  SITE_LENGTH,
  type Analysis,
  type SiteCandidate,
} from './index.js';

const PROGRAM = readFileSync(new URL('../../src/x86/fixtures/calls.c', import.meta.url), 'utf8');
const OURS = [
  'fib',
  'classify',
  'interpret',
  'average',
  'walk',
  'tail',
  'through',
  'big_frame',
  'loop_at_entry',
];

interface Analysed {
  readonly elf: ElfFile;
  readonly functions: FunctionSymbol[];
  readonly analysis: Analysis<FunctionSymbol>;
}

function analyse(bytes: Uint8Array): Analysed {
  const elf = parseElf(bytes, 'fixture');
  const functions = functionsOf(elf);
  return { elf, functions, analysis: analyseFunctions(elf, functions, functions) };
}

function candidate({ analysis }: Analysed, name: string): SiteCandidate<FunctionSymbol> {
  const found = analysis.candidates.find(({ function: { names } }) => names.includes(name));
  assert.ok(found, `${name} can be traced: ${refusal(analysis, name) ?? 'it is not there'}`);
  return found;
}

function refusal(analysis: Analysis<FunctionSymbol>, name: string): string | undefined {
  return analysis.refusals.find(({ function: { names } }) => names.includes(name))?.reason;
}

const ENDBR64_LENGTH = 4n;

const kinds: { flags: string[]; kind: SiteCandidate['kind']; behind?: bigint; frame?: 'entry' | 'rbp' }[] = [
  { flags: ['-O0'], kind: 'relocated' },
  { flags: ['-O2'], kind: 'relocated' },
  { flags: ['-O2', '-fPIC'], kind: 'relocated' },
  { flags: ['-O2', '-fcf-protection=full'], kind: 'relocated', behind: ENDBR64_LENGTH },
  { flags: ['-O2', '-fpatchable-function-entry=5'], kind: 'patchable' },
  { flags: ['-O2', '-fpatchable-function-entry=5', '-no-pie'], kind: 'patchable' },
  { flags: ['-O2', '-fpatchable-function-entry=16,5'], kind: 'patchable' },
  {
    flags: ['-O2', '-fpatchable-function-entry=16,5', '-fcf-protection=full'],
    kind: 'patchable',
    behind: ENDBR64_LENGTH,
  },
  {
    flags: ['-O2', '-fpatchable-function-entry=5', '-fcf-protection=full'],
    kind: 'patchable',
    behind: ENDBR64_LENGTH,
  },
  { flags: ['-O2', '-fpatchable-function-entry=4'], kind: 'relocated' },
  { flags: ['-O2', '-fpatchable-function-entry=6,4'], kind: 'relocated' },
  {
    flags: ['-O2', '-pg', '-mfentry', '-mnop-mcount', '-mrecord-mcount', '-fno-pic', '-no-pie'],
    kind: 'fentry',
  },
  {
    flags: ['-O2', '-pg', '-mfentry', '-mnop-mcount', '-fno-pic', '-no-pie', '-fcf-protection=full'],
    kind: 'fentry',
    behind: ENDBR64_LENGTH,
  },
  { flags: ['-O2', '-pg', '-mfentry', '-no-pie', '-fno-pic'], kind: 'call-site', frame: 'entry' },
  { flags: ['-O2', '-pg', '-mfentry', '-fPIC'], kind: 'call-site', frame: 'entry' },
  {
    flags: ['-O2', '-pg', '-mfentry', '-fcf-protection=full'],
    kind: 'call-site',
    frame: 'entry',
    behind: ENDBR64_LENGTH,
  },
  { flags: ['-O2', '-pg', '-mfentry', '-static'], kind: 'call-site', frame: 'entry' },
  { flags: ['-O0', '-pg'], kind: 'call-site', frame: 'rbp' },
  { flags: ['-O0', '-pg', '-no-pie', '-fno-pic'], kind: 'call-site', frame: 'rbp' },
  { flags: ['-O2', '-pg', '-static', '-no-pie'], kind: 'call-site', frame: 'rbp' },
];

for (const { flags, kind, behind, frame } of kinds) {
  test(`functions compiled with ${flags.join(' ')} have sites of kind ${kind}`, () => {
    const analysed = analyse(compile(PROGRAM, ...flags));
    for (const name of OURS) {
      const site = candidate(analysed, name);
      assert.equal(site.kind, kind, name);
      assert.ok(site.displacedLength >= SITE_LENGTH);
      assert.equal(site.original.length, site.displacedLength);
      if (kind !== 'call-site' || frame === 'entry') {
        assert.equal(site.address, site.function.address + (behind ?? 0n), name);
      }
      assert.equal(site.profilerCall?.frame, frame, name);
      if (kind === 'call-site') {
        assert.match(site.profilerCall?.symbol ?? '', /^(_?mcount|__fentry__)$/);
        const { target, slot } = site.profilerCall ?? {};
        assert.notEqual(target === undefined, slot === undefined);
      }
    }
  });
}

test('compiler-made nops displace nothing: the stub only jumps back', () => {
  for (const flags of [
    ['-fpatchable-function-entry=5'],
    ['-pg', '-mfentry', '-mnop-mcount', '-fno-pic', '-no-pie'],
  ]) {
    const site = candidate(analyse(compile(PROGRAM, '-O2', ...flags)), 'fib');
    const { bytes, boundaries } = relocateSite(site, 0x10_0000n, 0n);
    assert.equal(bytes.length, SITE_LENGTH);
    assert.equal(bytes[0], 0xe9);
    assert.ok(boundaries.every(({ newOffset }) => newOffset === 0));
    assert.deepEqual(boundaries[0], { originalOffset: 0, newOffset: 0 });
  }
});

test('each function asked for gets exactly one verdict', () => {
  const { functions, analysis } = analyse(compile(PROGRAM, '-O2', '-static'));
  assert.ok(functions.length > 500);
  const judged = [...analysis.candidates, ...analysis.refusals].map((verdict) => verdict.function);
  assert.equal(judged.length, functions.length);
  assert.equal(new Set(judged).size, functions.length);
});

/** Functions in assembly; what follows each is its code, and the verdict on it. */
const verdicts: [name: string, code: string, verdict: string][] = [
  ['short_one', 'xor %eax, %eax; ret', 'relocated'],
  ['loops_into_site', 'xor %eax, %eax; 1: inc %eax; dec %edi; jnz 1b; ret', 'branched-into'],
  ['loops_to_entry', 'dec %edi; mov %rdi, %rax; jg loops_to_entry; ret', 'relocated'],
  [
    'loops_behind_site',
    'xor %eax, %eax; xor %edx, %edx; nop; 1: inc %eax; dec %edi; jnz 1b; ret',
    'relocated',
  ],
  ['calls_first', 'call short_one; nop; ret', 'relocated'],
  ['calls_second', 'sub $8, %rsp; call short_one; add $8, %rsp; ret', 'relocated'],
  ['calls_register_early', 'push %rbx; call *%rax; pop %rbx; ret', 'call-in-prologue'],
  ['calls_by_stack', 'nop; call *0x40(%rsp); nop; ret', 'call-in-prologue'],
  ['garbage', 'mov %rdi, %rax; mov %rsi, %rdx; .byte 0x06, 0x06; ret', 'not-relocatable'],
  [
    'hidden_switch',
    'mov %rdi, %rax; nopl (%rax); mov (%rsi), %rdx; add %rdx, %rax; jmp *%rax',
    'computed-jump',
  ],
  ['tail_by_pointer', 'mov (%rdi), %rax; mov 16(%rax), %rax; jmp *%rax', 'relocated'],
  [
    'overlapped',
    'mov %rdi, %rax; .globl inner; .type inner,@function; inner: add $1, %rax; ret; .size inner,5',
    'overlaps',
  ],
  ['setjmp', 'mov %rdi, %rax; mov %rsi, %rdx; ret', 'returns-twice'],
  ['_Unwind_Backtrace', 'mov %rdi, %rax; mov %rsi, %rdx; ret', 'relocated'],
  ['_dl_tlsdesc_return', 'mov %rdi, %rax; mov %rsi, %rdx; ret', 'unsafe-context'],
  ['dlsym', 'mov %rdi, %rax; mov %rsi, %rdx; ret', 'relocated'],
  ['counts_by_rcx', '1: loop 2f; nop; nop; nop; ret; 2: ret', 'relocated'],
  ['tested_far', 'test %edi, %edi; je short_one; mov %rdi, %rax; ret', 'relocated'],
  ['other_part', 'mov %rdi, %rax; jmp target_of_other + 3', 'relocated'],
  ['target_of_other', 'mov %rdi, %rax; mov %rsi, %rdx; ret', 'branched-into'],
  ['by_label', 'mov %rdi, %rax; 1: mov %rsi, %rdx; lea 1b(%rip), %rcx; jmp *%rcx', 'branched-into'],
];

test('the verdict on each kind of code is the one that its bytes ask for', () => {
  const functions = verdicts.map(
    ([name, code]) =>
      `.globl ${name}\\n.type ${name},@function\\n.balign 16\\n${name}: ${code}\\n.size ${name},.-${name}\\n`,
  );
  const source = `__asm__("${functions.join('')}"); int data_as_code __asm__("data_as_code"); int main(void) { return 0; }`;
  const { analysis } = analyse(compile(source));
  for (const [name, , verdict] of verdicts) {
    const found = analysis.candidates.find(({ function: { names } }) => names.includes(name));
    assert.equal(found?.kind ?? refusal(analysis, name), verdict, name);
    if (found !== undefined) assert.equal(found.isWhole, name === 'loops_to_entry', name);
  }
});

/** Functions in assembly of which some instructions may fault; where the site is, from the function's address, and what is on the stack. */
const placed: [name: string, code: string, offset: number | 'may-fault', depth?: number][] = [
  ['safe', 'mov %rsi, %rax; push %rbx; pop %rbx; mov (%rdi), %rdx; ret', 0, 0],
  ['first', 'mov (%rdi), %rax; mov %rsi, %rdx; add %rdx, %rax; ret', 3, 0],
  ['behind_endbr', 'endbr64; mov (%rdi), %rax; mov %rsi, %rdx; add %rdx, %rax; ret', 7, 0],
  ['second', 'mov %rsi, %rdx; mov (%rdi), %rax; add %rdx, %rax; xor %ecx, %ecx; ret', 6, 0],
  [
    'several',
    'mov (%rdi), %rax; mov 8(%rdi), %rdx; add (%rsi), %rax; add %rdx, %rax; xor %ecx, %ecx; ret',
    10,
    0,
  ],
  ['divides', 'push $9; pop %rax; cltd; idiv %esi; mov %rax, %rcx; xor %edx, %edx; ret', 6, 0],
  ['accessor', 'mov 8(%rdi), %rax; ret; nop; nop; nop; nop', 4, 0],
  ['pushed', 'push %rbx; mov (%rdi), %rbx; mov %rbx, %rax; xor %edx, %edx; pop %rbx; ret', 4, 8],
  [
    'pushed_twice',
    'push %r12; push %rbx; mov (%rdi), %rbx; mov %rbx, %rax; xor %edx, %edx; pop %rbx; pop %r12; ret',
    6,
    16,
  ],
  ['room', 'mov (%rdi), %eax; sub $0x40, %rsp; mov %eax, 8(%rsp); add $0x40, %rsp; ret', 2, 0],
  ['behind_room', 'sub $0x40, %rsp; mov (%rdi), %rax; mov %rax, 8(%rsp); add $0x40, %rsp; ret', 7, 64],
  ['too_deep', 'sub $0x400, %rsp; ret', 0, 0],
  ['popped', 'push %rbx; mov (%rdi), %rax; pop %rbx; mov %rsi, %rdx; ret; nop', 4, 8],
  ['frame', 'push %rbp; mov %rsp, %rbp; mov %rdi, -8(%rbp); mov (%rdi), %rax; pop %rbp; ret', 0, 0],
  ['no_frame', 'mov -8(%rbp), %rax; mov %rsi, %rdx; xor %ecx, %ecx; ret', 4, 0],
  ['by_jump', 'jmp *8(%rdi); nop; nop; nop', 'may-fault'],
  ['by_call', 'push %rbx; nop; nop; call *8(%rdi); pop %rbx; ret', 'may-fault'],
  ['red_zone', 'mov %rsi, -8(%rsp); mov (%rdi), %rax; mov -8(%rsp), %rdx; add %rdx, %rax; ret', 0, 0],
  ['in_red_zone', 'mov (%rdi), %rax; mov %rsi, -8(%rsp); mov (%rdi), %rdx; mov -8(%rsp), %rcx; ret', 3, 0],
  ['no_room', 'mov (%rdi), %rax; mov %rsi, -8(%rsp); mov (%rdi), %edx; ret', 3, 0],
  [
    'only_red_zone',
    'mov (%rdi), %rax; test %al, (%rdi); mov %si, -8(%rsp); mov (%rdi), %edx; mov -8(%rsp), %ecx; ret',
    5,
    0,
  ],
  ['by_index', 'mov %al, -8(%rsp,%rsi); mov (%rdi), %rax; mov %rsi, %rdx; xor %ecx, %ecx; ret', 'may-fault'],
  ['by_alias', 'mov (%rdi), %rcx; mov %rsp, %rax; mov %rcx, -8(%rax); mov -8(%rax), %rdx; ret', 'may-fault'],
  ['jumps', 'mov (%rdi), %eax; test %eax, (%rsi); je 1f; mov %esi, %eax; 1: ret', 'may-fault'],
  [
    'jumped_to',
    'mov (%rdi), %rax; test %rax, (%rdi); 1: mov %rsi, %rdx; add %rdx, %rax; dec %rdx; jnz 1b; ret',
    'may-fault',
  ],
  ['code_behind', 'mov %rsi, %rdx; mov (%rdi), %rax; ret; mov %rsi, %rax; ret', 'may-fault'],
  // Run as a copy, of which no instruction's address is known to anybody.
  ['loops', 'mov (%rdi), %rax; mov %rsi, %rdx; dec %rax; jnz loops; ret', 0, 0],
  ['realigned', 'mov %rsi, %rbx; and $-32, %rsp; mov (%rdi), %rax; ret', 0, 0],
  ['calls_system', 'xor %eax, %eax; syscall; mov %rax, %rdx; xor %ecx, %ecx; ret', 'may-fault'],
];

test('what may fault stays where it is: the site comes behind it, or there is none', () => {
  const functions = placed.map(
    ([name, code]) =>
      `.globl ${name}\\n.type ${name},@function\\n.balign 16\\n${name}: ${code}\\n.size ${name},.-${name}\\n`,
  );
  const source = `__asm__("${functions.join('')}"); int main(void) { return 0; }`;
  const { analysis } = analyse(compile(source));
  for (const [name, , offset, depth] of placed) {
    const found = analysis.candidates.find(({ function: { names } }) => names.includes(name));
    const site = found && [found.addressNumber - found.function.addressNumber, found.depth];
    const wanted = offset === 'may-fault' ? offset : [offset, depth];
    assert.deepEqual(site ?? refusal(analysis, name), wanted, name);
  }
});

test('a function that its cold part jumps into the first bytes of is refused, with and without symbols', () => {
  // gcc writes such code where the cold part is a slow path within a loop at the very entry.
  const source = `__asm__(
    ".globl hot\\n.type hot,@function\\n hot: xor %eax, %eax\\n .Lback: inc %eax\\n cmp $9, %edi\\n ja hot_cold\\n ret\\n"
    ".size hot,.-hot\\n .section .text.unlikely,\\"ax\\"\\n"
    ".type hot_cold,@function\\n hot_cold: sub $3, %edi\\n jmp .Lback\\n .size hot_cold,.-hot_cold\\n .text\\n");
    int main(void) { return 0; }`.replaceAll('hot_cold', 'hot.cold');
  for (const flags of [[], ['-rdynamic', '-s']]) {
    assert.equal(refusal(analyse(compile(source, ...flags)).analysis, 'hot'), 'branched-into');
  }
});

test('cold parts, indirect functions and the entry of the program are refused by what they are', () => {
  const source = `
    extern void abort(void); extern int printf(const char *, ...);
    __attribute__((cold, noinline)) void fail(int x) { printf("%d", x); abort(); }
    __attribute__((noinline)) int work(int x) { if (__builtin_expect(x < 0, 0)) { fail(x); printf("no"); } return x * 3; }
    int real(int x) { return x; }
    void *choose(void) { return (void *)real; }
    int chosen(int) __attribute__((ifunc("choose")));
    int main(int argc, char **argv) { return work(argc) + chosen(argc); }`;
  const { analysis } = analyse(compile(source, '-O2'));
  assert.equal(refusal(analysis, 'work.cold'), 'cold-fragment');
  assert.equal(refusal(analysis, 'chosen'), 'ifunc-resolver');
  assert.equal(refusal(analysis, '_start'), 'unsafe-context');
});

for (const flags of [
  ['-O2', '-fPIC'],
  ['-O2', '-fno-pie', '-no-pie'],
  ['-O0'],
  ['-Os', '-fcf-protection=full'],
]) {
  test(`jump tables compiled with ${flags.join(' ')} are read to their end`, () => {
    const { elf, functions } = analyse(compile(PROGRAM, ...flags));
    const landings = ModuleLandings.of(elf, functions);
    for (const [name, cases] of [
      ['classify', 12],
      ['interpret', 6],
    ] as const) {
      const range = functions.find((candidate) => candidate.name === name);
      assert.ok(range);
      let targets = 0;
      for (let at = range.addressNumber; at < range.addressNumber + range.size; at++)
        if ((landings.regions.marksAt(at) & Mark.foreign) !== 0) targets++;
      assert.ok(targets >= cases, `${name}: ${targets} targets`);
      assert.ok(!landings.hasOpenJump(range.addressNumber), name);
    }
  });
}

test('a function whose jump tables have more entries than a call may have arguments is analysed', () => {
  const tables = [1, 2, 3, 4].map((n) => `table${n}`);
  const assembly = [
    '.text; .globl many; .type many,@function; many:',
    ...tables.map((table) => `lea ${table}(%rip),%rax`),
    'movslq (%rax,%rdi,4),%rcx; add %rax,%rcx; jmp *%rcx',
    'many_cases: .fill 60000,1,0x90; ret; .size many,.-many',
    '.section .rodata',
    ...tables.map((table) => `${table}: .rept 60000; .long many_cases - ${table}; .endr`),
    '.text',
  ];
  const source = `__asm__("${assembly.join('\\n')}");`;
  assert.equal(candidate(analyse(compile(source, '-shared', '-fPIC')), 'many').kind, 'relocated');
});

/** An area of code for stubs in the fixture itself, so that the file can be changed and run as it is. */
const STUB_AREA = `
__asm__(".text\\n.globl stub_area\\n.type stub_area,@object\\nstub_area: .fill 65536,1,0x90\\n.size stub_area,65536\\n");`;

function patched({ elf, functions, analysis }: Analysed): Uint8Array {
  const bytes = elf.bytes.slice();
  const area = elf.symbols.find((symbol) => symbol.name === 'stub_area')?.address;
  const first = functions.find((candidate) => candidate.name === 'fib');
  assert.ok(area !== undefined && first !== undefined);
  let stub = area;
  for (const site of analysis.candidates) {
    const code = relocateSite(site, stub, 0n).bytes;
    bytes.set(code, elf.fileOffsetOf(stub));
    const at = elf.fileOffsetOf(site.address);
    assert.ok(at !== undefined);
    const view = new DataView(bytes.buffer);
    bytes[at] = 0xe9;
    view.setInt32(at + 1, Number(stub - (site.address + BigInt(SITE_LENGTH))), true);
    // What is behind the jump is never run: were a jump to lead there after all, it would trap.
    bytes.fill(0xcc, at + SITE_LENGTH, at + site.displacedLength);
    stub += BigInt(code.length);
  }
  return bytes;
}

function output(bytes: Uint8Array): string {
  const folder = mkdtempSync(join(tmpdir(), 'safepoke-patched-'));
  try {
    const program = join(folder, 'program');
    writeFileSync(program, bytes, { mode: 0o755 });
    return execFileSync(program, { encoding: 'utf8', cwd: folder, timeout: 20_000 });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

for (const flags of [
  ['-O0'],
  ['-O1'],
  ['-O2'],
  ['-O3'],
  ['-Os'],
  ['-O2', '-fPIC'],
  ['-O2', '-fcf-protection=full'],
  ['-O2', '-fpatchable-function-entry=5'],
  ['-O2', '-fpatchable-function-entry=16,5', '-fcf-protection=full'],
  ['-O2', '-pg', '-mfentry'],
  ['-O2', '-pg', '-mfentry', '-mnop-mcount', '-fno-pic'],
  ['-O0', '-pg'],
]) {
  test(`a program compiled with ${flags.join(' ')} does the same with every function through a stub`, () => {
    const analysed = analyse(compile(PROGRAM + STUB_AREA, ...flags, '-no-pie'));
    assert.ok(analysed.analysis.candidates.length > OURS.length);
    const expected = output(analysed.elf.bytes);
    assert.ok(expected.includes('fib 6765'));
    assert.equal(output(patched(analysed)), expected);
  });
}

test('a C++ program that throws through functions behind stubs does the same', () => {
  const source = `
    #include <cstdio>
    #include <stdexcept>
    #include <string>
    struct Noisy { std::string name; ~Noisy() { std::printf("gone %s\\n", name.c_str()); } };
    __attribute__((noinline)) int deep(int n) { Noisy noisy{std::to_string(n)}; if (n == 0) throw std::runtime_error("end"); return deep(n - 1) + 1; }
    __attribute__((noinline)) int guarded(int n) { try { return deep(n); } catch (const std::exception &e) { std::printf("caught %s\\n", e.what()); return -1; } }
    extern "C" __attribute__((noinline)) int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
    int main() { std::printf("%d %d\\n", guarded(4), fib(10)); }`;
  for (const level of ['-O0', '-O2']) {
    const analysed = analyse(compileCpp(source + STUB_AREA, level, '-no-pie'));
    assert.equal(output(patched(analysed)), output(analysed.elf.bytes));
  }
});

test('a damaged program is analysed or refused, and never anything else', () => {
  const whole = compile(PROGRAM, '-O2', '-fpatchable-function-entry=5');
  const elf = parseElf(whole, 'f');
  const text = elf.sections.find((section) => section.name === '.text');
  const symbols = elf.sections.find((section) => section.name === '.symtab');
  assert.ok(text !== undefined && symbols !== undefined);
  const places = fc.oneof(
    fc.integer({ min: text.offset, max: text.offset + text.size - 1 }),
    fc.integer({ min: symbols.offset, max: symbols.offset + symbols.size - 1 }),
    fc.nat(whole.length - 1),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(places, fc.nat(255)), { minLength: 1, maxLength: 20 }), (edits) => {
      const bytes = whole.slice();
      for (const [offset, value] of edits) bytes[offset] = value;
      try {
        const { analysis } = analyse(bytes);
        for (const site of analysis.candidates) relocateSite(site, site.address, 0n);
      } catch (error) {
        if (!(error instanceof CannotError)) throw error;
      }
    }),
    { numRuns: 400 },
  );
});
