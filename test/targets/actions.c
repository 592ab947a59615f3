// What a program finds out about its signal handlers and masks: the same, whoever stands in between. Says all of it.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

static char alternate[1 << 16];
static volatile int value;
static sigjmp_buf away;

// The last signal is left out: it is reserved while the program is traced from inside.
static unsigned long bits(const sigset_t *set) { return *(const unsigned long *)set & ~(1UL << 63); }

__attribute__((noinline)) static unsigned long mask_now(void) {
  sigset_t now;
  pthread_sigmask(SIG_BLOCK, 0, &now);
  return bits(&now);
}

static void plain(int signal) { printf("  plain %d mask %lx\n", signal, mask_now()); }

static void other(int signal) { printf("  other %d mask %lx\n", signal, mask_now()); }

static void informed(int signal, siginfo_t *info, void *context) {
  ucontext_t *user = context;
  char here;
  printf("  informed %d code %d pid %d value %d mask %lx before %lx stack %s flags %d\n", signal, info->si_code,
         info->si_pid == getpid(), info->si_value.sival_int, mask_now(), bits(&user->uc_sigmask),
         &here >= alternate && &here < alternate + sizeof alternate ? "alternate" : "own",
         user->uc_stack.ss_flags);
  value = info->si_value.sival_int;
}

static void nested(int signal) {
  printf("  nested %d begins mask %lx\n", signal, mask_now());
  raise(SIGUSR2);
  printf("  nested %d ends\n", signal);
}

static void jumps(int signal) {
  printf("  jumps %d\n", signal);
  siglongjmp(away, 1);
}

static const char *name_of(void *handler) {
  if (handler == (void *)SIG_DFL) return "default";
  if (handler == (void *)SIG_IGN) return "ignore";
  if (handler == (void *)SIG_ERR) return "error";
  if (handler == (void *)SIG_HOLD) return "hold";
  if (handler == (void *)plain) return "plain";
  if (handler == (void *)other) return "other";
  if (handler == (void *)informed) return "informed";
  if (handler == (void *)nested) return "nested";
  if (handler == (void *)jumps) return "jumps";
  return "unknown";
}

static void show(const char *when, int signal) {
  struct sigaction now;
  memset(&now, 0x55, sizeof now);
  errno = 0;
  int result = sigaction(signal, 0, &now);
  if (result != 0)
    printf("%s: %d: %d %s\n", when, signal, result, strerror(errno));
  else
    printf("%s: %d: %s flags %x mask %lx\n", when, signal, name_of((void *)now.sa_handler), now.sa_flags,
           bits(&now.sa_mask));
}

static void set(int signal, void *handler, int flags, int masked) {
  struct sigaction action = {0}, before;
  action.sa_sigaction = handler;
  action.sa_flags = flags;
  if (masked < 0)
    sigfillset(&action.sa_mask);
  else if (masked > 0)
    sigaddset(&action.sa_mask, masked);
  memset(&before, 0x55, sizeof before);
  errno = 0;
  int result = sigaction(signal, &action, &before);
  if (result != 0)
    printf("set %d: %d %s\n", signal, result, strerror(errno));
  else
    printf("set %d: was %s flags %x mask %lx\n", signal, name_of((void *)before.sa_handler), before.sa_flags,
           bits(&before.sa_mask));
  show("  now", signal);
}

static void *thread(void *unused) {
  (void)unused;
  pthread_kill(pthread_self(), SIGUSR1);
  return 0;
}

int main(void) {
  setvbuf(stdout, 0, _IOLBF, 0);
  stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
  sigaltstack(&stack, 0);
  printf("begins with mask %lx\n", mask_now());
  for (int s = 1; s < 64; s++) show("at first", s);

  set(SIGUSR1, plain, 0, 0);
  raise(SIGUSR1);
  set(SIGUSR1, informed, SA_SIGINFO | SA_RESTART, SIGUSR2);
  sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 7});
  printf("value %d\n", value);
  set(SIGUSR1, informed, SA_SIGINFO | SA_ONSTACK | SA_NODEFER, -1);
  raise(SIGUSR1);
  set(SIGUSR1, plain, SA_RESETHAND, 0);
  raise(SIGUSR1);
  show("after one", SIGUSR1);
  set(SIGUSR1, SIG_IGN, 0, -1);
  raise(SIGUSR1);
  set(SIGUSR2, other, 0, 0);
  set(SIGUSR1, nested, 0, 0);
  raise(SIGUSR1);
  pthread_t handle;
  pthread_create(&handle, 0, thread, 0);
  pthread_join(handle, 0);
  set(SIGUSR1, jumps, 0, 0);
  for (int i = 0; i < 3; i++)
    if (sigsetjmp(away, 1) == 0) raise(SIGUSR1);
  printf("mask after jumps %lx\n", mask_now());

  printf("signal: was %s\n", name_of((void *)signal(SIGUSR1, plain)));
  show("by signal", SIGUSR1);
  raise(SIGUSR1);
  siginterrupt(SIGUSR1, 1);
  show("interrupts", SIGUSR1);
  printf("signal: was %s\n", name_of((void *)signal(SIGUSR1, other)));
  show("by signal", SIGUSR1);
  raise(SIGUSR1);
  printf("signal: was %s\n", name_of((void *)signal(SIGUSR1, SIG_DFL)));
  show("by signal", SIGUSR1);
  printf("sysv_signal: was %s\n", name_of((void *)sysv_signal(SIGUSR1, plain)));
  show("by sysv_signal", SIGUSR1);
  raise(SIGUSR1);
  show("after one", SIGUSR1);
  printf("sigset: was %s\n", name_of((void *)sigset(SIGUSR1, plain)));
  show("by sigset", SIGUSR1);
  printf("sigset: was %s\n", name_of((void *)sigset(SIGUSR1, SIG_HOLD)));
  show("held by sigset", SIGUSR1);
  printf("mask %lx\n", mask_now());
  raise(SIGUSR1);
  printf("sigset: was %s\n", name_of((void *)sigset(SIGUSR1, other)));
  show("by sigset", SIGUSR1);
  sighold(SIGUSR1);
  raise(SIGUSR1);
  printf("mask %lx\n", mask_now());
  sigrelse(SIGUSR1);
  sigignore(SIGUSR1);
  show("ignored", SIGUSR1);

  struct {
    void *handler;
    unsigned long flags;
    void *restorer;
    unsigned long mask;
  } raw;
  set(SIGUSR1, plain, SA_RESTART, SIGHUP);
  printf("raw %ld\n", syscall(SYS_rt_sigaction, SIGUSR1, 0, &raw, 8));
  printf("raw %s flags %lx mask %lx\n", name_of(raw.handler), raw.flags, raw.mask & ~(1UL << 63));
  raw.handler = other;
  printf("raw %ld\n", syscall(SYS_rt_sigaction, SIGUSR1, &raw, 0, 8));
  show("by a raw call", SIGUSR1);
  raise(SIGUSR1);

  for (int s = -1; s <= 65; s++) {
    if (s > 0 && s != SIGKILL && s != SIGSTOP && s != 32 && s != 33 && s != 65) continue;
    set(s, plain, 0, 0);
    errno = 0;
    printf("signal: %s %s\n", name_of((void *)signal(s, plain)), strerror(errno));
  }

  sigset_t full, before;
  sigfillset(&full);
  printf("full %lx\n", bits(&full));
  sigprocmask(SIG_SETMASK, &full, &before);
  printf("before %lx now %lx\n", bits(&before), mask_now());
  raise(SIGUSR1);
  sigpending(&before);
  printf("pending %lx\n", bits(&before));
  sigset_t some = full;
  sigdelset(&some, SIGUSR1);
  int suspended = sigsuspend(&some);
  printf("sigsuspend %d %s\n", suspended, strerror(errno));
  raise(SIGUSR2);
  sigset_t two;
  sigemptyset(&two);
  sigaddset(&two, SIGUSR2);
  int which = 0;
  printf("sigwait %d", sigwait(&two, &which));
  printf(" %d\n", which);
  sigprocmask(SIG_SETMASK, &two, 0);
  sigprocmask(SIG_UNBLOCK, &full, 0);
  printf("mask %lx\n", mask_now());

  fflush(stdout);
  if (fork() == 0) {
    raise(SIGUSR1);
    raise(SIGUSR2);
    show("in the child", SIGUSR1);
    fflush(stdout);
    _exit(7);
  }
  int status;
  wait(&status);
  printf("child %d\n", WEXITSTATUS(status));
  fflush(stdout);
  system("echo LD_PRELOAD is \"$LD_PRELOAD\"; ls /proc/self/fd | wc -l");
  show("at last", SIGUSR1);
  show("at last", SIGINT);
  return 0;
}
