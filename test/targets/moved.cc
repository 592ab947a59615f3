// A coroutine that one thread has begun, in the middle of a function that may be traced, goes on in another thread, and throws there through
// that function. The first thread has ended meanwhile. One coroutine for each line of input.
#include <cstdio>
#include <pthread.h>
#include <ucontext.h>

#define NOINLINE __attribute__((noinline, noclone))
static ucontext_t coroutine, outside;
static char stack[1 << 17];
static volatile long sink;
static int caught, wrong;

extern "C" NOINLINE long thrower(long n) {
  sink = n;
  swapcontext(&coroutine, &outside);
  if (n >= 0) throw n;
  return n;
}

static void base() {
  try {
    thrower(7);
    wrong++;
  } catch (long n) {
    if (n != 7) wrong++;
    caught++;
  }
}

static void *begins(void *unused) {
  getcontext(&coroutine);
  coroutine.uc_stack.ss_sp = stack;
  coroutine.uc_stack.ss_size = sizeof stack;
  coroutine.uc_link = &outside;
  makecontext(&coroutine, base, 0);
  swapcontext(&outside, &coroutine);
  return unused;
}

static void *goes_on(void *unused) {
  swapcontext(&outside, &coroutine);
  return unused;
}

static void in_thread(void *(*work)(void *)) {
  pthread_t thread;
  pthread_create(&thread, nullptr, work, nullptr);
  pthread_join(thread, nullptr);
}

int main() {
  char line[100];
  std::puts("ready");
  std::fflush(stdout);
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    in_thread(begins);
    std::puts("begun");
    std::fflush(stdout);
    if (std::fgets(line, sizeof line, stdin) == nullptr) break;
    in_thread(goes_on);
    std::printf("caught=%d wrong=%d\n", caught, wrong);
    std::fflush(stdout);
  }
  return wrong != 0;
}
