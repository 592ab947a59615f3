import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compile } from '../elf/gcc.test.support.js';
import { parseElf } from '../elf/index.js';
import { functionsOf } from '../symbols/index.js';
import { decodeFlow } from './instruction-flow.js';
import { mayFault } from './may-fault.js';

const FAULTS = [
  'mov (%rdi), %rax',
  'mov 8(%rdi), %eax',
  'mov %rax, (%rdi)',
  'movb $1, (%rdi)',
  'add $1, (%rdi)',
  'cmpl $0, 8(%rax)',
  'test %al, (%rdi)',
  'cmove (%rdi), %rax',
  'movzbl (%rdi), %eax',
  'mov (%rsp,%rax,8), %rax',
  'mov -8(%rbp,%rax), %rax',
  'mov (%r12), %rax',
  'mov (%r13), %rax',
  'mov table(,%rax,8), %rax',
  'mov 0x10, %rax',
  'movabs 0x1122334455667788, %rax',
  'mov (%edi), %eax',
  'mov (%esp), %eax',
  'mov %fs:(%rax), %rax',
  'mov %fs:0x28(%rax), %rax',
  'mov %fs:0x7000000, %rax',
  'mov %gs:0x28, %rax',
  'orq $0, -0x1000(%rsp)',
  'movups (%rdi), %xmm0',
  'movaps %xmm0, (%rdi)',
  'movq (%rdi), %xmm0',
  'movsd (%rdi), %xmm0',
  'movdqu (%rdi), %xmm0',
  'vmovdqu (%rdi), %ymm0',
  'vmovups %ymm0, (%rdi)',
  'vpgatherdd %xmm2, (%rdi,%xmm1,4), %xmm0',
  'push (%rdi)',
  'pop (%rdi)',
  'call *8(%rdi)',
  'call *table(,%rax,8)',
  'jmp *(%rax)',
  'lock xadd %rax, (%rdi)',
  'lock cmpxchg16b (%rdi)',
  'xchg %rax, (%rdi)',
  'rep movsb',
  'movsq',
  'rep stosq',
  'repne scasb',
  'repe cmpsb',
  'lodsb',
  'xlat',
  'div %ecx',
  'idiv %rcx',
  'divb %cl',
  'divl 8(%rsp)',
  'ud2',
  'int3',
  'int $0x80',
  'syscall',
  'hlt',
  'in %dx, %al',
  'rdtsc',
  'ldmxcsr (%rdi)',
  'fxsave (%rdi)',
  'xsave (%rdi)',
  'movntdq %xmm0, (%rdi)',
  'clflush (%rdi)',
  // Where they are set to trap.
  'addsd %xmm1, %xmm0',
  'divss %xmm1, %xmm0',
  'cvttsd2si %xmm0, %rax',
  'ucomisd %xmm1, %xmm0',
  'sqrtsd %xmm1, %xmm0',
  'roundsd $0, %xmm1, %xmm0',
  'vmulsd %xmm2, %xmm1, %xmm0',
  'vfmadd213sd %xmm2, %xmm1, %xmm0',
  'vaddpd %zmm2, %zmm1, %zmm0',
  'fldl (%rdi)',
];
const SAFE = [
  'fadd %st(1), %st',
  'fldl 8(%rsp)',
  'mov %rdi, %rax',
  'xor %eax, %eax',
  'mov $1, %eax',
  'movabs $0x1122334455667788, %rax',
  'add $8, %rsp',
  'imul %rsi, %rdi',
  'mul %rcx',
  'neg %rax',
  'not %rax',
  'test $1, %dil',
  'test $1, %edi',
  'push %rbx',
  'pop %rbx',
  'push $1',
  'push 8(%rsp)',
  'leave',
  'ret',
  'call table',
  'jmp table',
  'je table',
  'call *%rax',
  'jmp *%rax',
  'call *table(%rip)',
  'jmp *table(%rip)',
  'mov table(%rip), %rax',
  'mov %rax, table(%rip)',
  'cmpb $0, table(%rip)',
  'movups table(%rip), %xmm0',
  'vmovdqu table(%rip), %ymm0',
  'mov 8(%rsp), %rax',
  'mov %rax, -8(%rsp)',
  'mov 0x1000(%rsp), %rax',
  'movups %xmm0, 16(%rsp)',
  'vmovdqu 32(%rsp), %ymm0',
  'lea 8(%rdi), %rax',
  'lea (%rdi,%rsi,8), %rax',
  'lea table(%rip), %rax',
  'nop',
  'nopl 8(%rax)',
  'nopw 0(%rax,%rax)',
  'endbr64',
  'prefetcht0 (%rdi)',
  'prefetchnta 64(%rdi)',
  'prefetchw (%rdi)',
  'mov %fs:0x28, %rax',
  'sub %fs:0x28, %rax',
  'mov %fs:0xfffffffffffffff8, %rax',
  'cltq',
  'cqo',
  'bswap %eax',
  'pxor %xmm0, %xmm0',
  'movaps %xmm1, %xmm0',
  'movq %xmm0, %rax',
  'vpxor %xmm0, %xmm0, %xmm0',
  'vzeroupper',
  'pshufd $0, %xmm1, %xmm0',
  'popcnt %rdi, %rax',
  'shlx %rax, %rdi, %rax',
  'cpuid',
];
/** Memory by rbp: the frame, or anything. */
const BY_FRAME_POINTER = [
  'mov -8(%rbp), %rax',
  'mov %edi, -0x14(%rbp)',
  'vmovdqu -32(%rbp), %ymm0',
  'cmpl $0, 16(%rbp)',
];

test('each kind of instruction may fault, or not', () => {
  const all = [...FAULTS, ...SAFE, ...BY_FRAME_POINTER];
  const code = all.map(
    (one, i) => `.globl f${i}\\n.type f${i},@function\\nf${i}: ${one}\\n.size f${i},.-f${i}\\n`,
  );
  const source = `__asm__(".text\\n${code.join('')} .data\\ntable: .quad 0\\n.text\\n"); int main(void) { return 0; }`;
  const elf = parseElf(compile(source, '-no-pie'), 'file');
  const functions = new Map(functionsOf(elf).map((f) => [f.name, f]));
  const judge = (i: number, hasFrame: boolean): boolean => {
    const f = functions.get(`f${i}`);
    assert.ok(f, all[i]);
    const start = elf.codeOffset(f.addressNumber, f.size);
    const rare = decodeFlow(elf.bytes, start, start + f.size);
    return mayFault(elf.bytes, start, rare, () => hasFrame);
  };
  all.forEach((one, i) => {
    if (BY_FRAME_POINTER.includes(one)) {
      assert.equal(judge(i, true), false, one);
      assert.equal(judge(i, false), true, one);
      return;
    }
    for (const hasFrame of [true, false]) assert.equal(judge(i, hasFrame), FAULTS.includes(one), one);
  });
});
