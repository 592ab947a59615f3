/*
 * Threads that end within signal handlers by a system call of their own. Until SIGTERM comes threads are made, one after the
 * other; each interrupts itself twice, and the handler on top ends it, past the C library. Meanwhile all results of step are
 * compared; the exit status says whether they were right. At the end, on a line, how many threads have ended so.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int wrong, sink;
static volatile sig_atomic_t over;

__attribute__((noinline)) int step(int n) {
  sink = n;
  return n + 1;
}

__attribute__((noinline)) static void compare(int n) {
  if (step(n) != n + 1) wrong = 1;
}

static void below(int signal) {
  compare(signal);
  pthread_kill(pthread_self(), SIGUSR2);
}

static void on_top(int signal) {
  compare(signal);
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_exit), "D"(0) : "rcx", "r11", "memory");
}

static void *body(void *unused) {
  for (int i = 0; i < 1000; i++) compare(i);
  pthread_kill(pthread_self(), SIGUSR1);
  abort();
  return unused;
}

static void end(int signal) { over = signal; }

int main(void) {
  signal(SIGUSR1, below);
  signal(SIGUSR2, on_top);
  signal(SIGTERM, end);
  int threads = 0;
  for (; !over; threads++) {
    pthread_t thread;
    if (pthread_create(&thread, 0, body, 0) != 0) abort();
    pthread_join(thread, 0);
    usleep(1000);
  }
  printf("%d\n", threads);
  return wrong || threads == 0;
}
