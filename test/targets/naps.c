// Sleeps, and measures itself how long: a line "N" of standard input is answered by "backwards=B" and N pairs "INNER-OUTER", the
// nanoseconds of each nap as they are read inside of the function and around it, by a clock that nobody sets. B: how often the time
// of day went backwards by more than a minute.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile long inner;
static long backwards, last;

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000l + t.tv_nsec;
}

static void look_at_the_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  if (t.tv_sec < last - 60) backwards++;
  last = t.tv_sec;
}

__attribute__((noinline, noclone)) void nap(long ms) {
  long from = now();
  look_at_the_clock();
  nanosleep(&(struct timespec){0, ms * 1000000}, 0);
  inner = now() - from;
}

int main(void) {
  char line[64];
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    long naps = atol(line), outer[64], inside[64];
    for (long i = 0; i < naps; i++) {
      long from = now();
      nap(i % 4);
      outer[i] = now() - from;
      inside[i] = inner;
    }
    printf("backwards=%ld", backwards);
    for (long i = 0; i < naps; i++) printf(" %ld-%ld", inside[i], outer[i]);
    puts("");
    fflush(stdout);
  }
  return 0;
}
