// Gives up rights, as it is told by lines of its standard input, and says what became of each: "did NAME RESULT". It has two threads.
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOBODY 65534

static volatile int calls;
static pthread_barrier_t barrier;
static volatile int other_result;

__attribute__((noinline)) int work(int n) {
  calls += n;
  return calls;
}

static int drop_capabilities(int keep) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  if (syscall(SYS_capget, &header, data)) return -errno;
  for (int i = 0; i < 2; i++) {
    data[i].effective &= i == 0 ? (unsigned)keep : 0;
    data[i].permitted &= i == 0 ? (unsigned)keep : 0;
    data[i].inheritable = 0;
  }
  return syscall(SYS_capset, &header, data) ? -errno : 0;
}

static int filter(unsigned flags) {
  struct sock_filter allow[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
  struct sock_fprog program = {1, allow};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -errno;
  long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
  return result < 0 ? -errno : (int)result;
}

static int landlock(void) {
  unsigned long long rules = 0x1fff;
  int file = syscall(444, &rules, sizeof rules, 0);
  if (file < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -errno;
  int result = syscall(446, file, 0) ? -errno : 0;
  close(file);
  return result;
}

static int give_up(const char *what) {
  gid_t none = NOBODY;
#define IS(name) (strcmp(what, name) == 0)
  if (IS("setuid")) return setuid(NOBODY) ? -errno : 0;
  if (IS("setgid")) return setgid(NOBODY) ? -errno : 0;
  if (IS("setgroups")) return setgroups(1, &none) ? -errno : 0;
  if (IS("setresuid")) return setresuid(NOBODY, NOBODY, NOBODY) ? -errno : 0;
  if (IS("seteuid")) return seteuid(NOBODY) ? -errno : 0;
  if (IS("raw")) return syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY) ? -errno : 0;
  if (IS("capset")) return drop_capabilities(1 << CAP_NET_RAW);
  if (IS("capabilities")) return drop_capabilities(0);
  if (IS("bounding")) return prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN) ? -errno : 0;
  if (IS("new-privileges")) return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;
  if (IS("filter")) return filter(0);
  if (IS("filters")) return filter(SECCOMP_FILTER_FLAG_TSYNC);
  if (IS("landlock")) return landlock();
  if (IS("network")) return unshare(CLONE_NEWNET) ? -errno : 0;
  if (IS("user")) return unshare(CLONE_NEWUSER) ? -errno : 0;
  if (IS("locked")) return mlockall(MCL_CURRENT | MCL_FUTURE) ? -errno : 0;
  if (IS("nothing")) return 0;
  return -ENOSYS;
}

static char line[100];

static void *other(void *unused) {
  for (;;) {
    pthread_barrier_wait(&barrier);
    other_result = give_up(line);
    pthread_barrier_wait(&barrier);
  }
  return unused;
}

int main(int argc, char **argv) {
  pthread_t thread;
  int single = argc > 1 && strcmp(argv[1], "single") == 0;
  pthread_barrier_init(&barrier, 0, 2);
  if (argc > 1 && !single && give_up(argv[1])) return 2;
  if (!single && pthread_create(&thread, 0, other, 0)) return 2;
  setvbuf(stdout, 0, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    int result;
    if (strncmp(line, "other ", 6) == 0) {
      memmove(line, line + 6, strlen(line + 6) + 1);
      pthread_barrier_wait(&barrier);
      pthread_barrier_wait(&barrier);
      result = other_result;
    } else {
      result = give_up(line);
    }
    work(1);
    printf("did %s %d\n", line, result);
  }
  return 0;
}
