/*
 * The program that every tracer is measured on: threads that call one small function and time themselves.
 *
 *   calls THREADS
 *
 * Each line on standard input is a number of calls; every thread makes so many, and a line comes back with the mean over
 * the threads of nanoseconds per call: by the clock on the wall, and of processor time. Between the lines nothing runs, so
 * that a tracer can empty its buffers.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "xray.h"

#define UNTRACED __attribute__((no_instrument_function, noinline)) NO_XRAY
#define MAX_THREADS 64

/* About 1.5 ns with the call: a multiplication keeps the loop from being shorter than the call itself. */
__attribute__((noinline)) ALWAYS_XRAY uint64_t work(uint64_t x) { return x * 0x9e3779b97f4a7c15u + (x >> 7); }

static pthread_barrier_t start, done;
static volatile long calls;
static int threads;
static volatile uint64_t sink;
static double wall_ns[MAX_THREADS], cpu_ns[MAX_THREADS];

UNTRACED static double now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

UNTRACED static void burst(long index) {
  long n = calls;
  uint64_t x = index;
  double wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
  for (long i = 0; i < n; i++) x = work(x);
  cpu_ns[index] = (now(CLOCK_THREAD_CPUTIME_ID) - cpu) / n;
  wall_ns[index] = (now(CLOCK_MONOTONIC) - wall) / n;
  sink = x;
}

UNTRACED static void *worker(void *index) {
  for (;;) {
    pthread_barrier_wait(&start);
    burst((long)index);
    pthread_barrier_wait(&done);
  }
  return NULL;
}

UNTRACED int main(int argc, char **argv) {
  threads = argc > 1 ? atoi(argv[1]) : 1;
  if (threads < 1 || threads > MAX_THREADS) return 2;
  start_xray();
  pthread_barrier_init(&start, NULL, threads);
  pthread_barrier_init(&done, NULL, threads);
  for (long i = 1; i < threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, worker, (void *)i) != 0) return 1;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  char line[64];
  while (fgets(line, sizeof line, stdin) != NULL) {
    calls = atol(line);
    pthread_barrier_wait(&start);
    burst(0);
    pthread_barrier_wait(&done);
    double wall = 0, cpu = 0;
    for (int i = 0; i < threads; i++) wall += wall_ns[i] / threads, cpu += cpu_ns[i] / threads;
    printf("%.3f %.3f\n", wall, cpu);
  }
  return 0;
}
