// Recursion whose number of calls is known: fib(n) is entered 2 * F(n + 1) - 1 times.
// Computes each number given as an argument; with "-", each that comes as a line on standard input.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile long sink;

__attribute__((noinline)) long leaf(long n) {
  sink = n;
  return n;
}

__attribute__((noinline)) long fib(long n) {
  if (n < 2) return leaf(n);
  return fib(n - 1) + fib(n - 2);
}

__attribute__((noinline)) long round_of(long n) {
  long result = fib(n);
  printf("fib(%ld)=%ld\n", n, result);
  fflush(stdout);
  return result;
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "-") == 0) {
    char line[64];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) round_of(atol(line));
    return 0;
  }
  for (int i = 1; i < argc; i++) round_of(atol(argv[i]));
  return 0;
}
