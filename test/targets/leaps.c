// Plain longjmp out of signal handlers, on busy threads: the C library gives no mask back, so the program does. What else is
// masked afterwards is what was masked before. Until SIGTERM comes.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "count.h"

enum { HANDLE, WORK, STEP };
static const char *const count_names[] = {"handle", "work", "step", 0};
static volatile long sink;
static _Thread_local jmp_buf away, near;
static _Thread_local volatile int depth;

#include "work.h"

NOINLINE void leap(int value) { longjmp(depth ? near : away, value); }

NOINLINE void handle(int signal) {
  COUNT(HANDLE);
  if (signal == SIGUSR2) {
    // A jump within a handler, which then goes on, and on top of which another one comes.
    depth = 1;
    if (setjmp(near) == 0) leap(1);
    depth = 0;
    if (work(20) != 20) abort();
    return;
  }
  raise(SIGUSR2);
  leap(1);
}

static atomic_int wrong;
static atomic_long leaps;
static volatile sig_atomic_t over;

static void end(int signal) { over = signal; }

static void *thread(void *none) {
  (void)none;
  sigset_t one, before;
  sigemptyset(&one);
  sigaddset(&one, SIGUSR1);
  while (!over) {
    if (setjmp(away) == 0) {
      if (work(50) != 50) wrong++;
      raise(SIGUSR1);
      wrong++;
    }
    leaps++;
    // As it is without anybody else: the handler's own signal is blocked, and no other.
    pthread_sigmask(SIG_UNBLOCK, &one, &before);
    if (!sigismember(&before, SIGUSR1) || sigismember(&before, SIGUSR2)) wrong++;
    if (work(50) != 50) wrong++;
  }
  return 0;
}

int main(void) {
  signal(SIGTERM, end);
  signal(SIGUSR1, handle);
  signal(SIGUSR2, handle);
  pthread_t threads[3];
  for (int i = 0; i < 3; i++) pthread_create(&threads[i], 0, thread, 0);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
  printf("wrong: %d, leaps: %s\n", wrong, leaps > 100 ? "many" : "few");
  print_counts();
  return wrong != 0;
}
