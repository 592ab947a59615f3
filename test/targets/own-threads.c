// A program that makes its threads itself, with clone(): own-threads KIND ROUNDS. `shared`: the thread has main's thread pointer; `none`: it
// has the pointer 0; `other`: its own, whose word is no pointer. The thread is there before "ready", and a second is made behind it. All call
// leaf so many times when a line comes. Prints the sum.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline, noclone, aligned(16))) long leaf(long x) {
  __asm__ volatile("" : "+r"(x));
  return x + 1;
}

static volatile int begun, done;
static long sums[2], rounds;

/* Without a thread pointer there is neither errno nor a stack protector. */
__attribute__((optimize("no-stack-protector"))) static int work(void *sum) {
  while (!__atomic_load_n(&begun, __ATOMIC_SEQ_CST)) __builtin_ia32_pause();
  long all = 0;
  for (long i = 0; i < rounds; i++) all += leaf(i);
  *(long *)sum = all;
  __atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
  for (;;) __asm__ volatile("syscall" : : "a"(SYS_exit), "D"(0) : "rcx", "r11", "memory");
}

static void make(const char *kind, long *sum) {
  static char blocks[2][4096] __attribute__((aligned(64)));
  char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  void *pointer = NULL;
  if (strcmp(kind, "other") == 0) pointer = blocks[sum - sums] + 2048;
  if (strcmp(kind, "shared") != 0) flags |= CLONE_SETTLS;
  if (clone(work, stack + 65536, flags, sum, NULL, pointer, NULL) < 0) exit(3);
}

int main(int argc, char **argv) {
  char line[32];
  if (argc < 3) return 2;
  rounds = atol(argv[2]);
  make(argv[1], &sums[0]);
  puts("ready");
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == NULL) return 2;
  make(argv[1], &sums[1]);
  __atomic_store_n(&begun, 1, __ATOMIC_SEQ_CST);
  long sum = 0;
  for (long i = 0; i < rounds; i++) sum += leaf(i);
  while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < 2) usleep(100);
  printf("sum=%ld\n", sum + sums[0] + sums[1]);
  return 0;
}
