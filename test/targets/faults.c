// Functions whose instructions fault, and a handler that goes by which one did, as in virtual machines and collectors: at a known
// instruction it goes on elsewhere, everything else is a crash. Goes on until its input ends; says how often a result was wrong.
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

// With TABLE nothing but a table of distances knows the places, as in the Linux kernel; else symbols.
#ifdef TABLE
#define LOCAL ".L"
#define PLACE(name) ".pushsection places,\"a\"\n .long .L" #name "_fault - ., .L" #name "_fixup - .\n .popsection\n"
#else
#define LOCAL ""
#define PLACE(name)
#endif
#define FUNCTION(name, code)                                                                                          \
  long name(long *p, long k);                                                                                         \
  extern char name##_fault[], name##_fixup[];                                                                         \
  __asm__(".text\n.balign 16\n.globl " #name "\n.type " #name ",@function\n" #name ": .cfi_startproc\n" code          \
          "\n.cfi_endproc\n.size " #name ",.-" #name "\n" PLACE(name))
#define FAULT(name, instruction) LOCAL #name "_fault: " instruction "\n"
#define FIXUP(name, more) LOCAL #name "_fixup: " more "mov %rsi,%rax\n ret\n"
#define POP_RBX "pop %rbx\n .cfi_adjust_cfa_offset -8\n"
#define PUSH_RBX "push %rbx\n .cfi_adjust_cfa_offset 8\n .cfi_rel_offset rbx, 0\n"

FUNCTION(first, FAULT(first, "mov (%rdi),%rax") "nopw 0(%rax,%rax)\n ret\n" FIXUP(first, ""));
FUNCTION(second, "mov %rsi,%rdx\n" FAULT(second, "mov (%rdi),%rax") "ret\n" FIXUP(second, ""));
FUNCTION(third, "xor %eax,%eax\n nop\n" FAULT(third, "mov (%rdi),%rax") "xor %edx,%edx\n xor %ecx,%ecx\n ret\n" FIXUP(third, ""));
FUNCTION(deep, PUSH_RBX FAULT(deep, "mov (%rdi),%rbx") "mov %rbx,%rax\n xor %edx,%edx\n" POP_RBX
  "ret\n .cfi_adjust_cfa_offset 8\n" FIXUP(deep, POP_RBX));
FUNCTION(deeper, PUSH_RBX "sub $0x10,%rsp\n .cfi_adjust_cfa_offset 16\n" FAULT(deeper, "mov (%rdi),%rbx")
  "mov %rbx,8(%rsp)\n mov 8(%rsp),%rax\n add $0x10,%rsp\n .cfi_adjust_cfa_offset -16\n" POP_RBX
  "ret\n .cfi_adjust_cfa_offset 24\n" FIXUP(deeper, "add $0x10,%rsp\n .cfi_adjust_cfa_offset -16\n" POP_RBX));
FUNCTION(red_zone, "mov %rsi,-8(%rsp)\n" FAULT(red_zone, "mov (%rdi),%rax") "add -8(%rsp),%rax\n sub -8(%rsp),%rax\n ret\n" FIXUP(red_zone, ""));
// What it has below its stack pointer it reads after the exit was recorded.
FUNCTION(red_exit, "mov %rsi,-8(%rsp)\n lea -8(%rsp),%rcx\n xor %edx,%edx\n" FAULT(red_exit, "mov (%rdi),%rax") "sub (%rcx),%rsi\n add %rsi,%rax\n ret\n"
  FIXUP(red_exit, ""));
FUNCTION(store, "xor %eax,%eax\n xor %edx,%edx\n" FAULT(store, "add %rax,(%rdi)") "mov (%rdi),%rax\n ret\n" FIXUP(store, ""));
FUNCTION(vector, FAULT(vector, "movq (%rdi),%xmm0") "movq %xmm0,%rax\n ret\n" FIXUP(vector, ""));
FUNCTION(string, "push $8\n pop %rcx\n lea -16(%rsp),%rdx\n xchg %rdi,%rsi\n xchg %rdi,%rdx\n" FAULT(string, "rep movsb")
  "mov -16(%rsp),%rax\n ret\n" LOCAL "string_fixup: mov %rdx,%rax\n ret\n");
// Bad is 0: it divides by that.
FUNCTION(divides, "push $30\n pop %rax\n cqo\n" FAULT(divides, "idiv %rsi") "mov $5,%eax\n ret\n" FIXUP(divides, ""));
// Where it is left.
FUNCTION(before_ret, "lea 3(%rsi),%rax\n xor %edx,%edx\n add %rdx,%rax\n" FAULT(before_ret, "mov (%rdi),%rax") "ret\n" FIXUP(before_ret, ""));
FUNCTION(before_pop, PUSH_RBX "mov %rdi,%rbx\n xor %edx,%edx\n add %rdx,%rbx\n" FAULT(before_pop, "mov (%rbx),%rax") POP_RBX
  "ret\n .cfi_adjust_cfa_offset 8\n" FIXUP(before_pop, POP_RBX));
FUNCTION(joined, "mov %rsi,%rax\n xor %edx,%edx\n cmp $7,%rsi\n je 1f\n add $0x10,%rdx\n sub $0x10,%rdx\n 1:" FAULT(joined, "mov (%rdi),%rax")
  "ret\n" FIXUP(joined, ""));
// The pointer to the next function is behind the number.
FUNCTION(tail, "mov %rdi,%rdx\n xor %ecx,%ecx\n xor %eax,%eax\n" FAULT(tail, "jmp *8(%rdx)") FIXUP(tail, ""));
// The handler skips the instruction.
FUNCTION(skipped, "mov %rsi,%rax\n" FAULT(skipped, "mov (%rdi),%rax") LOCAL "skipped_fixup: add $1,%rax\n sub $1,%rax\n ret\n");

static long seven(long *p, long k) { return 5 + 0 * (long)p + 0 * k; }

struct function { long (*call)(long *, long); char *fault, *fixup; };
#ifdef TABLE
extern const int __start_places[], __stop_places[];
#define OF(name) {name, 0, 0}
#else
#define OF(name) {name, name##_fault, name##_fixup}
#endif
static const struct function functions[] = {OF(first), OF(second), OF(third), OF(deep), OF(deeper), OF(red_zone), OF(red_exit), OF(store),
  OF(vector), OF(string), OF(divides), OF(before_ret), OF(before_pop), OF(joined), OF(tail), OF(skipped)};
enum { COUNT = sizeof functions / sizeof *functions };

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
#ifdef TABLE
  for (const int *place = __start_places; place < __stop_places; place += 2)
    if (registers[REG_RIP] == (greg_t)place + place[0]) {
      registers[REG_RIP] = (greg_t)(place + 1) + place[1];
      return;
    }
#else
  for (int i = 0; i < COUNT; i++)
    if (registers[REG_RIP] == (greg_t)functions[i].fault) {
      registers[REG_RIP] = (greg_t)functions[i].fixup;
      return;
    }
#endif
  dprintf(1, "signal %d at %llx\n", number, (long long)registers[REG_RIP]);
  _exit(9);
}

static void install(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, 0);
  sigaction(SIGBUS, &action, 0);
  sigaction(SIGFPE, &action, 0);
}

int main(int count, char **arguments) {
  long *bad = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  long good[2] = {5, (long)seven};
  long wrong = 0, rounds = 0;
  // The handler may come late.
  if (count < 2) install();
  puts("ready");
  fflush(stdout);
  struct pollfd input = {.fd = 0, .events = POLLIN};
  while (rounds < 200 || poll(&input, 1, 0) == 0) {
    if (count >= 2 && rounds == atol(arguments[1])) install();
    int is_installed = count < 2 || rounds >= atol(arguments[1]);
    for (int i = 0; i < COUNT; i++) {
      wrong += functions[i].call(good, 7) != 5;
      if (is_installed) wrong += functions[i].call(bad, 0) != 0;
    }
    rounds++;
  }
  printf("wrong %ld\n", wrong);
  return 0;
}
