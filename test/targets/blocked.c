// A thread in each system call that a stop may make fail with EINTR though no signal came, or so many as the argument says. Any such
// failure is reported.
#define _GNU_SOURCE
#include <errno.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <linux/futex.h>
#include <sys/syscall.h>

static atomic_int waiting;
static int semaphores, messages;

static int sock(int timeout_too) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) abort();
  struct timeval long_time = {1000, 0};
  if (timeout_too) setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &long_time, sizeof long_time);
  return pair[0];
}

static long wait_in(long which) {
  static int word;
  char bytes[4096];
  struct epoll_event event;
  struct pollfd none = {.fd = sock(0), .events = POLLIN};
  struct timespec long_time = {1000, 0};
  struct sembuf down = {0, -1, 0};
  struct mmsghdr message = {0};
  sigset_t set;
  fd_set fds;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  FD_ZERO(&fds);
  FD_SET(none.fd, &fds);
  switch (which) {
    case 0: return epoll_wait(epoll_create1(0), &event, 1, -1);
    case 1: return epoll_wait(epoll_create1(0), &event, 1, 1000000);
    case 2: return semop(semaphores, &down, 1);
    case 3: return semtimedop(semaphores, &down, 1, &long_time);
    case 4: return recv(sock(1), bytes, 1, 0);
    case 5: return recv(sock(0), bytes, 1, 0);
    case 6: return read(sock(1), bytes, 1);
    case 7: return sigwaitinfo(&set, 0);
    case 8: return sigtimedwait(&set, 0, &long_time);
    case 9: return nanosleep(&long_time, 0);
    case 10: return clock_nanosleep(CLOCK_MONOTONIC, 0, &long_time, 0) == EINTR ? (errno = EINTR, -1) : 0;
    case 11: return syscall(SYS_futex, &word, FUTEX_WAIT, 0, 0);
    case 12: return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &long_time);
    case 13: return poll(&none, 1, -1);
    case 14: return ppoll(&none, 1, &long_time, &set);
    case 15: return select(none.fd + 1, &fds, 0, 0, 0);
    case 16: return msgrcv(messages, bytes, 100, 0, 0);
    case 17: return read(inotify_init(), bytes, sizeof bytes);
    case 18: return pause();
    case 19: return epoll_pwait(epoll_create1(0), &event, 1, -1, &set);
    case 20: return recvmmsg(sock(1), &message, 1, 0, 0);
    default: return -2;
  }
}

enum { CASES = 21 };

static void *body(void *which) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, 0);
  waiting++;
  long result = wait_in((long)which);
  printf("case %ld returned %ld: %s\n", (long)which, result, strerror(errno));
  fflush(stdout);
  return 0;
}

__attribute__((noinline)) long work(long n) {
  static volatile long sink;
  sink = n;
  return n + 1;
}

int main(int argc, char **argv) {
  int times = argc > 1 ? atoi(argv[1]) : 1;
  semaphores = semget(IPC_PRIVATE, 1, 0600);
  messages = msgget(IPC_PRIVATE, 0600);
  pthread_t thread;
  for (long i = 0; i < CASES * times; i++)
    if (pthread_create(&thread, 0, body, (void *)(i % CASES)) != 0) abort();
  while (waiting < CASES * times) usleep(1000);
  usleep(100000);
  puts("ready");
  fflush(stdout);
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    printf("did %ld\n", work(atol(line)));
    fflush(stdout);
  }
  semctl(semaphores, 0, IPC_RMID);
  msgctl(messages, IPC_RMID, 0);
  _exit(0);
}
