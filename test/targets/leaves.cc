// Exceptions that leave signal handlers, and threads that end in one. Each thread works, and a timer interrupts it in `spin`, from where
// the handler throws; or it raises a signal whose handler throws. Every now and then a thread is made that ends in a handler: by
// pthread_exit, by cancellation, or by the C library's syscall. Argument: milliseconds, or 0: until SIGINT comes.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
static std::atomic<long> thrown, ended, wrong;
static std::atomic<bool> over;
static volatile long sink;
static thread_local volatile int may_throw;
/** raise, for a compiler that does not know that it throws nothing. */
static int (*volatile raise_it)(int) = raise;

extern "C" {
NOINLINE long step(long n) {
  sink = n;
  return n + 1;
}

NOINLINE long work(long n) {
  long sum = 0;
  for (long i = 0; i < n; i++) sum += step(i) - i;
  return sum;
}

NOINLINE void throws(int signal) {
  if (work(5) != 5) wrong++;
  throw signal;
}

/** Has no exception table, so that one may come from any instruction; the compiler is to believe that one may. */
NOINLINE void spin(long n) {
  if (n < 0) throws(0);
  may_throw = 1;
  for (long i = 0; i < n; i++) sink = i;
  may_throw = 0;
}

NOINLINE void on_timer(int signal) {
  if (!may_throw) return;
  may_throw = 0;
  throws(signal);
}

/** One that is caught within the handler, on top of which another one has run, and one that leaves it. */
NOINLINE void on_user(int signal) {
  try {
    raise_it(SIGUSR2);
    wrong++;
  } catch (int which) {
    if (which != SIGUSR2 || work(5) != 5) wrong++;
  }
  throws(signal);
}

NOINLINE void on_other(int signal) {
  throws(signal);
}

NOINLINE void on_end(int) {
  if (work(5) != 5) wrong++;
  switch (ended++ % 3) {
    case 0:
      pthread_exit(nullptr);
    case 1:
      pthread_cancel(pthread_self());
      for (;;) pthread_testcancel();
    default:
      syscall(SYS_exit, 0);
  }
}
}

static void *worker(void *) {
  timer_t timer;
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGALRM;
  event._sigev_un._tid = gettid();
  timer_create(CLOCK_MONOTONIC, &event, &timer);
  itimerspec often{{0, 700000}, {0, 700000}};
  timer_settime(timer, 0, &often, nullptr);
  while (!over) {
    try {
      spin(20000);
    } catch (int signal) {
      if (signal != SIGALRM) wrong++;
      thrown++;
      // As when nobody traces: the handler's own signal stays blocked.
      sigset_t one;
      sigemptyset(&one);
      sigaddset(&one, SIGALRM);
      pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
    }
    try {
      raise_it(SIGUSR1);
      wrong++;
    } catch (int signal) {
      if (signal != SIGUSR1) wrong++;
      thrown++;
    }
    if (work(50) != 50) wrong++;
  }
  timer_delete(timer);
  return nullptr;
}

static void *ends(void *) {
  if (work(50) != 50) wrong++;
  raise_it(SIGTERM);
  wrong++;
  return nullptr;
}

static void install(int signal, void (*handler)(int)) {
  struct sigaction action{};
  action.sa_handler = handler;
  // One that interrupts any code does not come on top of itself: it might throw from where the other one has not begun.
  action.sa_flags = signal == SIGALRM ? 0 : SA_NODEFER;
  sigaction(signal, &action, nullptr);
}

static volatile sig_atomic_t told;

static void on_interrupt(int signal) { told = signal; }

int main(int, char **argv) {
  long ms = std::atol(argv[1]), ends_made = 0;
  install(SIGALRM, on_timer);
  install(SIGUSR1, on_user);
  install(SIGUSR2, on_other);
  install(SIGTERM, on_end);
  install(SIGINT, on_interrupt);
  pthread_t threads[3];
  for (auto &thread : threads) pthread_create(&thread, nullptr, worker, nullptr);
  for (; ms == 0 ? !told : ends_made < ms / 5; ends_made++) {
    pthread_t one;
    pthread_create(&one, nullptr, ends, nullptr);
    pthread_join(one, nullptr);
    usleep(5000);
  }
  over = true;
  for (auto &thread : threads) pthread_join(thread, nullptr);
  std::printf("wrong: %ld, thrown: %s, ended: %s\n", wrong.load(), thrown > 100 ? "many" : "few",
              ended == ends_made ? "all" : "some");
  return wrong != 0;
}
