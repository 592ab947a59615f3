// Functions that begin one to four bytes before the end of a page, called by two threads all the time, which check what they return.
// A line of standard input is answered by "fine" or by how often something was wrong.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

__asm__(
    ".text\n"
    ".macro across before\n"
    "  .p2align 12\n"
    "  .skip 4096 - \\before, 0x90\n"
    "  .globl across_\\before\n"
    "  .type across_\\before, @function\n"
    "across_\\before:\n"
    "  push %rbp\n"
    "  mov %rsp, %rbp\n"
    "  lea \\before(%rdi), %rax\n"
    "  pop %rbp\n"
    "  ret\n"
    "  .size across_\\before, . - across_\\before\n"
    ".endm\n"
    "across 1\n across 2\n across 3\n across 4\n");

extern long across_1(long), across_2(long), across_3(long), across_4(long);
static atomic_long wrong, rounds;

static void *body(void *unused) {
  (void)unused;
  for (long n = 0;; n++) {
    if (across_1(n) + across_2(n) + across_3(n) + across_4(n) != 4 * n + 10) wrong++;
    rounds++;
  }
  return 0;
}

int main(void) {
  char line[64];
  for (int i = 0; i < 2; i++) {
    pthread_t thread;
    pthread_create(&thread, 0, body, 0);
  }
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    for (long before = rounds; rounds < before + 1000;);
    if (wrong) printf("wrong %ld times\n", (long)wrong);
    else puts("fine");
    fflush(stdout);
  }
  return wrong != 0;
}
