// Handlers that are installed by system calls of the program's own, past every library: before it begins to work and all the while,
// by the main thread, and now and then by a handler. A storm of timers interrupts each thread; what handlers call is what threads
// call, and each result is checked. Arguments: milliseconds (0: until SIGTERM), then letters: a alternate stacks, n SA_NODEFER,
// h by handlers too, r by each handler, c by the C library's syscall, o once and never again, s slowly, q says nothing at the end. Else it says
// how it finds its handler by a raw question.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "count.h"

enum { EVEN, ODD, INNER, WORK, STEP };
static const char *const count_names[] = {"even", "odd", "inner", "work", "step", 0};
static volatile long sink;
static atomic_int wrong;
static volatile sig_atomic_t over;
static const char *letters = "";

#include "work.h"

struct kernel_action {
  void (*handler)(int, siginfo_t *, void *);
  unsigned long flags;
  void (*restorer)(void);
  unsigned long mask;
};

void restore(void);
__asm__("nop\nrestore: mov $15, %rax\nsyscall");

static long act(int signal, const struct kernel_action *action, struct kernel_action *before) {
  if (strchr(letters, 'c')) return syscall(SYS_rt_sigaction, signal, action, before, 8L);
  long result;
  register long size __asm__("r10") = 8;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(SYS_rt_sigaction), "D"(signal), "S"(action), "d"(before), "r"(size)
                   : "rcx", "r11", "memory");
  return result;
}

NOINLINE long inner(long n) {
  COUNT(INNER);
  long first = n * 3, second = n * 5;
  sink += first;
  return first + second - 7 * n;
}

static void even(int signal, siginfo_t *info, void *context);
static void odd(int signal, siginfo_t *info, void *context);

static long install(int signal, int isOdd) {
  struct kernel_action action = {isOdd ? odd : even, SA_SIGINFO | SA_RESTART | 0x04000000, restore, 0};
  if (strchr(letters, 'a')) action.flags |= SA_ONSTACK;
  if (strchr(letters, 'n')) action.flags |= SA_NODEFER;
  return act(signal, &action, 0);
}

static void handled(int signal, siginfo_t *info) {
  if (!info || info->si_signo != signal) wrong++;
  for (long i = 0; i < 40; i++)
    if (inner(i) != i) wrong++;
  static atomic_int handlers;
  int number = handlers++;
  if (strchr(letters, 'r') || (strchr(letters, 'h') && number % 500 == 0)) install(signal, number & 1);
}

NOINLINE void even(int signal, siginfo_t *info, void *context) {
  COUNT(EVEN);
  handled(signal, info);
}

NOINLINE void odd(int signal, siginfo_t *info, void *context) {
  COUNT(ODD);
  handled(signal, info);
}

static void end(int signal) { over = signal; }

static void *thread(void *unused) {
  stack_t stack = {.ss_sp = malloc(1 << 20), .ss_size = 1 << 20};
  sigaltstack(&stack, 0);
  timer_t timer;
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
  event._sigev_un._tid = gettid();
  timer_create(CLOCK_MONOTONIC, &event, &timer);
  struct itimerspec often = {{0, 300000}, {0, 300000}};
  timer_settime(timer, 0, &often, 0);
  int isSlow = strchr(letters, 's') != 0;
  long size = isSlow ? 20 : 300;
  while (!over) {
    if (work(size) != size) wrong++;
    if (isSlow) usleep(200);
  }
  timer_delete(timer);
  return unused;
}

int main(int argc, char **argv) {
  long ms = atol(argv[1]);
  if (argc > 2) letters = argv[2];
  signal(SIGTERM, end);
  install(SIGUSR1, 0);
  pthread_t threads[3];
  for (int i = 0; i < 3; i++) pthread_create(&threads[i], 0, thread, 0);
  for (long i = 0; !over && (ms == 0 || i < ms / 40); i++) {
    usleep(40000);
    if (i % 8 == 7 && !strchr(letters, 'o')) install(SIGUSR1, i / 8 & 1);
  }
  over = 1;
  for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
  if (strchr(letters, 'q')) return wrong != 0;
  printf("wrong: %d\n", wrong);
  struct kernel_action now;
  act(SIGUSR1, 0, &now);
  printf("found: %s, flags %lx\n", now.handler == even || now.handler == odd ? "its own" : "another", now.flags);
  print_counts();
  return wrong != 0;
}
