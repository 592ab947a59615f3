// More different handlers than anybody counts, each installed once, and called: 768 of them. Argument: milliseconds.
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include "count.h"

enum { WORK, STEP };
static const char *const count_names[] = {"work", "step", 0};
static volatile long sink;
static volatile long called;

#include "work.h"

// Each has a body of its own: the compiler would make one of them.
#define ONE(n) \
  static void handler_##n(int signal) { \
    if (work(3) == 3 && signal == SIGUSR1) called += 1000 + 0x##n; \
  }
#define EIGHT(M, n) M(n##0) M(n##1) M(n##2) M(n##3) M(n##4) M(n##5) M(n##6) M(n##7)
#define MORE(M, n) EIGHT(M, n##0) EIGHT(M, n##1) EIGHT(M, n##2) EIGHT(M, n##3) EIGHT(M, n##4) EIGHT(M, n##5)
#define ALL(M) \
  MORE(M, 1) MORE(M, 2) MORE(M, 3) MORE(M, 4) MORE(M, 5) MORE(M, 6) MORE(M, 7) MORE(M, 8) MORE(M, 9) MORE(M, a) \
  MORE(M, b) MORE(M, c) MORE(M, d) MORE(M, e) MORE(M, f) MORE(M, 10)
ALL(ONE)
#define NAME(n) handler_##n,
static void (*const handlers[])(int) = {ALL(NAME)};

int main(int argc, char **argv) {
  long ms = argc > 1 ? atol(argv[1]) : 0;
  int wrong = 0, count = sizeof handlers / sizeof *handlers;
  for (int i = 0; i < count; i++) {
    long before = called;
    signal(SIGUSR1, handlers[i]);
    raise(SIGUSR1);
    if (called <= before) wrong++;
  }
  for (; ms > 0; ms--) {
    raise(SIGUSR1);
    if (work(100) != 100) wrong++;
    usleep(1000);
  }
  return wrong != 0 || count != 768;
}
