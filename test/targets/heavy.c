// Fills so many MiB of memory, page by page, and exits with status 3: the kernel takes its time to free them, and meanwhile the process
// has no memory any more, but has not ended either.
#include <stdlib.h>
#include <sys/mman.h>

__attribute__((noinline, noclone)) static void fill(char *memory, size_t bytes) {
  for (size_t at = 0; at < bytes; at += 4096) memory[at] = 1;
}

int main(int argc, char **argv) {
  size_t bytes = argc > 1 ? (size_t)atol(argv[1]) << 20 : 0;
  char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  fill(memory, bytes);
  exit(3);
}
