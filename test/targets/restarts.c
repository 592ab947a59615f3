// A thread waits in a system call among the first five bytes of a function: stopped there and let go on, the kernel takes it back to the
// system call instruction, which must still be there. "wake" ends the wait by a signal; "wait" begins another.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

long wait_here(void);
// push 34 (pause), pop, syscall: five bytes, and the wait ends behind them. -4 is EINTR.
__asm__(
    ".globl wait_here\n"
    ".type wait_here, @function\n"
    "wait_here:\n"
    "  push $34\n"
    "  pop %rax\n"
    "  syscall\n"
    "  cmp $-4, %rax\n"
    "  sete %al\n"
    "  movzbl %al, %eax\n"
    "  ret\n"
    ".size wait_here, .-wait_here\n");

static atomic_int begun, right, wrong;

static void ignore(int signal) { (void)signal; }

static void *body(void *unused) {
  (void)unused;
  for (;;) {
    begun++;
    if (wait_here() == 1) right++;
    else wrong++;
  }
  return 0;
}

__attribute__((noinline)) long other(long n) { return n * 3; }

int main(void) {
  struct sigaction action = {.sa_handler = ignore};
  sigaction(SIGUSR1, &action, 0);
  pthread_t thread;
  pthread_create(&thread, 0, body, 0);
  while (begun < 1) usleep(1000);
  usleep(50000);
  puts("ready");
  fflush(stdout);
  char line[64];
  for (long rounds = 1; fgets(line, sizeof line, stdin); rounds++) {
    while (right + wrong < rounds) {
      pthread_kill(thread, SIGUSR1);
      usleep(5000);
    }
    printf("wrong=%d other=%ld\n", wrong, other(rounds) / rounds);
    fflush(stdout);
  }
  _exit(wrong != 0);
}
