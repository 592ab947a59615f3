// Functions that are entered where one does not expect it: each is called ROUNDS times, and all that they answer goes into one sum.
#include <stdio.h>

enum { ROUNDS = 20 };

#define FUNCTION(name, code) \
  ".globl " #name "\n.type " #name ",@function\n.p2align 4\n" #name ":\n" code "\n.size " #name ",.-" #name "\n"

long sum(const long *, long), sum_from(const long *, long, long);
long spin(long), spin_far(long), zone_loop(unsigned long, unsigned long), endless(long);
long warm(long), warm_end(long), cold_zone(long), chained(long);
long interpret(const unsigned char *), by_memory(long), by_memory_short(long), by_difference(long, long), unrolled(long);
long falls(long), fallen_into(long), second(long), first(long);
long reads_return(long), pops_return(long), reads_copy(long), keeps(long *);

__asm__(".text\n"
  // Another function jumps behind its first instruction.
  FUNCTION(sum, "xor %eax,%eax\n.Lsum_body: test %rsi,%rsi\njz 2f\n1: add (%rdi),%rax\nadd $8,%rdi\ndec %rsi\njnz 1b\n2: ret")
  FUNCTION(sum_from, "mov %rdx,%rax\njmp .Lsum_body")
  // Loops back to the entry: in one piece, by a jump from behind, with the red zone in use.
  FUNCTION(spin, "lea 3(%rax,%rdi),%rax\ndec %rdi\njnz spin\nret")
  FUNCTION(spin_far, "mov %rdi,%rax\nadd $1,%rax\ncmp $9,%rdi\njl 1f\nret\n1: inc %rdi\njmp spin_far")
  FUNCTION(zone_loop, "cmp %rsi,%rdi\njne 1f\nmovq $5,-8(%rsp)\nmovq $7,-16(%rsp)\n1: mov -16(%rsp),%rax\nadd %rdi,-8(%rsp)\nadd %rax,-8(%rsp)\ndec %rdi\njnz zone_loop\nmov -8(%rsp),%rax\nret")
  // Parts with symbols of their own, entered with a live red zone: they come back, end by themselves, or are one behind the other.
  FUNCTION(warm, "lea (%rdi,%rdi,2),%rax\nmov %rax,-8(%rsp)\ntest $1,%edi\njne warm.warm\n.Lwarm: mov -8(%rsp),%rax\nadd %rdi,%rax\nret")
  FUNCTION(warm.warm, "lea 1000(%rdi),%rdi\nxor $5,%rdi\njmp .Lwarm")
  FUNCTION(warm_end, "lea (%rdi,%rdi,4),%rax\nmov %rax,-8(%rsp)\ntest $1,%edi\njne other_name\nmov -8(%rsp),%rax\nret")
  ".type other_name,@function\n.p2align 4\nother_name: lea 1(%rdi),%rax\nimul $3,%rax\nadd -8(%rsp),%rax\nret\n.size other_name,.-other_name\n"
  FUNCTION(chained, "mov %rdi,-8(%rsp)\nmov %rdi,%rax\ntest $2,%edi\njne chained_1\nret")
  ".type chained_1,@function\n.p2align 4\nchained_1: lea 2(%rax,%rax),%rax\ntest $1,%edi\njne chained_2\nadd -8(%rsp),%rax\nret\n.size chained_1,.-chained_1\n"
  ".type chained_2,@function\n.p2align 4\nchained_2: lea 9(%rax),%rax\nxor $77,%rax\nadd -8(%rsp),%rax\nret\n.size chained_2,.-chained_2\n"
  // A table in the text; one whose address comes from memory, of addresses and of distances; distances from a label beside
  // another table; a jump whose target is computed from a label.
  FUNCTION(interpret, "xor %eax,%eax\n.Lnext: movzbl (%rdi),%ecx\ninc %rdi\nlea .Lcodes(%rip),%rdx\njmp *(%rdx,%rcx,8)\n.Ladd: movzbl (%rdi),%ecx\ninc %rdi\nadd %rcx,%rax\nmovzbl (%rdi),%ecx\ninc %rdi\njmp *(%rdx,%rcx,8)\n.Lhalt: ret")
  ".p2align 3\n.Lcodes: .quad .Lhalt,.Lnext,.Ladd\n"
  FUNCTION(by_memory, "mov %rdi,%rax\n.Lm0: inc %rax\nmov addresses(%rip),%rdx\nand $3,%edi\nmov (%rdx,%rdi,8),%rcx\nmov $3,%edi\njmp *%rcx\n.Lm1: add $100,%rax\n.Lm3: ret")
  FUNCTION(by_memory_short, "mov %rdi,%rax\n.Ls0: inc %rax\nmov distances(%rip),%rdx\nand $3,%edi\nmovslq (%rdx,%rdi,4),%rcx\nmov $3,%edi\nadd %rdx,%rcx\njmp *%rcx\n.Ls1: add $100,%rax\n.Ls3: ret")
  FUNCTION(by_difference, "mov %rdi,%rax\n.Ld0: add %rsi,%rax\nlea .Lplain(%rip),%rdx\nmov %edi,%ecx\nand $1,%ecx\nmovslq (%rdx,%rcx,4),%rcx\nadd %rdx,%rcx\njmp *%rcx\n.Lp0: add $7,%rax\n.Lp1: and $3,%edi\nlea .Ldiff(%rip),%rdx\nmovslq (%rdx,%rdi,4),%rcx\nmov $3,%edi\nlea .Ld1(%rip),%rdx\nadd %rdx,%rcx\njmp *%rcx\n.Ld1: add $100,%rax\n.Ld3: ret")
  FUNCTION(unrolled, "mov %rdi,%rax\nand $3,%edi\nlea .Lu(%rip),%rdx\nlea (%rdx,%rdi,4),%rdx\njmp *%rdx\n.Lu: add $1,%rax\nadd $2,%rax\nadd $4,%rax\nadd $8,%rax\nret")
  ".section .rodata\n.p2align 3\n.Lplain: .long .Lp0-.Lplain,.Lp1-.Lplain\n.Ldiff: .long .Ld0-.Ld1,.Ld1-.Ld1,.Ld1-.Ld1,.Ld3-.Ld1\n"
  ".Lshort: .long .Ls0-.Lshort,.Ls1-.Lshort,.Ls1-.Lshort,.Ls3-.Lshort\n"
  ".data\n.p2align 3\n.Llong: .quad .Lm0,.Lm1,.Lm1,.Lm3\naddresses: .quad .Llong\ndistances: .quad .Lshort\n.text\n"
  // One falls into the next; two share their end.
  ".globl falls\n.type falls,@function\n.p2align 4\nfalls: add $3,%rdi\nimul $5,%rdi\n.size falls,.-falls\n.globl fallen_into\n.type fallen_into,@function\nfallen_into: lea 1(%rdi,%rdi),%rax\nadd $1,%rax\nret\n.size fallen_into,.-fallen_into\n"
  FUNCTION(first, "lea 1(%rdi),%rax\nimul $3,%rax\n.Lshared: add $11,%rax\nxor $3,%rax\nret")
  FUNCTION(second, "lea 2(%rdi),%rax\nimul $7,%rax\njmp .Lshared")
  // Its own return address is what it is about: on the stack, taken off it, by a copy of the stack pointer, kept for later.
  FUNCTION(reads_return, "mov (%rsp),%rax\nmov (%rax),%al\nmovzbl %al,%eax\nadd %rdi,%rax\nret")
  FUNCTION(pops_return, "pop %rdx\nmov %rdi,%rax\nadd $4,%rax\nmovzbl (%rdx),%ecx\nadd %rcx,%rax\njmp *%rdx")
  FUNCTION(reads_copy, "mov %rsp,%r11\nxor %eax,%eax\nmov (%r11),%rax\nmovzbl (%rax),%eax\nadd %rdi,%rax\nret")
  FUNCTION(keeps, "lea 8(%rsp),%rax\nmov %rax,(%rdi)\nmov (%rsp),%rax\nmov %rax,8(%rdi)\nmov $1,%eax\nret"));

int main(void) {
  static const unsigned char program[] = {2, 5, 1, 1, 2, 7, 1, 2, 9, 0};
  const long values[4] = {1, 2, 3, 4};
  long kept[2], s = 0;
  for (long i = 1; i <= ROUNDS; i++) {
    s = s * 3 + sum(values, 4) + sum_from(values, 4, i);
    s = s * 3 + zone_loop((unsigned long)i, (unsigned long)i) + spin_far(0);
    __asm__ volatile("xor %%eax,%%eax\n mov $6,%%edi\n call spin\n add %%rax,%0" : "+r"(s) : : "rax", "rdi", "memory", "cc");
    s = s * 3 + warm(i) + warm_end(i) + chained(i);
    s = s * 3 + interpret(program) + by_memory(i) + by_memory_short(i) + by_difference(i, 2) + unrolled(i);
    s = s * 3 + falls(i) + fallen_into(i) + first(i) + second(i);
    s = s * 3 + reads_return(i) + pops_return(i) + reads_copy(i) + keeps(kept);
  }
  printf("%ld\n", s);
  return 0;
}
