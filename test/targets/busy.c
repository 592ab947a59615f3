// Threads that are always busy, and check what they compute, until standard input says more: then "fine" or "wrong".
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "count.h"

static const char *const count_names[] = {0};
static volatile int stop;
static atomic_int wrong, started;
static atomic_long rounds;

NOINLINE long fib(long n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

NOINLINE long mix(long a, double b, const char *text) { return a + (long)(b * 2) + (long)strlen(text); }

static void *body(void *unused) {
  (void)count_names;
  (void)count_of;
  started++;
  while (!stop) {
    if (fib(15) != 610 || mix(1, 2.5, "four") != 10) wrong++;
    rounds++;
  }
  return 0;
}

int main(int argc, char **argv) {
  int threads = atoi(argv[1]);
  pthread_t handles[64];
  for (int i = 0; i < threads; i++) pthread_create(&handles[i], 0, body, 0);
  while (started < threads);
  char line[64];
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    long before = rounds;
    while (rounds < before + 10);
    printf("%s\n", wrong ? "wrong" : "fine");
    fflush(stdout);
  }
  stop = 1;
  for (int i = 0; i < threads; i++) pthread_join(handles[i], 0);
  return wrong != 0;
}
