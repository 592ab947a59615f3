// A crowd of threads that wait for orders: "crowd THREADS FLAGS". Orders come as lines of standard input:
//   run      all are busy until further orders
//   quiet    all wait; answers "done wrong=W NAME=N ..." with what was counted since the order before
//   batch N  each makes N rounds; answers as quiet does
// Flags: t  while a thread is busy its own timer interrupts it a thousand times a second
//        a  handlers run on alternate stacks     n  a handler raises another signal, and may be interrupted itself
//        m  handlers block every signal          b  the threads block every signal themselves
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "count.h"

enum { ROUND, STEP, MIX, HANDLE, INNER };
static const char *const count_names[] = {"round", "step", "mix", "handle", "inner", 0};
static int has_timers, has_alternate, is_nested, blocks_all;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t order = PTHREAD_COND_INITIALIZER, report = PTHREAD_COND_INITIALIZER;
static long generation, batch, waiting;
static volatile int halt;
static atomic_int wrong;
static _Thread_local volatile long sink;

NOINLINE void inner(long n) {
  COUNT(INNER);
  sink += n;
}

NOINLINE void handle(int signal) {
  COUNT(HANDLE);
  inner(signal);
  if (is_nested && signal == SIGUSR1) raise(SIGUSR2);
  inner(signal);
}

NOINLINE long step(long n) {
  COUNT(STEP);
  sink = n;
  return n + 1;
}

NOINLINE double mix(long a, double b, const char *text) {
  COUNT(MIX);
  return (double)step(a) + b * 2 + (double)strlen(text);
}

NOINLINE long round_of(long n) {
  COUNT(ROUND);
  long sum = 0;
  for (long i = 0; i < n; i++) sum += step(i) - i;
  return sum + (long)mix(n, 0.5, "four");
}

static void *body(void *unused) {
  (void)unused;
  stack_t stack = {.ss_sp = malloc(ALTERNATE), .ss_size = ALTERNATE};
  if (has_alternate) sigaltstack(&stack, 0);
  if (blocks_all) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
  }
  timer_t timer;
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
  event._sigev_un._tid = gettid();
  if (has_timers && timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) abort();
  struct itimerspec often = {{0, 1000000}, {0, 1000000}}, never = {{0, 0}, {0, 0}};
  for (long seen = 0;; seen++) {
    pthread_mutex_lock(&lock);
    waiting++;
    pthread_cond_signal(&report);
    while (generation == seen) pthread_cond_wait(&order, &lock);
    long rounds = batch;
    pthread_mutex_unlock(&lock);
    if (has_timers) timer_settime(timer, 0, &often, 0);
    for (long i = 0; rounds < 0 ? !halt : i < rounds; i++)
      if (round_of(i % 20) != i % 20 + (i % 20 + 1) + 1 + 4) wrong++;
    if (has_timers) timer_settime(timer, 0, &never, 0);
  }
  return 0;
}

static void answer(int threads) {
  static long before[5];
  pthread_mutex_lock(&lock);
  while (waiting < threads) pthread_cond_wait(&report, &lock);
  pthread_mutex_unlock(&lock);
  printf("done wrong=%d", wrong);
  for (int i = 0; i < 5; i++) {
    long now = atomic_load(&count_of[i]);
    printf(" %s=%ld", i == ROUND ? "round_of" : count_names[i], now - before[i]);
    before[i] = now;
  }
  puts("");
  fflush(stdout);
}

static void begin(long rounds) {
  pthread_mutex_lock(&lock);
  waiting = 0;
  halt = 0;
  batch = rounds;
  generation++;
  pthread_cond_broadcast(&order);
  pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv) {
  int threads = atoi(argv[1]);
  const char *flags = argc > 2 ? argv[2] : "";
  has_timers = strchr(flags, 't') != 0;
  has_alternate = strchr(flags, 'a') != 0;
  is_nested = strchr(flags, 'n') != 0;
  blocks_all = strchr(flags, 'b') != 0;
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
  if (has_alternate) action.sa_flags |= SA_ONSTACK;
  if (is_nested) action.sa_flags |= SA_NODEFER;
  if (strchr(flags, 'm')) sigfillset(&action.sa_mask);
  sigaction(SIGUSR1, &action, 0);
  sigaction(SIGUSR2, &action, 0);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 256 << 10);
  for (int i = 0; i < threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &attributes, body, 0) != 0) abort();
  }
  answer(threads);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (strncmp(line, "run", 3) == 0) begin(-1);
    if (strncmp(line, "batch", 5) == 0) begin(atol(line + 6)), answer(threads);
    if (strncmp(line, "quiet", 5) == 0) halt = 1, answer(threads);
  }
  _exit(wrong != 0);
}
