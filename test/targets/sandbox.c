// A program that confines itself after it has started: for all of its threads, the system calls that it is given by number fail with
// EPERM from then on. It works on, and looks at each result. Lines on standard input: "confine", "work". SIGHUP is nothing to it.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static atomic_long rounds, handled;
static atomic_int wrong, stop;

__attribute__((noinline, noclone)) static long step(long n) {
  __asm__ volatile("" : "+r"(n));
  return n + 1;
}

static void handle(int signal) {
  if (step(signal) != signal + 1) wrong++;
  handled++;
}

static void *body(void *unused) {
  while (!stop) {
    for (int i = 0; i < 100; i++)
      if (step(i) != i + 1) wrong++;
    rounds++;
    usleep(1000);
  }
  return unused;
}

static int confine(int count, char **numbers) {
  struct sock_filter filter[64] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
  int n = 1;
  for (int i = 0; i < count; i++) {
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(numbers[i]), 0, 1);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
  }
  filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog program = {n, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
         syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}

int main(int argc, char **argv) {
  char line[64];
  pthread_t thread;
  struct itimerval often = {{0, 2000}, {0, 2000}};
  signal(SIGALRM, handle);
  signal(SIGHUP, SIG_IGN);
  setitimer(ITIMER_REAL, &often, 0);
  pthread_create(&thread, 0, body, 0);
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    if (strcmp(line, "confine\n") == 0 && confine(argc - 1, argv + 1)) wrong++;
    long rounds_before = rounds, handled_before = handled;
    while (rounds < rounds_before + 10 || handled < handled_before + 3);
    puts(wrong ? "wrong" : "fine");
    fflush(stdout);
  }
  // Without a join: it may have no futex.
  _exit(wrong != 0);
}
