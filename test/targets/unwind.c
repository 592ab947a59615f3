// Unwinding in a C program, which loads the unwinder (libgcc_s) only when it is first needed: after tracing has begun.
#define _GNU_SOURCE
#include <execinfo.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <dlfcn.h>
#include "count.h"

enum { EXITS, CLEANS, WAITS, TRACES, LEAF };
static const char *const count_names[] = {"exits", "cleans", "waits", "traces", "leaf", 0};
static volatile long sink;
static sem_t never;
static atomic_int failures;

NOINLINE long leaf(long n) {
  COUNT(LEAF);
  sink += n;
  return n;
}

static _Thread_local int to_clean;

NOINLINE void cleans(void *n) {
  COUNT(CLEANS);
  leaf(*(int *)n);
  to_clean--;
}

NOINLINE long exits(int n) {
  COUNT(EXITS);
  int guard __attribute__((cleanup(cleans))) = n;
  to_clean++;
  if (n == 0) {
    if (to_clean != 8) failures++;
    pthread_exit((void *)1);
  }
  return leaf(n) + exits(n - 1) + guard;
}

NOINLINE long waits(int n) {
  COUNT(WAITS);
  int guard __attribute__((cleanup(cleans))) = n;
  to_clean++;
  if (n == 0) sem_wait(&never);
  return waits(n - 1) + guard;
}

static void check_clean(void *unused) {
  (void)unused;
#ifndef LATE /* without unwind tables of its own (-fexceptions) the program's frames are not cleaned */
  if (to_clean != 0) failures++;
#endif
}

static pthread_key_t key;

NOINLINE void *exiting(void *n) {
  to_clean = 0;
  pthread_setspecific(key, "x");
  return (void *)exits(7);
}

NOINLINE void *waiting(void *n) {
  pthread_setspecific(key, "x");
  return (void *)waits(7);
}

NOINLINE int traces(int n) {
  COUNT(TRACES);
  if (n > 0) return traces(n - 1) + (int)leaf(0);
  void *frames[64];
  return backtrace(frames, 64);
}

/** What a function jumps to instead of calling must find its caller as well. */
NOINLINE __attribute__((optimize("optimize-sibling-calls"))) int traces_by_jump(void **frames) {
  return backtrace(frames, 64);
}

NOINLINE __attribute__((optimize("optimize-sibling-calls"))) void *finds_by_jump(const char *name) {
  return dlsym(RTLD_NEXT, name);
}

int main(void) {
  void *frames[64];
  sem_init(&never, 0, 0);
  pthread_key_create(&key, check_clean);
  for (int i = 0; i < 20; i++) {
    pthread_t thread;
    void *result;
    pthread_create(&thread, 0, exiting, 0);
    pthread_join(thread, &result);
    if (result != (void *)1) failures++;
    pthread_create(&thread, 0, waiting, 0);
    while (atomic_load(&count_of[WAITS]) < 8 * (i + 1)) usleep(100);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    if (result != PTHREAD_CANCELED) failures++;
    /* traces(10..0), main, two of libc, _start */
    int depth = traces(10);
    if (depth != 15) failures++, fprintf(stderr, "backtrace of %d frames\n", depth);
    depth = traces_by_jump(frames);
    if (depth != 4) failures++, fprintf(stderr, "backtrace by a jump of %d frames\n", depth);
#ifndef STATIC
    if (finds_by_jump("malloc") != (void *)malloc) failures++, fprintf(stderr, "dlsym failed: %s\n", dlerror());
#endif
  }
  printf("failures: %d\n", failures);
  print_counts();
  return failures != 0;
}
