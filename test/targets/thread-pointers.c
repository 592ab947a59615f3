// A program whose threads are not told apart by their thread pointers: thread-pointers MODE ROUNDS. It calls leaf with a thread pointer that is not
// the thread's own, with none, or on a thread that has another's. It prints the sum and how many calls there were. `-` for MODE waits for
// a line first, and goes on with what that says.
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <immintrin.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline, noclone)) long leaf(long x) {
  __asm__ volatile("" : "+r"(x));
  return x + 1;
}

static inline long set_by_call(unsigned long to) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_arch_prctl), "D"(ARCH_SET_FS), "S"(to) : "rcx", "r11", "memory");
  return result;
}
__attribute__((target("fsgsbase"))) static inline void set_by_instruction(unsigned long to) { _writefsbase_u64(to); }
__attribute__((target("fsgsbase"))) static inline unsigned long own(void) { return _readfsbase_u64(); }

static volatile int done;
static volatile long sums[2];
static long rounds;

__attribute__((optimize("no-stack-protector"))) static int sharer(void *unused) {
  (void)unused;
  long sum = 0;
  for (long i = 0; i < rounds; i++) sum += leaf(i);
  sums[1] = sum;
  __atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
  syscall(SYS_exit, 0);
  return 0;
}

__attribute__((optimize("no-stack-protector"))) int main(int argc, char **argv) {
  char line[32] = "";
  if (argc < 3) return 2;
  const char *mode = argv[1];
  rounds = atol(argv[2]);
  if (strcmp(mode, "-") == 0) {
    puts("ready");
    fflush(stdout);
    if (fgets(line, sizeof line, stdin) == NULL) return 2;
    line[strcspn(line, "\n")] = 0;
    mode = line;
  }
  // Its last word is the last of a mapping: nothing behind it can be read.
  char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(pages + 4096, 4096);
  unsigned long guest = (unsigned long)pages + 4096 - 64, mine = own();
  long sum = 0, calls = rounds;
  if (strcmp(mode, "call") == 0 || strcmp(mode, "none") == 0) {
    unsigned long to = strcmp(mode, "none") == 0 ? 0 : guest;
    for (long i = 0; i < rounds; i++) set_by_call(to), sum += leaf(i), set_by_call(mine);
  } else if (strcmp(mode, "instruction") == 0) {
    for (long i = 0; i < rounds; i++) set_by_instruction(guest), sum += leaf(i), set_by_instruction(mine);
  } else {
    char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    clone(sharer, stack + 65536, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, NULL);
    for (long i = 0; i < rounds; i++) sum += leaf(i);
    while (!__atomic_load_n(&done, __ATOMIC_SEQ_CST)) usleep(100);
    sum += sums[1];
    calls *= 2;
  }
  printf("sum=%ld calls=%ld\n", sum, calls);
  return 0;
}
