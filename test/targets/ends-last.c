// Its threads end one by one, by the system call that ends a thread and not the process; the last one's status is the program's.
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile long sink;

__attribute__((noinline)) void work(long n) { sink += n; }

#define STATUS 7

static void *other(void *unused) {
  (void)unused;
  for (int i = 0; i < 50; i++) {
    work(i);
    usleep(1000);
  }
  syscall(SYS_exit, STATUS);
  return 0;
}

int main(int argc, char **argv) {
  (void)argv;
  pthread_t thread;
  if (argc > 1 && pthread_create(&thread, 0, other, 0) != 0)
    return 1;
  for (int i = 0; i < 50; i++) {
    work(i);
    usleep(1000);
  }
  syscall(SYS_exit, STATUS);
}
