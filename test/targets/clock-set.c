// Loaded with LD_PRELOAD: a machine whose time of day is set at every look at it, by hours forth and back. Other clocks are as they are.
#define _GNU_SOURCE
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { HOUR = 3600 };

/** In turn, as an atomic counter goes: between two looks of whatever thread the clock is set. */
static long set_by(void) {
  static const long by[] = {0, 5 * HOUR, -7 * HOUR, HOUR, -HOUR, 24 * HOUR};
  static atomic_ulong turn;
  return by[turn++ % (sizeof by / sizeof *by)];
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  long result = syscall(SYS_clock_gettime, clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += set_by();
  return (int)result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  long result = syscall(SYS_gettimeofday, now, zone);
  if (result == 0 && now) now->tv_sec += set_by();
  return (int)result;
}

time_t time(time_t *now) {
  struct timespec all;
  clock_gettime(CLOCK_REALTIME, &all);
  if (now) *now = all.tv_sec;
  return all.tv_sec;
}
