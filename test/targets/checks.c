// A program that checks its own code all the time, in a thread of its own. Each line of standard input is answered by
// "own=N guarded=M": how often all of its code, and one function alone, was not what it was at the start, since the line before.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

extern const unsigned char __executable_start[], etext[], __start_alone[], __stop_alone[];
static atomic_long checks, own, guarded_ones;
static volatile long sink;

__attribute__((noinline, section("alone"))) long guarded(long n) {
  sink = n;
  return n + 1;
}

__attribute__((noinline)) long work(long n) {
  sink = n;
  return guarded(n) - 1;
}

static unsigned long sum_of(const unsigned char *from, const unsigned char *to) {
  unsigned long sum = 14695981039346656037ul;
  for (; from < to; from++) sum = (sum ^ *from) * 1099511628211ul;
  return sum;
}

static void *check(void *unused) {
  unsigned long all = sum_of(__executable_start, etext), one = sum_of(__start_alone, __stop_alone);
  for (;; checks++) {
    if (sum_of(__executable_start, etext) != all) own++;
    if (sum_of(__start_alone, __stop_alone) != one) guarded_ones++;
  }
  return unused;
}

int main(void) {
  pthread_t thread;
  pthread_create(&thread, 0, check, 0);
  while (checks < 2) usleep(100);
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    /* The check that is going on may have begun when something else was there. */
    for (long before = checks; checks <= before;);
    own = guarded_ones = 0;
    for (long before = checks; checks < before + 5;)
      if (work(41) != 41) return 1;
    printf("own=%ld guarded=%ld\n", own, guarded_ones);
    fflush(stdout);
  }
  _exit(0);
}
