// Has patched itself: the middle of its text was writable for a moment, and stores went there. The kernel counts what was writable as such
// for ever, so that the text is three mappings from then on. Then works for each line, and says whether it was right; "keep" makes a page
// writable for good, and stores go there from then on.
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

/** Changes the last byte of a page, and changes it back. */
NOINLINE __attribute__((aligned(PAGE))) static void store(volatile char *page) {
  page[PAGE - 1] ^= 1;
  page[PAGE - 1] ^= 1;
}

static int unlock(void *page) { return mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC); }

static int patch(void *page) {
  if (unlock(page) != 0) return 1;
  store(page);
  return mprotect(page, PAGE, PROT_READ | PROT_EXEC);
}

__attribute__((aligned(PAGE))) int main(void) {
  char line[64];
  int keeps = 0;
  if (patch(second) != 0) return 1;
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin) != NULL) {
    int wrong = 0;
    if (strncmp(line, "keep", 4) == 0) keeps = unlock(third) == 0;
    if (keeps) store((volatile char *)third);
    for (long i = 0; i < 1000; i++) wrong += first(i) != i + 1 || second(i) != i + 2 || third(i) != i + 3;
    printf("wrong=%d\n", wrong);
    fflush(stdout);
  }
  return 0;
}
