// Two hundred threads that wait, and wake up now and then: tokens go round through pipes, others sleep or wait for what does not come,
// and signals are queued to threads that wait. "quiet" is answered by what was counted since the order before, and "run" sets all off
// again. A call that returns what it should not, and a signal that is lost, are wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include "count.h"

enum { RING = 100, NAPPERS = 50, POLLERS = 50, TOKENS = 3 };
enum { TURN, CAUGHT, NAP };
static const char *const count_names[] = {"turn", "caught", "nap", 0};
static int pipes[RING][2];
static pthread_t ring[RING];
static atomic_int wrong, is_quiet = 1, parked, napping, started;
static atomic_long sent;
static _Thread_local volatile long sink;

NOINLINE void turn(long n) {
  COUNT(TURN);
  sink = n;
}

NOINLINE void caught(int signal, siginfo_t *info, void *context) {
  (void)context;
  if (signal != SIGRTMIN || info->si_value.sival_int != 42) wrong++;
  COUNT(CAUGHT);
}

NOINLINE void nap(int (*wait)(void)) {
  COUNT(NAP);
  int result = wait();
  if (result != 0) wrong++;
}

static void *pass_on(void *which) {
  long i = (long)which;
  char token;
  started++;
  for (;;) {
    if (read(pipes[i][0], &token, 1) != 1 || token != 'T') wrong++;
    // A token that arrives while all is to be quiet stays here until it goes on.
    if (is_quiet) {
      parked++;
      while (is_quiet) usleep(1000);
      parked--;
    }
    turn(i);
    usleep(300);
    if (write(pipes[(i + 1) % RING][1], &token, 1) != 1) wrong++;
  }
  return 0;
}

static int sleep_a_little(void) {
  struct timespec time = {0, 20000000};
  return clock_nanosleep(CLOCK_MONOTONIC, 0, &time, 0);
}

static int wait_for_nothing(void) {
  static int epoll;
  struct epoll_event event;
  if (epoll == 0) epoll = epoll_create1(0);
  return epoll_wait(epoll, &event, 1, 20);
}

static void *wait_again_and_again(void *wait) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, 0);
  started++;
  for (;;) {
    napping++;
    if (!is_quiet) nap((int (*)(void))wait);
    napping--;
    while (is_quiet) usleep(5000);
  }
  return 0;
}

static void *send(void *unused) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, 0);
  started++;
  for (long i = 0;; i++) {
    while (is_quiet) usleep(1000);
    union sigval value = {.sival_int = 42};
    if (pthread_sigqueue(ring[i * 37 % RING], SIGRTMIN, value) == 0) sent++;
    usleep(1000);
  }
  return unused;
}

// Tokens that wait in a pipe, or are kept by who has read them.
static int at_rest(void) {
  int tokens = parked;
  for (int i = 0; i < RING; i++) {
    int bytes;
    if (ioctl(pipes[i][0], FIONREAD, &bytes) != 0) abort();
    tokens += bytes;
  }
  return tokens;
}

static void answer(void) {
  static long before[3];
  is_quiet = 1;
  while (at_rest() < TOKENS || napping > 0) usleep(1000);
  usleep(20000);
  for (int i = 0; i < 1000 && sent != count_of[CAUGHT]; i++) usleep(1000);
  if (sent != count_of[CAUGHT]) wrong++;
  printf("done wrong=%d", wrong);
  for (int i = 0; count_names[i]; i++) {
    long now = atomic_load(&count_of[i]);
    printf(" %s=%ld", count_names[i], now - before[i]);
    before[i] = now;
  }
  puts("");
  fflush(stdout);
}

static void begin(pthread_t *thread, void *(*body)(void *), void *argument) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 128 << 10);
  if (pthread_create(thread, &attributes, body, argument) != 0) abort();
}

int main(void) {
  struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_RESTART};
  sigaction(SIGRTMIN, &action, 0);
  pthread_t other;
  for (long i = 0; i < RING; i++)
    if (pipe(pipes[i]) != 0) abort();
  for (long i = 0; i < RING; i++) begin(&ring[i], pass_on, (void *)i);
  for (long i = 0; i < NAPPERS; i++) begin(&other, wait_again_and_again, sleep_a_little);
  for (long i = 0; i < POLLERS; i++) begin(&other, wait_again_and_again, wait_for_nothing);
  begin(&other, send, 0);
  while (started < RING + NAPPERS + POLLERS + 1) usleep(1000);
  for (long i = 0; i < TOKENS; i++)
    if (write(pipes[i * 30][1], "T", 1) != 1) abort();
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN);
  pthread_sigmask(SIG_BLOCK, &set, 0);
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    if (strncmp(line, "run", 3) == 0) is_quiet = 0;
    if (strncmp(line, "quiet", 5) == 0) answer();
  }
  _exit(wrong != 0);
}
