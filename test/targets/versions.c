// A library that defines a function in two versions, and the program that calls both: versions LIBRARY ROUNDS. The old one is called once a round, the
// new one twice, when a line has come.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef LIBRARY
__asm__(".symver answer_before, answer@V1");
__asm__(".symver answer_now, answer@@V2");
__attribute__((noinline, noclone)) int answer_before(int x) { __asm__ volatile("nopw 0(%%rax,%%rax)" : "+r"(x)); return x + 1; }
__attribute__((noinline, noclone)) int answer_now(int x) { __asm__ volatile("nopw 0(%%rax,%%rax)" : "+r"(x)); return x * 2; }
#else
static int (*before)(int), (*now)(int);

__attribute__((noinline, noclone)) int turn(int i) { return before(i) + now(i) + now(i); }

int main(int argc, char **argv) {
  void *library = argc < 3 ? NULL : dlopen(argv[1], RTLD_NOW);
  if (library == NULL) return 2;
  before = (int (*)(int))dlvsym(library, "answer", "V1");
  now = (int (*)(int))dlsym(library, "answer");
  char line[16];
  puts("ready");
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == NULL) return 2;
  int sum = 0;
  for (int i = 0; i < atoi(argv[2]); i++) sum += turn(i);
  printf("sum=%d\n", sum);
  return 0;
}
#endif
