// Threads on stacks of the program's own, which are unmapped as soon as a thread has ended: in the middle of a call that it has jumped out
// of, or by the kernel's exit in it. Another thread has calls open all the while. Runs until SIGINT comes.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
enum { STACK = 1 << 17 };
static volatile sig_atomic_t told;
static volatile long sink;
static long wrong;

static void on_interrupt(int signal) { told = signal; }

NOINLINE static long leave(long depth, jmp_buf *where) {
  sink = depth;
  if (depth > 0) return leave(depth - 1, where) + 1;
  if (where == NULL) syscall(SYS_exit, 0);
  longjmp(*where, 1);
}

static void *jumps(void *unused) {
  jmp_buf where;
  if (setjmp(where) == 0) leave(20, &where);
  (void)unused;
  return NULL;
}

static void *vanishes(void *unused) {
  leave(20, NULL);
  return unused;
}

NOINLINE static long stays(long depth) {
  if (depth > 0) return stays(depth - 1) + 1;
  while (!told) usleep(2000);
  return 0;
}

static void *waits(void *unused) {
  if (stays(10) != 10) wrong++;
  return unused;
}

int main(void) {
  signal(SIGINT, on_interrupt);
  pthread_t waiter;
  pthread_create(&waiter, NULL, waits, NULL);
  puts("ready");
  fflush(stdout);
  for (long i = 0; !told; i++) {
    void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, stack, STACK);
    pthread_t thread;
    if (pthread_create(&thread, &attributes, i % 2 ? jumps : vanishes, NULL) != 0) wrong++;
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    munmap(stack, STACK);
  }
  pthread_join(waiter, NULL);
  printf("wrong=%ld\n", wrong);
  return wrong != 0;
}
