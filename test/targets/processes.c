// What processes do: fork, vfork, spawn, exec, exit, die. The case is the first argument.
#define _GNU_SOURCE
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include "count.h"

enum { STEP, WORK };
static const char *const count_names[] = {"step", "work", 0};
static volatile long sink;
extern char **environ;

#include "work.h"

static int wait_for(pid_t pid) {
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

/** Forks below traced frames: the child returns through them, and goes on. */
NOINLINE long forks(int depth) {
  if (depth > 0) return forks(depth - 1) + step(0);
  pid_t pid = fork();
  if (pid == 0) return work(5000) == 5000 ? 1000 : 0;
  if (wait_for(pid) != 42) abort();
  return 0;
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  char *echo[] = {"/bin/true", 0};
  if (strcmp(what, "fork") == 0) {
    for (int i = 0; i < 20; i++) {
      long result = forks(5);
      if (result >= 1000) _exit(result == 1005 && work(100) == 100 ? 42 : 1);
      if (work(10) != 10) return 9;
    }
  } else if (strcmp(what, "spawn") == 0) {
    for (int i = 0; i < 10; i++) {
      pid_t pid = vfork();
      if (pid == 0) {
        step(1);
        execve(echo[0], echo, environ);
        _exit(1);
      }
      if (wait_for(pid) != 0) return 9;
      if (posix_spawn(&pid, echo[0], 0, 0, echo, environ) != 0 || wait_for(pid) != 0) return 8;
      if (system("exit 3") != 3 << 8) return 7;
      work(10);
    }
  } else if (strcmp(what, "exec") == 0) {
    work(10);
    char *next[] = {argv[0], "exit", "5", 0};
    if (argc > 2) usleep(300000);
    execv(argv[0], next);
    return 9;
  } else if (strcmp(what, "exit") == 0) {
    work(10);
    exit(atoi(argv[2]));
  } else if (strcmp(what, "die") == 0) {
    work(10);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    raise(atoi(argv[2]));
  } else if (strcmp(what, "wait") == 0) {
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
      long ms;
      if (sscanf(line, "vfork %ld", &ms) == 1) {
        pid_t pid = vfork();
        if (pid == 0) usleep(ms * 1000), _exit(42);
        wait_for(pid);
      }
      if (strcmp(line, "exec\n") == 0) execl(argv[0], argv[0], "wait", (char *)0);
      printf("did %ld\n", work(atol(line)));
      fflush(stdout);
    }
    return 0;
  }
  print_counts();
  return 0;
}
