// Says in its own memory, where the agent of a session would, that another process traces it: "claims PID START". Whoever traces it finds
// that in place of a session's. Ends when standard input does.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/** AGENT.tracerPid and AGENT.tracerStart of src/agent/layout.ts, in words. */
enum { TRACER_PID = 168 / 8, TRACER_START = 176 / 8, BYTES = 1 << 16 };

static volatile long sum;

__attribute__((noinline)) void work(long n) { sum += n; }

int main(int count, char **arguments) {
  if (count < 3) return 2;
  int file = memfd_create("safepoke", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, BYTES) != 0) return 3;
  uint64_t *words = mmap(0, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (words == MAP_FAILED) return 4;
  close(file);
  words[TRACER_PID] = strtoull(arguments[1], 0, 10);
  words[TRACER_START] = strtoull(arguments[2], 0, 10);
  puts("ready");
  fflush(stdout);
  char byte;
  while (read(0, &byte, 1) > 0) work(1);
  return 0;
}
