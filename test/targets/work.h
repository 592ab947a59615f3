// Work whose result is known: work(n) is n. The file that includes it has declared STEP, WORK and `sink`.
#pragma once
#include "count.h"

NOINLINE long step(long n) {
  COUNT(STEP);
  sink = n;
  return n + 1;
}

NOINLINE long work(long n) {
  COUNT(WORK);
  long sum = 0;
  for (long i = 0; i < n; i++) sum += step(i) - i;
  return sum;
}
