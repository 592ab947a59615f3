// Counts how often the target's own functions were entered, to compare with what the trace says.
#pragma once
#include <stdatomic.h>
#include <stdio.h>

#define NOINLINE __attribute__((noinline, noclone))

// Bytes of an alternate stack: where a processor is waited for, handlers that may be interrupted pile up, and a signal frame of a
// processor with wide registers takes 3 KiB and more.
#define ALTERNATE (4 << 20)

static atomic_long count_of[32];
static const char *const count_names[];

#define COUNT(i) atomic_fetch_add_explicit(&count_of[i], 1, memory_order_relaxed)

static inline void print_counts(void) {
  for (int i = 0; count_names[i]; i++) printf("%s=%ld\n", count_names[i], atomic_load(&count_of[i]));
  fflush(stdout);
}
