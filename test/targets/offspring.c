// Works, and forks a child that works likewise for each line that says "fork"; ends with the standard input, as its children do at SIGINT.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
static volatile sig_atomic_t told;
static volatile long sink;

static void on_interrupt(int signal) { told = signal; }

NOINLINE static long step(long n) {
  sink = n;
  return n + 1;
}

NOINLINE static long work(long n) {
  long sum = 0;
  for (long i = 0; i < n; i++) sum += step(i) - i;
  return sum;
}

/** Has a call open as long as it lives. */
NOINLINE static long lives(void) {
  long wrong = 0;
  while (!told) wrong += work(100) != 100;
  return wrong;
}

NOINLINE static int serve(void) {
  char line[100];
  while (fgets(line, sizeof line, stdin) != NULL) {
    long wrong = work(1000) != 1000;
    if (strncmp(line, "fork", 4) == 0) {
      int child = fork();
      if (child == 0) exit(lives() != 0);
      printf("child=%d wrong=%ld\n", child, wrong);
    } else {
      int status = -1;
      wait(&status);
      printf("status=%d wrong=%ld\n", status, wrong);
    }
    fflush(stdout);
  }
  return 0;
}

int main(void) {
  signal(SIGINT, on_interrupt);
  puts("ready");
  fflush(stdout);
  return serve();
}
