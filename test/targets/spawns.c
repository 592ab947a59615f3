// Makes children of every kind from threads that are traced, again and again: "spawns" then lines "N" of standard input, each
// answered by "done BAD". "child K" is what it executes itself. The main thread does the work, two others are always busy.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "count.h"

enum { STEP, WORK };
static const char *const count_names[] = {"step", "work", 0};
static _Thread_local volatile long sink;
static atomic_int bad;
extern char **environ;

#include "work.h"

static void expect(pid_t pid, int wanted) {
  int status = -1;
  if (pid <= 0 || waitpid(pid, &status, __WALL) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != wanted) {
    fprintf(stderr, "child %d: status %x, not %d\n", pid, status, wanted);
    bad++;
  }
}

/** Runs in the memory of its parent, on a stack of its own, while the parent waits (as posix_spawn does it). */
static int shares(void *n) {
  return (int)work((long)n) & 0x7f;
}

NOINLINE long deeper(int depth, char **argv) {
  if (depth > 0) return deeper(depth - 1, argv) + step(0) - 1;
  char *child[] = {argv[0], "child", "3", 0};
  pid_t pid = fork();
  if (pid == 0) return 1;
  expect(pid, 33);
  pid = vfork();
  if (pid == 0) {
    step(1);
    execve(argv[0], child, environ);
    _exit(1);
  }
  expect(pid, 3);
  if (posix_spawn(&pid, argv[0], 0, 0, child, environ) != 0) bad++;
  expect(pid, 3);
  char *stack = malloc(64 << 10);
  expect(clone(shares, stack + (64 << 10), CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)21l), 21);
  free(stack);
  return 0;
}

static void *busy(void *unused) {
  for (;;)
    if (work(100) != 100) bad++;
  return unused;
}

int main(int argc, char **argv) {
  if (argc == 3) return work(50) == 50 ? atoi(argv[2]) : 99;
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], 0, busy, 0);
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    for (long i = atol(line); i > 0; i--)
      if (deeper(5, argv) == 1) _exit(work(33) == 33 ? 33 : 99);
    printf("done %d\n", bad);
    fflush(stdout);
  }
  _exit(bad != 0);
}
