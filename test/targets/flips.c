// Code that is switched while everything runs it: busy threads, a timer storm, threads with every signal blocked, vfork children,
// and children that share the memory on a stack of their own. "flips THREADS [PROTECTION]" (see protect); told "run", "quiet" and
// "batch ROUNDS".
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "count.h"

enum { STEP, MIX, HANDLE };
static const char *const count_names[] = {"step", "mix", "handle", 0};
static _Thread_local volatile long sink;

NOINLINE long step(long n) {
  COUNT(STEP);
  sink = n;
  return n + 1;
}

NOINLINE long mix(long a, long b) {
  COUNT(MIX);
  return step(a) * 3 + step(b);
}

NOINLINE void handle(long n) {
  COUNT(HANDLE);
  sink = mix(n, n);
}

enum { PLAIN, MASKED, STORM, CHILDREN, KINDS };
static atomic_int wrong, children, idle, storming;
static atomic_long rounds_left[512];
static atomic_int running;

static void on_timer(int signal) {
  int saved = errno;
  if (storming) handle(signal);
  errno = saved;
}

static int in_child(void *n) {
  return mix((long)n, 7) == ((long)n + 1) * 3 + 8 ? 0 : 1;
}

static void have_child(long n, char *stack) {
  int status = 0;
  pid_t pid;
  if (n % 2) {
    pid = vfork();
    if (pid == 0) _exit(in_child((void *)n));
  } else {
    pid = clone(in_child, stack + (64 << 10), CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)n);
  }
  if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) wrong++;
  children++;
}

static void *body(void *argument) {
  long me = (long)argument;
  int kind = me % KINDS;
  char *stack = malloc(64 << 10);
  sigset_t all;
  sigfillset(&all);
  if (kind == MASKED) pthread_sigmask(SIG_SETMASK, &all, 0);
  if (kind == STORM) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    event._sigev_un._tid = gettid();
    struct itimerspec often = {{0, 1000000}, {0, 1000000}};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &often, 0);
  }
  for (long n = 0;; n++) {
    if (!running && rounds_left[me] == 0) {
      idle++;
      while (!running && rounds_left[me] == 0) usleep(500);
      idle--;
    }
    if (rounds_left[me] > 0) rounds_left[me]--;
    long a = n % 1000, b = me;
    if (mix(a, b) != (a + 1) * 3 + b + 1) wrong++;
    if (kind == CHILDREN && n % 64 == 0) have_child(n / 64, stack);
  }
  return 0;
}

/** Since Linux 6.10, arch/x86/entry/syscalls/syscall_64.tbl */
enum { SYS_MSEAL = 462 };
/** Since Linux 6.3, include/uapi/linux/prctl.h: nothing that was not executable becomes so. */
enum { SET_MDWE = 65, REFUSE_EXEC_GAIN = 1 };

static void filter(long number, unsigned action) {
  struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog all = {4, program};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &all) != 0) abort();
}

/** Mappings that do not merge, until only `left` more may be made. */
static void many_maps(int left) {
  long made = 0;
  void *pages[1 << 17];
  while (made < 1 << 17) {
    void *page = mmap(0, 4096, made % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) break;
    pages[made++] = page;
  }
  while (left-- > 0 && made > 0) munmap(pages[--made], 4096);
}

/** The process gets no more address space than it has, but for so many bytes. */
static void narrow(long bytes) {
  long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%ld", &pages) != 1) abort();
  fclose(file);
  struct rlimit limit = {pages * 4096 + bytes, pages * 4096 + bytes};
  setrlimit(RLIMIT_AS, &limit);
}

/** Protects the program's text from being moved, or leaves no room for it. Returns what has been done; "" where the kernel cannot. */
static const char *protect(const char *how) {
  static char result[64];
  unsigned long start = (unsigned long)step & ~0xffful, end = ((unsigned long)handle | 0xfff) + 1;
  long n;
  if (strcmp(how, "locked") == 0 && mlockall(MCL_CURRENT) != 0) abort();
  if (strcmp(how, "locked-page") == 0 && mlock((void *)step, 1) != 0) abort();
  if (strcmp(how, "locked-later") == 0 && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) abort();
  if (strcmp(how, "sealed") == 0 && syscall(SYS_MSEAL, start, end - start, 0) != 0) return "";
  if (strcmp(how, "no-gain") == 0 && prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0) return "";
  if (strcmp(how, "mremap-kills") == 0) filter(SYS_mremap, SECCOMP_RET_KILL_PROCESS);
  if (strcmp(how, "mremap-fails") == 0) filter(SYS_mremap, SECCOMP_RET_ERRNO | EPERM);
  if (sscanf(how, "maps-%ld", &n) == 1) many_maps((int)n);
  if (sscanf(how, "space-%ld", &n) == 1) narrow(n << 10);
  snprintf(result, sizeof result, ", %s", how);
  return result;
}

/** A thread that has rounds left is idle until it wakes. */
static void until_idle(int threads) {
  for (int i = 0; i < threads; i++)
    while (rounds_left[i] > 0) usleep(500);
  while (idle < threads) usleep(500);
  storming = 0;
  usleep(5000);
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 8;
  struct sigaction action = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, 0);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 128 << 10);
  for (long i = 0; i < threads; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &small, body, (void *)i) != 0) abort();
  }
  char line[64];
  until_idle(threads);
  printf("ready%s\n", argc > 2 ? protect(argv[2]) : "");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    long rounds;
    if (strncmp(line, "run", 3) == 0) {
      storming = 1;
      running = 1;
    } else if (strncmp(line, "quiet", 5) == 0) {
      running = 0;
      until_idle(threads);
      printf("done wrong=%d children=%d\n", wrong, children);
    } else if (sscanf(line, "batch %ld", &rounds) == 1) {
      for (int i = 0; count_names[i]; i++) count_of[i] = 0;
      storming = 1;
      for (int i = 0; i < threads; i++) rounds_left[i] = rounds;
      until_idle(threads);
      for (int i = 0; count_names[i]; i++) printf("%s=%ld ", count_names[i], count_of[i]);
      printf("wrong=%d\n", wrong);
    }
    fflush(stdout);
  }
  return wrong != 0;
}
