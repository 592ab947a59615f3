/*
 * Many threads: "scale THREADS BUSY": so many threads, of which some are always busy and the others asleep.
 * Says "ready"; ends with its standard input. With a third argument it says nothing, and goes on until a signal ends it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int started;
static _Thread_local volatile long sink;

__attribute__((noinline)) long step(long n) {
  sink = n;
  return n + 1;
}

__attribute__((noinline)) void asleep(void) {
  for (;;) pause();
}

static void *body(void *busy) {
  started++;
  if (busy == 0) asleep();
  for (long i = 0;; i++)
    for (volatile int k = 0; k < 1000; k++) step(i);
  return 0;
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 1000, busy = argc > 2 ? atoi(argv[2]) : 0;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 64 << 10);
  for (int i = 0; i < threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, body, i < busy ? &attributes : 0) != 0) abort();
  }
  while (started < threads) usleep(1000);
  if (argc > 3) asleep();
  puts("ready");
  fflush(stdout);
  while (getchar() != EOF);
  _exit(0);
}
