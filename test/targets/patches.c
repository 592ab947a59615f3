// Has patched itself: the middle of its text was writable for a moment, and stores went there. Then works for each line, and says whether it
// was right. The kernel counts what was writable as such for ever, so that the text is three mappings from then on.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
#define PAGE 4096
static volatile long sink;

NOINLINE __attribute__((aligned(PAGE))) long first(long n) {
  sink = n;
  return n + 1;
}

NOINLINE __attribute__((aligned(PAGE))) long second(long n) {
  sink = n;
  return n + 2;
}

NOINLINE __attribute__((aligned(PAGE))) long third(long n) {
  sink = n;
  return n + 3;
}

NOINLINE __attribute__((aligned(PAGE))) static int patch(void) {
  volatile char *page = (volatile char *)second;
  if (mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) return 1;
  page[PAGE - 1] ^= 1;
  page[PAGE - 1] ^= 1;
  return mprotect((void *)page, PAGE, PROT_READ | PROT_EXEC);
}

__attribute__((aligned(PAGE))) int main(void) {
  char line[64];
  if (patch() != 0) return 1;
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin) != NULL) {
    int wrong = 0;
    for (long i = 0; i < 1000; i++) wrong += first(i) != i + 1 || second(i) != i + 2 || third(i) != i + 3;
    printf("wrong=%d\n", wrong);
    fflush(stdout);
  }
  return 0;
}
