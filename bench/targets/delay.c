/*
 * How late signals come: "delay FILE THREADS". One thread of so many gets a signal of a timer each 200 us; its handler compares the
 * clock with the time at which it should have come. SIGTERM ends it; FILE gets two lines, "number median 99th" in nanoseconds: for
 * signals that came anywhere, and for those that came while the thread stood in a rendezvous of safepoke's object.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { INTERVAL = 200000, MOST = 1 << 20 };
static long delays[2][MOST];
static int counts[2];
static long expected;
static unsigned long object_start, object_end;
static volatile sig_atomic_t over;

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

__attribute__((noinline)) static void handle(int signal, siginfo_t *info, void *context) {
  long at = now();
  unsigned long rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
  int during = rip >= object_start && rip < object_end;
  if (counts[during] < MOST) delays[during][counts[during]++] = at - expected;
  (void)signal;
  expected += (1L + info->si_overrun) * INTERVAL;
}

static void end(int signal) { over = signal; }

static int by_size(const void *a, const void *b) {
  long x = *(const long *)a, y = *(const long *)b;
  return (x > y) - (x < y);
}

static void *timed(void *unused) {
  timer_t timer;
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
  event._sigev_un._tid = gettid();
  timer_create(CLOCK_MONOTONIC, &event, &timer);
  expected = now() + 10 * INTERVAL;
  struct itimerspec often = {{0, INTERVAL}, {expected / 1000000000L, expected % 1000000000L}};
  timer_settime(timer, TIMER_ABSTIME, &often, 0);
  while (!over) pause();
  timer_delete(timer);
  return unused;
}

static void *asleep(void *unused) {
  for (;;) pause();
  return unused;
}

int main(int argc, char **argv) {
  char line[512];
  FILE *maps = fopen("/proc/self/maps", "r");
  while (fgets(line, sizeof line, maps))
    if (strstr(line, "safepoke-inside") && strstr(line, " r-x")) sscanf(line, "%lx-%lx", &object_start, &object_end);
  fclose(maps);
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};
  sigaction(SIGUSR1, &action, 0);
  signal(SIGTERM, end);
  pthread_t thread, other;
  for (int i = argc > 2 ? atoi(argv[2]) : 2; i > 2; i--) pthread_create(&other, 0, asleep, 0);
  pthread_create(&thread, 0, timed, 0);
  while (!over) usleep(10000);
  pthread_join(thread, 0);
  FILE *file = fopen(argv[1], "w");
  for (int i = 0; i < 2; i++) {
    qsort(delays[i], counts[i], sizeof(long), by_size);
    fprintf(file, "%d %ld %ld\n", counts[i], delays[i][counts[i] / 2], delays[i][counts[i] * 99L / 100]);
  }
  fclose(file);
  return 0;
}
