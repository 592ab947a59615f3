// Threads that live long, and a storm of short ones: "threads LONG SHORT TOGETHER", or "-": at each line of input.
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <limits.h>
#include "count.h"

enum { STEP, BODY };
static const char *const count_names[] = {"step", "body", 0};
static volatile long sink;
static atomic_int wrong;

NOINLINE long step(long n) {
  COUNT(STEP);
  sink = n;
  return n + 1;
}

NOINLINE void *body(void *n) {
  COUNT(BODY);
  long sum = 0;
  for (long i = 0; i < (long)(intptr_t)n; i++) sum += step(i) - i;
  if (sum != (long)(intptr_t)n) wrong++;
  return 0;
}

static void storm(int shorts, int together) {
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN);
  pthread_t threads[1024];
  for (int i = 0; i < shorts; i += together) {
    int n = 0;
    for (; n < together && i + n < shorts; n++)
      if (pthread_create(&threads[n], n % 2 ? &small : 0, body, (void *)(intptr_t)((i + n) % 7 + 1)) != 0) abort();
    while (n > 0) pthread_join(threads[--n], 0);
  }
}

int main(int argc, char **argv) {
  if (strcmp(argv[1], "-") == 0) {
    char line[64];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
      storm(atoi(line), 50);
      printf("done %d\n", wrong);
      fflush(stdout);
    }
    return wrong != 0;
  }
  pthread_t threads[64];
  int longs = atoi(argv[1]);
  for (int i = 0; i < longs; i++) pthread_create(&threads[i], 0, body, (void *)20000);
  storm(atoi(argv[2]), atoi(argv[3]));
  for (int i = 0; i < longs; i++) pthread_join(threads[i], 0);
  printf("wrong: %d\n", wrong);
  print_counts();
  return wrong != 0;
}
