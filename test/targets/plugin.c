// A library that is loaded and unloaded while its functions are traced.
static volatile long sink;

__attribute__((noinline)) long plugin_step(long n) {
  sink = n;
  return n + 1;
}

__attribute__((noinline)) long plugin_work(long n) {
  long sum = 0;
  for (long i = 0; i < n; i++) sum += plugin_step(i) - i;
  return sum;
}

/** Holds what calls back: its frame is open while the library is asked to go. */
__attribute__((noinline)) long plugin_call(long (*back)(long), long n) { return back(n) + plugin_work(n); }
