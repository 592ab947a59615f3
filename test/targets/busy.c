// Threads that are always busy, and check what they compute, until standard input says more: then "fine" or what was wrong.
// A number on standard input is that of the calls of known() that are made first; nobody else calls it.
// "busy THREADS DOES": what the main thread does meanwhile, which is the one that works for a tracer:
//   compute   keeps numbers in registers, vector registers too, and checks them
//   sleep     sleeps for long in nanosleep, which must not end        wait  the same in epoll_wait
//   call      makes system calls and checks what they return
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
#include "count.h"

static const char *const count_names[] = {0};
static volatile int stop;
static atomic_int wrong, interrupted, started;
static atomic_long rounds;

NOINLINE long fib(long n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

NOINLINE long mix(long a, double b, const char *text) { return a + (long)(b * 2) + (long)strlen(text); }

NOINLINE long known(long n) { return n * 2 + 1; }

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

/** 0.5 and 1.5 added 2,000 times each, and as many steps of numbers whose end is known. */
NOINLINE void compute(void) {
  double halves = 0, more = 0;
  unsigned long a = 1, b = 2, c = 3, d = 4;
  for (int i = 0; i < 2000; i++) {
    halves += 0.5;
    more += 1.5;
    a += 1, b += 2, c += 3, d += 4;
    __asm__ volatile("" : "+x"(halves), "+x"(more), "+r"(a), "+r"(b), "+r"(c), "+r"(d));
  }
  if (halves != 1000 || more != 3000 || a != 2001 || b != 4002 || c != 6003 || d != 8004) wrong++;
}

static void *answers(void *is_thread) {
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    for (long n = atol(line); n > 0; n--) if (known(n) != n * 2 + 1) wrong++;
    long before = rounds;
    while (rounds < before + 10);
    if (wrong || interrupted) printf("wrong=%d interrupted=%d\n", wrong, interrupted);
    else puts("fine");
    fflush(stdout);
  }
  if (is_thread) _exit(wrong != 0);
  return 0;
}

int main(int argc, char **argv) {
  int threads = atoi(argv[1]);
  const char *does = argc > 2 ? argv[2] : "";
  pthread_t handles[64], other;
  for (int i = 0; i < threads; i++) pthread_create(&handles[i], 0, body, 0);
  while (started < threads);
  puts("ready");
  fflush(stdout);
  if (*does == 0) {
    answers(0);
    stop = 1;
    for (int i = 0; i < threads; i++) pthread_join(handles[i], 0);
    return wrong != 0;
  }
  pthread_create(&other, 0, answers, &other);
  struct timespec long_time = {100000, 0};
  struct epoll_event event;
  int poll = epoll_create1(0);
  pid_t parent = getppid();
  for (;;) {
    if (strcmp(does, "compute") == 0) compute();
    if (strcmp(does, "call") == 0 && getppid() != parent) wrong++;
    if (strcmp(does, "sleep") == 0) nanosleep(&long_time, 0), interrupted++;
    if (strcmp(does, "wait") == 0) epoll_wait(poll, &event, 1, -1), interrupted++;
  }
}
