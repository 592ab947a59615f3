// A signal handler on the thread's own stack that has interrupted the first instructions of a function, and was itself interrupted by a
// handler on an alternate stack, which waits. "nested own" or "nested near": where the alternate stack lies.
// Told "middle", the thread is single-stepped (by itself) to the second instruction of middle(); told "outside", to the first that is
// not the program's. It says "held" then, and goes on at the next line; "result=" follows.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { STACK = 256 << 10, TRAP_FLAG = 0x100 };

extern char __executable_start, etext;
long middle(long n);

// Its first five bytes are two instructions, of two and of four bytes.
__asm__(
    ".text\n"
    ".globl middle\n"
    ".type middle, @function\n"
    "middle:\n"
    "  .byte 0x31, 0xc0\n"               // xor eax, eax
    "  .byte 0x48, 0x8d, 0x47, 0x07\n"   // lea rax, [rdi+7]
    "  addq %rdi, %rax\n"
    "  ret\n"
    ".size middle, . - middle\n");

/** Steps from before its call on: each instruction is followed by a SIGTRAP. */
long stepped(long n);
__asm__(
    ".text\n"
    ".globl stepped\n"
    ".type stepped, @function\n"
    "stepped:\n"
    "  pushfq\n"
    "  orq $0x100, (%rsp)\n"
    "  popfq\n"
    "  call middle\n"
    "  ret\n"
    ".size stepped, . - stepped\n");

static int wants_outside;
/** Bytes of the first instruction of middle(). Volatile: an address in the code would say that somebody may land there. */
static volatile int second = 2;

static void say(const char *line) {
  if (write(1, line, strlen(line)) < 0) _exit(3);
}

static void read_line(char *line, int room) {
  int length = 0;
  char c;
  for (;;) {
    if (read(0, &c, 1) != 1) exit(0);
    if (c == '\n') break;
    if (length < room - 1) line[length++] = c;
  }
  line[length] = 0;
}

/** On the alternate stack. */
static void waits(int signal) {
  char line[64];
  (void)signal;
  say("held\n");
  read_line(line, sizeof line);
}

/** On the stack of the thread. */
static void on_step(int signal, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  char *rip = (char *)registers[REG_RIP];
  int is_outside = rip < &__executable_start || rip >= &etext;
  (void)signal;
  (void)info;
  if (wants_outside ? !is_outside : rip != (char *)middle + second) return;
  registers[REG_EFL] &= ~TRAP_FLAG;
  raise(SIGUSR1);
}

static void *body(void *alternate) {
  stack_t stack = {.ss_sp = alternate, .ss_size = STACK};
  char line[64];
  sigaltstack(&stack, 0);
  say("ready\n");
  for (long n = 1;; n++) {
    read_line(line, sizeof line);
    wants_outside = strcmp(line, "outside") == 0;
    long result = stepped(n);
    snprintf(line, sizeof line, "%s\n", result == 2 * n + 7 ? "right" : "wrong");
    say(line);
  }
  return 0;
}

int main(int argc, char **argv) {
  struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};
  struct sigaction wait = {.sa_handler = waits, .sa_flags = SA_ONSTACK};
  sigaction(SIGTRAP, &step, 0);
  sigaction(SIGUSR1, &wait, 0);
  char *area = mmap(0, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (argc < 2 || strcmp(argv[1], "near") != 0) body(area);
  // The stack below the alternate one, in the same mapping.
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, area, STACK);
  pthread_create(&thread, &attributes, body, area + STACK);
  pthread_join(thread, 0);
}
