// Loads and unloads a library as lines of standard input say: "load", "unload", "work N", "call N". The library's path is the
// argument; with "storm N" it is loaded, used and unloaded N times.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include "count.h"

enum { OWN };
static const char *const count_names[] = {"own", 0};
static const char *path;
static void *library;
static long (*work)(long), (*call)(long (*)(long), long);

NOINLINE long own(long n) {
  COUNT(OWN);
  return n + 1;
}

static int load(void) {
  library = dlopen(path, RTLD_NOW);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 0;
  work = (long (*)(long))dlsym(library, "plugin_work");
  call = (long (*)(long (*)(long), long))dlsym(library, "plugin_call");
  return work && call;
}

static int unload(void) {
  work = 0, call = 0;
  return dlclose(library) == 0;
}

int main(int argc, char **argv) {
  path = argv[1];
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    long n = strpbrk(line, " ") ? atol(strpbrk(line, " ")) : 0;
    int fine = 1;
    if (strncmp(line, "load", 4) == 0) fine = load();
    if (strncmp(line, "unload", 6) == 0) fine = unload();
    if (strncmp(line, "work", 4) == 0) fine = work(n) == n;
    if (strncmp(line, "call", 4) == 0) fine = call(own, n) == n + n + 1;
    if (strncmp(line, "storm", 5) == 0)
      for (long i = 0; i < n; i++) fine = fine && load() && work(10) == 10 && call(own, 5) == 11 && unload();
    own(1);
    puts(fine ? "fine" : "wrong");
    fflush(stdout);
  }
  print_counts();
  return argc - 2;
}
