// A signal handler that waits for a lock which another thread holds most of the time: it ends only while that thread runs. Until SIGINT comes.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

static atomic_int lock, stop, handled, wrong;

__attribute__((noinline, noclone)) static long step(long n) {
  static volatile long sink;
  sink = n;
  return n + 1;
}

static void handle(int signal) {
  int none = 0;
  while (!atomic_compare_exchange_weak(&lock, &none, 1)) none = 0;
  if (step(signal) != signal + 1) wrong++;
  handled++;
  lock = 0;
}

static volatile sig_atomic_t over;

static void *holder(void *unused) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, 0);
  while (!stop) {
    int none = 0;
    if (!atomic_compare_exchange_strong(&lock, &none, 1)) continue;
    for (int i = 0; i < 300000; i++)
      if (step(i) != i + 1) wrong++;
    lock = 0;
    usleep(50);
  }
  return unused;
}

static void end(int signal) { over = signal; }

int main(void) {
  signal(SIGINT, end);
  signal(SIGALRM, handle);
  struct itimerval often = {{0, 1000}, {0, 1000}};
  pthread_t thread;
  pthread_create(&thread, 0, holder, 0);
  setitimer(ITIMER_REAL, &often, 0);
  while (!over) usleep(1000);
  stop = 1;
  pthread_join(thread, 0);
  printf("handled %s, wrong: %d\n", handled > 0 ? "some" : "none", wrong);
  return wrong != 0;
}
