// Handlers that are traced, on threads that are traced: a storm of timers, nested handlers, alternate stacks, jumps out; where all
// descriptors are used up; where /proc is empty. With 0 rounds it goes on until SIGTERM.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include "count.h"

enum { HANDLE, INNER, WORK, STEP, JUMP };
static const char *const count_names[] = {"handle", "inner", "work", "step", "jump", 0};
static volatile long sink;
static _Thread_local sigjmp_buf away;
static _Thread_local volatile int may_jump;
static int jumps, defers = 1;
static atomic_int wrong;
static volatile sig_atomic_t over;

NOINLINE void inner(int n) {
  COUNT(INNER);
  sink += n;
}

NOINLINE void jump(void) {
  COUNT(JUMP);
  siglongjmp(away, 1);
}

NOINLINE void handle(int signal, siginfo_t *info, void *context) {
  COUNT(HANDLE);
  sigset_t now;
  pthread_sigmask(SIG_BLOCK, 0, &now);
  if (sigismember(&now, signal) != defers) wrong++;
  inner(signal);
  if (signal == SIGUSR1) raise(SIGUSR2);
  inner(signal);
  if (jumps && may_jump) {
    may_jump = 0;
    jump();
  }
}

#include "work.h"

static void end(int signal) {
  over = signal;
}

static void *thread(void *rounds) {
  stack_t stack = {.ss_sp = malloc(ALTERNATE), .ss_size = ALTERNATE};
  sigaltstack(&stack, 0);
  timer_t timer;
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
  event._sigev_un._tid = gettid();
  timer_create(CLOCK_MONOTONIC, &event, &timer);
  struct itimerspec often = {{0, 700000}, {0, 700000}};
  timer_settime(timer, 0, &often, 0);
  for (long i = 0; rounds ? i < (long)rounds : !over; i++) {
    if (sigsetjmp(away, 1) == 0) {
      may_jump = 1;
      if (work(500) != 500) wrong++;
    }
    may_jump = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (work(50) != 50) wrong++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
  }
  timer_delete(timer);
  return 0;
}

int main(int argc, char **argv) {
  long rounds = atol(argv[1]);
  jumps = argc > 2 && strchr(argv[2], 'j');
  if (argc > 2 && strchr(argv[2], 'd')) {
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){64, 64});
    while (dup(1) >= 0) {}
  }
  if (argc > 2 && strchr(argv[2], 'p')) {
    // In a mount namespace of its own, which the threads to come are in as well.
    if (unshare(CLONE_NEWNS) || mount("none", "/", 0, MS_REC | MS_PRIVATE, 0) || mount("none", "/proc", "tmpfs", 0, 0)) return 90;
  }
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};
  if (argc > 2 && strchr(argv[2], 'a')) action.sa_flags |= SA_ONSTACK;
  if (argc > 2 && strchr(argv[2], 'n')) action.sa_flags |= SA_NODEFER, defers = 0;
  for (const int *s = (const int[]){SIGUSR1, SIGUSR2, SIGALRM, 0}; *s; s++) sigaction(*s, &action, 0);
  signal(SIGTERM, end);
  struct itimerval often = {{0, 1000}, {0, 1000}};
  setitimer(ITIMER_REAL, &often, 0);
  pthread_t threads[3];
  for (int i = 0; i < 3; i++) pthread_create(&threads[i], 0, thread, (void *)rounds);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
  memset(&often, 0, sizeof often);
  setitimer(ITIMER_REAL, &often, 0);
  if (argc > 2 && strchr(argv[2], 'q')) return wrong != 0;
  printf("wrong: %d\n", wrong);
  print_counts();
  return wrong != 0;
}
