// Throws through a function that is traced, while a signal handler that has interrupted code of nobody's (a tracer's) stays there for a
// while: so a good part of the time a thread is about to do something in that code. Argument: how many milliseconds the handler stays; for
// as long it leaves that code alone then.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <csignal>
#include <link.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
static struct {
  unsigned long start, end;
} known[64];
static int count;
static std::atomic<long> stayed, thrown, wrong;
static long stay_ms;
static volatile sig_atomic_t told;
static volatile long sink;

static int note(dl_phdr_info *info, size_t, void *) {
  for (int i = 0; i < info->dlpi_phnum && count < 64; i++) {
    const ElfW(Phdr) &part = info->dlpi_phdr[i];
    if (part.p_type != PT_LOAD || !(part.p_flags & PF_X)) continue;
    known[count].start = info->dlpi_addr + part.p_vaddr;
    known[count++].end = info->dlpi_addr + part.p_vaddr + part.p_memsz;
  }
  return 0;
}

static long now_ms() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void on_timer(int, siginfo_t *, void *context) {
  auto at = (unsigned long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
  for (int i = 0; i < count; i++)
    if (at >= known[i].start && at < known[i].end) return;
  static long next;
  if (now_ms() < next) return;
  stayed++;
  timespec left{stay_ms / 1000, stay_ms % 1000 * 1000000};
  while (nanosleep(&left, &left) != 0) {
  }
  next = now_ms() + stay_ms;
}

static void on_interrupt(int signal) { told = signal; }

extern "C" NOINLINE long thrower(long n) {
  sink = n;
  if (n >= 0) throw n;
  return n;
}

int main(int, char **argv) {
  stay_ms = std::atol(argv[1]);
  dl_iterate_phdr(note, nullptr);
  struct sigaction action{};
  action.sa_sigaction = on_timer;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGALRM, &action, nullptr);
  signal(SIGINT, on_interrupt);
  // Of odd length, so that it comes at ever other moments.
  itimerval often{{0, 137}, {0, 137}};
  setitimer(ITIMER_REAL, &often, nullptr);
  std::printf("ready\n");
  std::fflush(stdout);
  for (long i = 0; !told; i++) {
    try {
      thrower(i);
      wrong++;
    } catch (long n) {
      if (n != i) wrong++;
      thrown++;
    }
  }
  std::printf("wrong=%ld stayed=%ld thrown=%d\n", wrong.load(), stayed.load(), thrown > 0);
  return wrong != 0;
}
