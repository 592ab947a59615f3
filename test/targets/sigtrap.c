// Threads that have SIGTRAP blocked, ignored or handled, as the argument says, and everything else blocked. Each line of
// standard input makes the program look at what it set up: "kept" or what is different.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include "count.h"

enum { WORK, ON_TRAP };
static const char *const count_names[] = {"work", "on_trap", 0};
static volatile int stop;
static volatile long sink;
static atomic_int wrong, started;
static atomic_long rounds;

NOINLINE long work(long n) {
  COUNT(WORK);
  sink = n;
  return n + 1;
}

NOINLINE void on_trap(int signal) {
  COUNT(ON_TRAP);
  sink = signal;
}

static void *body(void *masked) {
  sigset_t all, now;
  sigfillset(&all);
  pthread_sigmask(masked ? SIG_SETMASK : SIG_UNBLOCK, &all, 0);
  started++;
  for (long i = 0; !stop; i++) {
    if (work(i) != i + 1) wrong++;
    rounds++;
    pthread_sigmask(SIG_BLOCK, 0, &now);
    for (int s = 1; s < 32; s++)
      if (s != SIGKILL && s != SIGSTOP && sigismember(&now, s) != (masked != 0)) wrong++;
  }
  return 0;
}

static struct sigaction wanted;

static const char *look(void) {
  struct sigaction now;
  sigaction(SIGTRAP, 0, &now);
  if (now.sa_handler != wanted.sa_handler || now.sa_flags != wanted.sa_flags) return "another action";
  if (memcmp(&now.sa_mask, &wanted.sa_mask, 8) != 0) return "another mask";
  if (wrong) return "a thread was disturbed";
  long before = rounds;
  while (rounds < before + 1000) usleep(100);
  return "kept";
}

int main(int argc, char **argv) {
  wanted.sa_handler = strcmp(argv[1], "ignored") == 0 ? SIG_IGN : strcmp(argv[1], "handled") == 0 ? on_trap : SIG_DFL;
  wanted.sa_flags = wanted.sa_handler == on_trap ? SA_RESTART | SA_ONSTACK : 0;
  sigaddset(&wanted.sa_mask, SIGUSR1);
  if (argc > 2) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, 0);
  }
  sigaction(SIGTRAP, &wanted, 0);
  sigaction(SIGTRAP, 0, &wanted);
  pthread_t threads[4];
  for (long i = 0; i < 4; i++) pthread_create(&threads[i], 0, body, (void *)(argc > 2 ? 1 : i % 2));
  while (started < 4);
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    puts(look());
    fflush(stdout);
  }
  stop = 1;
  for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
  if (wanted.sa_handler == on_trap) raise(SIGTRAP);
  print_counts();
  return wrong != 0;
}
