// A signal handler runs that will return between the first instructions of `probe`, which loads from a page that nobody may read.
// While it runs, a line "N" of standard input has each step called N times and is answered by the sum of what they returned; an empty
// line ends the handler: the load is made again then, and its result is told.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define NOINLINE __attribute__((noinline, noclone))

/* What is known at link time is not thought to fault: such a load is moved. */
__attribute__((aligned(4096), visibility("hidden"))) char page[4096];

NOINLINE long step_a(long x) { return x * 3 + 1; }
NOINLINE long step_b(long x) { return x * 5 + 2; }

/* Two bytes that do no harm, and the load within the first five. */
__attribute__((naked, noinline, noclone)) long probe(void) {
  __asm__("xor %eax, %eax\n\tmov page(%rip), %al\n\txor %ecx, %ecx\n\tret");
}

NOINLINE long step_c(long x) { return x * 7 + 3; }
NOINLINE long step_d(long x) { return x * 9 + 4; }

static void on_fault(int signal) {
  (void)signal;
  char line[64];
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin) && line[0] != '\n') {
    long sum = 0;
    for (long i = atol(line); i > 0; i--) sum += step_a(i) + step_b(i) + step_c(i) + step_d(i);
    printf("sum=%ld\n", sum);
    fflush(stdout);
  }
  mprotect(page, 4096, PROT_READ | PROT_WRITE);
  page[0] = 42;
}

int main(void) {
  mprotect(page, 4096, PROT_NONE);
  signal(SIGSEGV, on_fault);
  printf("probe=%ld\n", probe());
  return 0;
}
