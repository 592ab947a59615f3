// Control that leaves functions without returning from them: longjmp, stack overflow caught on another stack, coroutines.
// Each case is an argument. Functions count their own entries.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include "count.h"

enum { DEEP, SHALLOW, CO, YIELD, OVERFLOW_, HANDLER, NESTED, CASE_ };
static const char *const count_names[] = {"deep", "shallow", "co", "yield", "overflow", "handler", "nested_handler", "run_case", 0};

static jmp_buf back;
static sigjmp_buf away;
static volatile long sink;

NOINLINE long shallow(long n) {
  COUNT(SHALLOW);
  sink += n;
  return n + 1;
}

NOINLINE long deep(long n) {
  COUNT(DEEP);
  if (n == 0) longjmp(back, 1);
  return shallow(n) + deep(n - 1);
}

NOINLINE void jump_case(void) {
  for (volatile int i = 0; i < 50; i++) {
    if (setjmp(back) == 0) deep(100);
    else shallow(i);
  }
}

/* Coroutines whose stacks lie wherever `stack` says. */
static ucontext_t scheduler, contexts[4];
static int alive[4];

NOINLINE void yield(int me) {
  COUNT(YIELD);
  swapcontext(&contexts[me], &scheduler);
  sink++;
}

NOINLINE long co(int me, long n) {
  COUNT(CO);
  long result = shallow(n);
  yield(me);
  if (n > 0) result += co(me, n - 1);
  yield(me);
  return result;
}

static void start(int me, int n) {
  co(me, n);
  alive[me] = 0;
}

NOINLINE void interleave(char *stacks, size_t size, int rounds, int finish) {
  for (int r = 0; r < rounds; r++) {
    for (int i = 0; i < 4; i++) {
      getcontext(&contexts[i]);
      contexts[i].uc_stack.ss_sp = stacks + (size_t)i * size;
      contexts[i].uc_stack.ss_size = size;
      contexts[i].uc_link = &scheduler;
      alive[i] = 1;
      makecontext(&contexts[i], (void (*)(void))start, 2, i, 5 + i);
    }
    int live = 4, switches = 0;
    while (live && (finish || switches < 13)) {
      live = 0;
      for (int i = 0; i < 4; i++)
        if (alive[i]) live++, switches++, swapcontext(&scheduler, &contexts[i]), shallow(i);
    }
  }
}

NOINLINE void heap_coroutines(int finish) {
  enum { SIZE = 64 << 10 };
  char *stacks = malloc(4 * SIZE);
  interleave(stacks, SIZE, 20, finish);
  free(stacks);
}

/* As in the example of makecontext(3): stacks within the stack. */
NOINLINE void stack_coroutines(int finish) {
  enum { SIZE = 64 << 10 };
  char stacks[4 * SIZE];
  interleave(stacks, SIZE, 20, finish);
  sink += stacks[SIZE];
}

NOINLINE long overflow(long n) {
  COUNT(OVERFLOW_);
  volatile char frame[200];
  frame[0] = (char)n;
  return overflow(n + 1) + frame[0];
}

NOINLINE void handler(int signal) {
  COUNT(HANDLER);
  shallow(signal);
  siglongjmp(away, 1);
}

NOINLINE void overflow_case(void) {
  stack_t stack = {.ss_sp = malloc(ALTERNATE), .ss_size = ALTERNATE};
  sigaltstack(&stack, 0);
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
  sigaction(SIGSEGV, &action, 0);
  for (volatile int i = 0; i < 3; i++)
    if (sigsetjmp(away, 1) == 0) sink += overflow(0);
    else shallow(i);
}

NOINLINE void nested_handler(int signal) {
  COUNT(NESTED);
  shallow(signal);
}

/* A handler's stack that is an array in a frame of the stack it interrupts, above all frames that are open. */
NOINLINE long below(long n) {
  if (n == 0) raise(SIGUSR1);
  return n == 0 ? shallow(1) : shallow(n) + below(n - 1);
}

NOINLINE void inner_stack_case(void) {
  char array[1 << 16];
  stack_t stack = {.ss_sp = array, .ss_size = sizeof array};
  sigaltstack(&stack, 0);
  struct sigaction action = {.sa_handler = nested_handler, .sa_flags = SA_ONSTACK};
  sigaction(SIGUSR1, &action, 0);
  for (int i = 0; i < 100; i++) sink += below(10);
  sink += array[5];
  stack_t none = {.ss_flags = SS_DISABLE};
  sigaltstack(&none, 0);
}

NOINLINE void *run_case(void *name) {
  const char *n = name;
  COUNT(CASE_);
  if (strcmp(n, "jump") == 0) jump_case();
  if (strcmp(n, "heap") == 0) heap_coroutines(1);
  if (strcmp(n, "heap-left") == 0) heap_coroutines(0);
  if (strcmp(n, "stack") == 0) stack_coroutines(1);
  if (strcmp(n, "stack-left") == 0) stack_coroutines(0);
  if (strcmp(n, "overflow") == 0) overflow_case();
  if (strcmp(n, "inner") == 0) inner_stack_case();
  return 0;
}

NOINLINE void case_of(char *name, int threaded) {
  if (!threaded) {
    run_case(name);
    return;
  }
  pthread_t thread;
  pthread_create(&thread, 0, run_case, name);
  pthread_join(thread, 0);
}

int main(int argc, char **argv) {
  for (int i = 2; i < argc; i++) case_of(argv[i], argv[1][0] == 't');
  print_counts();
  return 0;
}
