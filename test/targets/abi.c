// What a call may carry: every kind of argument and result, registers that a caller knows its local callee to leave alone,
// chains of tail calls. The program checks itself and prints what came out of it.
#include <immintrin.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOINLINE __attribute__((noinline, noclone))
/** Without noclone and noipa: gcc may see that it leaves registers alone, and let its callers rely on it. */
#define LOCAL static __attribute__((noinline))

struct large {
  long a[12];
};
struct pair {
  double x;
  long y;
};

NOINLINE long ten(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j;
}

NOINLINE struct large make_large(long seed) {
  struct large l;
  for (int i = 0; i < 12; i++) l.a[i] = seed * (i + 1);
  return l;
}

NOINLINE struct pair make_pair(double x, long y) { return (struct pair){x * 2, y + 1}; }

NOINLINE double sum_of(int n, ...) {
  va_list list;
  double sum = 0;
  va_start(list, n);
  for (int i = 0; i < n; i++) sum += i % 2 ? va_arg(list, double) : (double)va_arg(list, long);
  va_end(list);
  return sum;
}

NOINLINE long double longer(long double a, long double b) { return a * b + 1.0L; }
NOINLINE _Complex double turned(_Complex double z) { return z * 1.0i; }
NOINLINE _Complex long double turned_long(_Complex long double z) { return z * 1.0i; }
NOINLINE __int128 wide(__int128 a, __int128 b) { return a * b + 7; }
NOINLINE double doubles(double a, double b, double c, double d, double e, double f, double g, double h, double i) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i;
}

NOINLINE __attribute__((target("avx2"))) __m256i lanes(__m256i a, __m256i b) { return _mm256_add_epi64(a, b); }

/** The callee touches two registers only; at -O2 the loop keeps its values in the others over the call. */
LOCAL long touches_little(long a) {
  __asm__ volatile("" : "+r"(a));
  return a ^ 1;
}

NOINLINE long keeps_many(long n) {
  long a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, h = 8, sum = 0;
  for (long i = 0; i < n; i++) {
    a += b ^ i;
    b += c ^ a;
    c += d ^ b;
    d += e ^ c;
    e += f ^ d;
    f += g ^ e;
    g += h ^ f;
    h += a ^ g;
    sum += touches_little(i + a) + h;
  }
  return sum + a + b + c + d + e + f + g + h;
}

LOCAL double touches_one_xmm(double a) {
  __asm__ volatile("" : "+x"(a));
  return a + 1;
}

NOINLINE double keeps_xmm(long n) {
  double a = 1, b = 2, c = 3, d = 4, e = 5, sum = 0;
  for (long i = 0; i < n; i++) {
    a = a * 0.5 + b;
    b = b * 0.25 + c;
    c = c * 0.125 + d;
    d = d * 0.5 + e;
    e = e * 0.25 + (double)i;
    sum += touches_one_xmm(a) + e;
  }
  return sum + a + b + c + d + e;
}

void nothing(void);
__asm__(".text\n.p2align 4\n.globl nothing\n.type nothing,@function\nnothing:\n.cfi_startproc\n"
        "lea 1(%rax), %rax\nlea -1(%rax), %rax\nret\n.cfi_endproc\n.size nothing,.-nothing\n");

/** Calls `nothing` with every register full and compares all of them, the flags and the vectors. Returns what differs. */
__attribute__((noinline, target("avx2"))) static int registers_kept(unsigned long flags) {
  static unsigned long before[16], after[16];
  static unsigned char vectors[16][32] __attribute__((aligned(32))), vectors_after[16][32] __attribute__((aligned(32)));
  for (int i = 0; i < 16; i++) before[i] = 0x0101010101010101ul * (unsigned)(i + 17);
  for (int i = 0; i < 16; i++) memset(vectors[i], 3 * i + 1, 32);
  unsigned long flags_after;
  __asm__ volatile(
      "push %%rbx\n push %%rbp\n push %%r12\n push %%r13\n push %%r14\n push %%r15\n"
      "push %[flags]\n"
      "lea %[v], %%rax\n"
      "vmovdqa 0(%%rax), %%ymm0\n vmovdqa 32(%%rax), %%ymm1\n vmovdqa 64(%%rax), %%ymm2\n vmovdqa 96(%%rax), %%ymm3\n"
      "vmovdqa 128(%%rax), %%ymm4\n vmovdqa 160(%%rax), %%ymm5\n vmovdqa 192(%%rax), %%ymm6\n vmovdqa 224(%%rax), %%ymm7\n"
      "vmovdqa 256(%%rax), %%ymm8\n vmovdqa 288(%%rax), %%ymm9\n vmovdqa 320(%%rax), %%ymm10\n vmovdqa 352(%%rax), %%ymm11\n"
      "vmovdqa 384(%%rax), %%ymm12\n vmovdqa 416(%%rax), %%ymm13\n vmovdqa 448(%%rax), %%ymm14\n vmovdqa 480(%%rax), %%ymm15\n"
      "mov 0+%[b], %%rax\n mov 8+%[b], %%rbx\n mov 16+%[b], %%rcx\n mov 24+%[b], %%rdx\n"
      "mov 32+%[b], %%rsi\n mov 40+%[b], %%rdi\n mov 48+%[b], %%rbp\n mov 56+%[b], %%r8\n"
      "mov 64+%[b], %%r9\n mov 72+%[b], %%r10\n mov 80+%[b], %%r11\n mov 88+%[b], %%r12\n"
      "mov 96+%[b], %%r13\n mov 104+%[b], %%r14\n mov 112+%[b], %%r15\n"
      "popf\n call nothing\n pushf\n"
      "mov %%rax, 0+%[a]\n mov %%rbx, 8+%[a]\n mov %%rcx, 16+%[a]\n mov %%rdx, 24+%[a]\n"
      "mov %%rsi, 32+%[a]\n mov %%rdi, 40+%[a]\n mov %%rbp, 48+%[a]\n mov %%r8, 56+%[a]\n"
      "mov %%r9, 64+%[a]\n mov %%r10, 72+%[a]\n mov %%r11, 80+%[a]\n mov %%r12, 88+%[a]\n"
      "mov %%r13, 96+%[a]\n mov %%r14, 104+%[a]\n mov %%r15, 112+%[a]\n"
      "lea %[w], %%rax\n"
      "vmovdqa %%ymm0, 0(%%rax)\n vmovdqa %%ymm1, 32(%%rax)\n vmovdqa %%ymm2, 64(%%rax)\n vmovdqa %%ymm3, 96(%%rax)\n"
      "vmovdqa %%ymm4, 128(%%rax)\n vmovdqa %%ymm5, 160(%%rax)\n vmovdqa %%ymm6, 192(%%rax)\n vmovdqa %%ymm7, 224(%%rax)\n"
      "vmovdqa %%ymm8, 256(%%rax)\n vmovdqa %%ymm9, 288(%%rax)\n vmovdqa %%ymm10, 320(%%rax)\n vmovdqa %%ymm11, 352(%%rax)\n"
      "vmovdqa %%ymm12, 384(%%rax)\n vmovdqa %%ymm13, 416(%%rax)\n vmovdqa %%ymm14, 448(%%rax)\n vmovdqa %%ymm15, 480(%%rax)\n"
      "pop %%rcx\n pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbp\n pop %%rbx\n"
      "mov %%rcx, %%rax\n"
      : "=&a"(flags_after)
      : [flags] "r"(flags), [v] "m"(vectors), [w] "m"(vectors_after), [b] "m"(before), [a] "m"(after)
      : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
        "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  __asm__ volatile("cld");
  int bad = 0;
  for (int i = 0; i < 15; i++) bad += before[i] != after[i];
  bad += memcmp(vectors, vectors_after, sizeof vectors) != 0;
  /* CF PF AF ZF SF DF OF */
  bad += ((flags ^ flags_after) & 0xcd5) != 0;
  return bad;
}

/** Chains of tail calls: each of them jumps to the next. */
NOINLINE long link_c(long n, long sum);
NOINLINE long link_b(long n, long sum) { return link_c(n, sum + 2); }
NOINLINE long link_a(long n, long sum) { return link_b(n, sum + 1); }
NOINLINE long link_c(long n, long sum) { return n == 0 ? sum : link_a(n - 1, sum + 3); }

__attribute__((target("avx2"))) int main(int argc, char **argv) {
  long rounds = argc > 1 ? atol(argv[1]) : 100, links = argc > 2 ? atol(argv[2]) : 10;
  long long check = 0;
  int bad = 0;
  for (long i = 0; i < rounds; i++) {
    check += ten(i, 2, 3, 4, 5, 6, 7, 8, 9, 10);
    struct large l = make_large(i);
    check += l.a[0] + l.a[11];
    struct pair p = make_pair((double)i, i);
    check += (long)p.x + p.y;
    check += (long)sum_of(12, 1l, 2.0, 3l, 4.0, 5l, 6.0, 7l, 8.0, 9l, 10.0, 11l, (double)i);
    check += (long)longer((long double)i, 3.0L);
    check += (long)__imag__ turned((double)i + 2.0i);
    check += (long)__imag__ turned_long((long double)i + 2.0i);
    check += (long)wide((__int128)i << 40, 3);
    check += (long)doubles(1, 2, 3, 4, 5, 6, 7, 8, (double)i);
    check += link_a(links, 0);
    for (unsigned bits = 0; bits < 64; bits++) {
      unsigned long flags = 2 | (bits & 1) | (bits & 2) << 1 | (bits & 4) << 2 | (bits & 8) << 3 | (bits & 16) << 3 | (bits & 32) << 6;
      bad += registers_kept(flags);
      bad += registers_kept(flags | 0x400);
    }
  }
  if (__builtin_cpu_supports("avx2")) {
    __m256i v = lanes(_mm256_set1_epi64x(rounds), _mm256_set1_epi64x(5));
    check += _mm256_extract_epi64(v, 3);
  }
  printf("check=%lld kept=%ld xmm=%.6f bad=%d\n", check, keeps_many(rounds * 100), keeps_xmm(rounds * 100), bad);
  return 0;
}
