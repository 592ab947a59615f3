// Processes that share this one's memory without being its threads (clone with CLONE_VM alone), always at work, and checked. Lines of
// standard input: "more" begins one, "own" begins one with a thread block of its own, "none" ends all; anything else is work.
// Each is answered by "fine" or "wrong". Arguments, if any: files to read from and to write to instead.
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "count.h"

enum { STEP, WORK, STACK = 1 << 16, MOST = 8 };
static const char *const count_names[] = {"step", "work", 0};
static volatile long sink;
static volatile int halt;
static atomic_long rounds, wrong;

#include "work.h"

static int shares(void *unused) {
  (void)unused;
  for (; !halt; rounds++)
    if (work(100) != 100) wrong++;
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 2 && (!freopen(argv[1], "r", stdin) || !freopen(argv[2], "w", stdout))) return 2;
  pid_t pids[MOST];
  int count = 0;
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (strncmp(line, "none", 4) == 0) {
      halt = 1;
      while (count > 0) {
        int status;
        if (waitpid(pids[--count], &status, __WALL) < 0 || status != 0) wrong++;
      }
      halt = 0;
    }
    int is_own = strncmp(line, "own", 3) == 0;
    if ((is_own || strncmp(line, "more", 4) == 0) && count < MOST) {
      char *stack = malloc(STACK);
      void **block = calloc(1, 1 << 14);
      block = (void **)((char *)block + (1 << 13));
      block[0] = block[2] = block;
      pids[count] = clone(shares, stack + STACK, CLONE_VM | SIGCHLD | (is_own ? CLONE_SETTLS : 0), 0, 0, block);
      if (pids[count++] < 0) wrong++;
    }
    for (long i = 0; i < 1000; i++)
      if (work(10) != 10) wrong++;
    for (long before = rounds; count > 0 && rounds < before + 1000;);
    puts(wrong ? "wrong" : "fine");
    fflush(stdout);
  }
  return wrong != 0;
}
