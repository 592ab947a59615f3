// A program that leaves no room for anybody's code, as the argument says. Each line of standard input is answered: "fine".
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline)) long work(long n) {
  static volatile long sink;
  sink = n;
  return n + 1;
}

/** Maps pages with alternating protection, which do not merge, until the kernel refuses or `most` are there. */
static void many_maps(long most) {
  for (long i = 0; i < most; i++)
    if (mmap(0, 4096, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) return;
}

/** Takes every gap within reach of this program's text. */
static void nothing_near(void) {
  uintptr_t here = (uintptr_t)work & ~0xffful, reach = 0x80100000ul;
  uintptr_t low = here > reach + 0x10000 ? here - reach : 0x10000;
  for (size_t size = 1ul << 30; size >= 4096; size /= 2)
    for (uintptr_t at = low & ~(size - 1); at < here + reach; at += size)
      mmap((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
}

static void filter(long number, uint32_t action) {
  struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog all = {4, program};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) != 0) abort();
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  char line[64];
  /* The streams have their buffers before there is no more memory. */
  puts("begun");
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == 0) return 1;
  if (strcmp(what, "address-space") == 0) {
    struct rlimit limit = {64 << 20, 64 << 20};
    setrlimit(RLIMIT_AS, &limit);
  }
  if (strcmp(what, "address-space-full") == 0) {
    struct rlimit limit = {4096, 4096};
    setrlimit(RLIMIT_AS, &limit);
  }
  if (strcmp(what, "maps") == 0) many_maps(1000000);
  if (strcmp(what, "most-maps") == 0) many_maps(60000);
  if (strcmp(what, "near") == 0) nothing_near();
  if (strcmp(what, "mmap-kills") == 0) filter(SYS_mmap, SECCOMP_RET_KILL_PROCESS);
  if (strcmp(what, "mmap-fails") == 0) filter(SYS_mmap, SECCOMP_RET_ERRNO | EPERM);
  if (strcmp(what, "memfd-traps") == 0) filter(SYS_memfd_create, SECCOMP_RET_TRAP);
  if (strcmp(what, "pwrite-kills") == 0) filter(SYS_pwrite64, SECCOMP_RET_KILL_PROCESS);
  if (strcmp(what, "locked") == 0 && mlockall(MCL_CURRENT | MCL_FUTURE) != 0) abort();
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    puts(work(41) == 42 ? "fine" : "wrong");
    fflush(stdout);
  }
  return 0;
}
