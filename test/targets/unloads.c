// Loads a library, unloads it when told to, and puts memory of its own where it was; tells whether that stays as it is. Arguments: the
// library, and the name of a function of it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { LENGTH = 1 << 12, FILL = 0x5a };

int main(int count, char **argv) {
  char line[100];
  if (count < 3) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  void *function = library == NULL ? NULL : dlsym(library, argv[2]);
  if (function == NULL) return 3;
  puts("ready");
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == NULL) return 0;
  dlclose(library);
  char *page = (char *)((unsigned long)function & ~4095ul);
  char *data = mmap(page, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (data != page) return 4;
  memset(data, FILL, LENGTH);
  puts("unloaded");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin) != NULL) {
    long wrong = 0;
    for (long i = 0; i < LENGTH; i++) wrong += data[i] != FILL;
    printf("wrong=%ld\n", wrong);
    fflush(stdout);
  }
  return 0;
}
