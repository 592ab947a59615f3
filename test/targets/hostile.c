// A program that does what it can against its tracer, as a user without rights: hostile MODE VICTIM. Its first thread and two others do the
// work that is traced; another waits until there is memory of safepoke's, and goes on with its mode for as long as it can. VICTIM is a
// file that it may name and not open for reading or writing. A mode may end this program; it must never end, or use, the tracer.
// Started by root, as from inside, it gives up its rights first.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, AGENT_SIZE = 2 * PAGE, HEADERS = AGENT_SIZE, HEADER = 128, LANES = 512, CALLS = PAGE };
/** Offsets: src/agent/layout.ts. */
enum { HEAD = 0, DROPPED = 8, TID = 16, STATE = 20, POINTER = 24, TAIL = 64 };
enum { OWNER = 16, COMMAND = 64, DONE = 68, FAILED = 76, CALL_COUNT = 96, JOURNAL = 160, TRACER = 168, MAPPED = 184 };

/** Offsets: src/inside/layout.ts. */
enum { OBJECT = AGENT_SIZE + 32, ASKER = AGENT_SIZE + 160, EXECUTION = AGENT_SIZE + 164, PATH = AGENT_SIZE + 192 };
enum { PLACES = AGENT_SIZE + PAGE, BUFFER = PLACES + 64 * PAGE, BLOCK_SIZE = BUFFER + (4 << 20) + (1 << 20) };
enum { PLACE = 64, PRIVATE = 0x10000, PRIVATE_SIZE = 5 * PAGE, NOBODY = 65534, RENDEZVOUS_SIGNAL = 64 };

volatile long sum;
static int victim, lowest;
static char *self;
static uint64_t state = 88172645463325252ULL;
static uint64_t any(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

__attribute__((noinline)) int work_inner(int x) {
  sum += x;
  __asm__ volatile("" ::: "memory");
  return x * 3;
}
__attribute__((noinline)) int work_outer(int x) {
  for (volatile int i = 0; i < 20; i++) sum += i;
  return work_inner(x) + 1;
}
static void *busy(void *unused) {
  for (int i = 0;; i++) {
    work_outer(i);
    if ((i & 255) == 0) usleep(200);
  }
  return unused;
}

/** A mapping, by a part of its name and by its rights. */
struct range {
  uintptr_t start, end;
};
static int find(struct range *found, int most, const char *name, const char *rights) {
  static __thread char line[8192];
  int n = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  if (maps == NULL) return 0;
  while (n < most && fgets(line, sizeof line, maps) != NULL) {
    unsigned long start, end;
    char has[8];
    if (strstr(line, name) == NULL || sscanf(line, "%lx-%lx %7s", &start, &end, has) != 3) continue;
    if (strncmp(has, rights, strlen(rights)) == 0) found[n++] = (struct range){start, end};
  }
  fclose(maps);
  return n;
}

#define WORD64(base, offset) (*(volatile uint64_t *)((base) + (offset)))
#define WORD32(base, offset) (*(volatile uint32_t *)((base) + (offset)))

static void odd(volatile uint64_t *word) {
  uint64_t was = *word;
  uint64_t values[] = {0, 1, was | 5, was | 1ULL << 63, ~0ULL, was - 16, was + 16, was - 4096, was + (16 << 20), any()};
  *word = values[any() % (sizeof values / sizeof *values)];
}
static void noise(uintptr_t start, uintptr_t end, int step) {
  for (uintptr_t at = start; at + 8 <= end; at += 8 * (1 + any() % step)) *(volatile uint64_t *)at = any();
}
/** Memory that has gone, or never was there, is no end of this thread. */
static void ignored(int signal) {
  (void)signal;
  syscall(SYS_exit, 0);
}

/** A descriptor of memory of safepoke's, as soon as there is one; a copy of it stays with us. */
static int catch_file(const char *name, int *number) {
  char path[64], target[128];
  for (;;) {
    for (int fd = lowest; fd < lowest + 4; fd++) {
      if (fcntl(fd, F_GETFD) < 0) continue;
      snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
      ssize_t n = readlink(path, target, sizeof target - 1);
      if (n <= 0) continue;
      target[n] = 0;
      if (strncmp(target, name, strlen(name)) != 0) continue;
      *number = fd;
      return fcntl(fd, F_DUPFD, 100);
    }
  }
}

static int isOneOf(const char *mode, const char *const *modes) {
  for (; *modes != NULL; modes++)
    if (strcmp(mode, *modes) == 0) return 1;
  return 0;
}

static void *scribbler(void *argument) {
  const char *mode = argument;
  static const char *const lanes[] = {"heads", "tails", "drops", "lanes", "ended", "pointers", "rings", NULL};
  struct range m[1];
  for (;;) {
    // From inside the agent's pages and the rings have a file each.
    int ofLanes = isOneOf(mode, lanes) && find(m, 1, "/memfd:safepoke-rings", "rw-s") > 0;
    if (!ofLanes && find(m, 1, "/memfd:safepoke (", "rw-s") == 0) continue;
    uintptr_t base = m[0].start, end = m[0].end;
    for (int k = 0; k < 4000; k++) {
      uintptr_t lane = base + HEADERS + (any() % LANES) * HEADER;
      uintptr_t first = base + HEADERS + (1 + any() % 8) * HEADER;
      if (strcmp(mode, "heads") == 0) odd(&WORD64(first, HEAD));
      else if (strcmp(mode, "tails") == 0) odd(&WORD64(first, TAIL));
      else if (strcmp(mode, "drops") == 0) odd(&WORD64(first, DROPPED));
      else if (strcmp(mode, "lanes") == 0) WORD32(lane, TID) = any() % 70000, WORD32(lane, STATE) = any() % 4;
      else if (strcmp(mode, "ended") == 0) WORD32(lane, STATE) = 2;
      else if (strcmp(mode, "pointers") == 0) WORD64(lane, POINTER) = any();
      else if (strcmp(mode, "owner") == 0) WORD32(base, OWNER) = (uint32_t)any(), WORD64(base, 0) = any();
      else if (strcmp(mode, "page") == 0) noise(base, base + PAGE - 64, 64), usleep(100);
      else if (strcmp(mode, "done") == 0) WORD32(base, DONE) = WORD32(base, COMMAND) - (any() & 1);
      else if (strcmp(mode, "silent") == 0) WORD32(base, DONE) = ~WORD32(base, COMMAND);
      else if (strcmp(mode, "answers") == 0) {
        WORD64(base, CALLS + 56) = any() & 1 ? (uint64_t)victim : any() & 1 ? any() : (uint64_t)-(any() % 200);
        WORD32(base, DONE) = WORD32(base, COMMAND);
      } else if (strcmp(mode, "calls") == 0) odd(&WORD64(base, CALLS + 8 * (any() % 8)));
      else if (strcmp(mode, "rings") == 0) noise(base + HEADERS + PAGE, end, 4096), usleep(1000);
      else if (strcmp(mode, "holes") == 0) madvise((void *)base, end - base, MADV_REMOVE), usleep(1000);
      else if (strcmp(mode, "data") == 0) noise(end, end + (64 << 10), 16), usleep(100);
      else if (strcmp(mode, "journal") == 0) odd(&WORD64(base, JOURNAL)), odd(&WORD64(base, TRACER)), odd(&WORD64(base, MAPPED));
      else if (strcmp(mode, "unmap") == 0) munmap((void *)base, end - base), sleep(1);
      else if (strcmp(mode, "protect") == 0) mprotect((void *)base, end - base, any() & 1 ? PROT_NONE : PROT_READ), usleep(500);
      else if (strcmp(mode, "replace") == 0)
        mmap((void *)base, end - base, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0), usleep(2000);
      else return NULL;
    }
  }
}

/** From inside: the block, by which the agent's thread and the threads in a rendezvous are told what to do; and the object's own words. */
static void *insider(void *argument) {
  const char *mode = argument;
  struct range m[1];
  for (;;) {
    if (find(m, 1, "/memfd:safepoke (", "rw-s") == 0) continue;
    uintptr_t block = m[0].start, object = WORD64(block, OBJECT);
    for (int k = 0; k < 4000; k++) {
      uintptr_t place = block + PLACES + (any() % 8) * PLACE;
      if (strcmp(mode, "block") == 0) noise(block + AGENT_SIZE, block + PLACES, 64), usleep(100);
      else if (strcmp(mode, "counts") == 0) odd(&WORD64(block, AGENT_SIZE + 8 * (any() % 32)));
      else if (strcmp(mode, "places") == 0) odd(&WORD64(place, 8 * (any() % 7)));
      else if (strcmp(mode, "buffer") == 0) noise(block + BUFFER, block + BLOCK_SIZE, 4096), usleep(200);
      else if (strcmp(mode, "object") == 0) noise(object + PRIVATE, object + PRIVATE + PRIVATE_SIZE, 64), usleep(500);
      else if (strcmp(mode, "asks") == 0) {
        for (int i = 0; i < 3; i++) WORD64(block, PATH + 8 * i) = any() & 1 ? any() : (uintptr_t)(any() & 1 ? self : (char *)block);
        WORD32(block, EXECUTION + 4) = any() % 6, WORD32(block, EXECUTION + 16) = any() & 1 ? victim : (uint32_t)any();
        WORD32(block, ASKER) = any() & 1 ? getpid() : (uint32_t)any(), WORD32(block, EXECUTION) = any() % 6;
        usleep(100);
      } else if (strcmp(mode, "calls-all") == 0) kill(getpid(), RENDEZVOUS_SIGNAL), usleep(50);
      else if (strcmp(mode, "deaf") == 0) {
        uint64_t all = ~0ULL;
        syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, NULL, sizeof all);
        for (;;) work_outer(1), usleep(100);
      } else return NULL;
    }
  }
}

/** Modes that have to do with descriptors. */
static void *catcher(void *argument) {
  const char *mode = argument;
  int number;
  if (strcmp(mode, "swap") == 0)
    for (;;) close(catch_file("/memfd:safepoke", &number)), dup2(victim, number), usleep(200), close(number);
  if (strcmp(mode, "close") == 0)
    for (;;) close(catch_file("/memfd:safepoke", &number)), close(number);
  if (strcmp(mode, "seal") == 0)
    for (;;) {
      int mine = catch_file("/memfd:safepoke", &number);
      fcntl(mine, F_ADD_SEALS, any() & 1 ? F_SEAL_SEAL : F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE);
      close(mine);
    }
  if (strcmp(mode, "code") == 0) {
    int mine = catch_file("/memfd:safepoke-code", &number);
    for (;;) {
      struct stat now;
      if (fstat(mine, &now) != 0 || now.st_size == 0) continue;
      char *code = mmap(NULL, now.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, mine, 0);
      if (code != MAP_FAILED)
        for (;;) noise((uintptr_t)code + now.st_size / 2, (uintptr_t)code + now.st_size, 64), usleep(1000);
    }
  }
  for (;;) {
    int mine = catch_file("/memfd:safepoke", &number);
    for (int i = 0; i < 2000; i++) {
      if (ftruncate(mine, 0) != 0) fallocate(mine, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 1L << 40);
      usleep(500);
    }
    close(mine);
  }
  return NULL;
}

/** Rewrites what lies below the first thread's stack pointer, where a frame is laid that leads back, once that thread only waits. */
static volatile int waits;
static void *stacker(void *leader) {
  while (!waits) usleep(50);
  for (;;) {
    for (uintptr_t at = (uintptr_t)leader - 3072; at < (uintptr_t)leader - 256; at += 8) *(volatile uint64_t *)at ^= any();
    usleep(50);
  }
  return NULL;
}

/** Writes our own code, so that a thread that is lent never comes back, or does something else. */
static void *coder(void *unused) {
  struct range m[4];
  for (int at = find(m, 1, "libc.so", "r-xp"); at > 0; at = 0) {
    while (find(m + 1, 1, "/memfd:safepoke", "rw-s") == 0);
    uintptr_t page = (uintptr_t)work_inner & -PAGE;
    mprotect((void *)page, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    for (;;) {
      volatile unsigned char *code = (void *)work_inner;
      code[any() % 5] = any();
      usleep(1000);
    }
  }
  return unused;
}

static void *forker(void *unused) {
  for (;;) {
    pid_t child = fork();
    if (child == 0) {
      for (int i = 0; i < 1000; i++) work_outer(i);
      _exit(0);
    }
    waitpid(child, NULL, 0);
  }
  return unused;
}
static void *nothing(void *unused) {
  work_outer(1);
  return unused;
}
static void *threader(void *unused) {
  for (;;) {
    pthread_t t[8];
    for (int i = 0; i < 8; i++) pthread_create(&t[i], NULL, nothing, NULL);
    for (int i = 0; i < 8; i++) pthread_join(t[i], NULL);
  }
  return unused;
}

/** A session that was killed has left something, it says: a page, a journal, code into which a function jumps. */
static void forge(const char *victim_path) {
  int file = memfd_create("safepoke", 0);
  size_t size = 8 << 20;
  if (file < 0 || ftruncate(file, 2 * PAGE) != 0) return;
  char *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  mmap(page + 2 * PAGE, size - 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  uint64_t *journal = (void *)(page + 2 * PAGE), *words = (void *)page;
  struct range text[1];
  find(text, 1, "hostile", "r-xp");
  words[JOURNAL / 8] = (uint64_t)journal;
  words[TRACER / 8] = any() & 1 ? 1 : 999999;
  words[MAPPED / 8] = any() % 112;
  for (int i = 0; i < 222; i++) words[MAPPED / 8 + 1 + i] = i & 1 ? size : text[0].start;
  uint64_t count = any() & 1 ? 1ULL << (4 + any() % 24) : 16;
  uint64_t head[] = {0x346c616e72756f6aULL, text[0].start, text[0].start, any() % 4 ? 8 : 1ULL << 20, 0, 4096,
                     any() % 4 ? 4096 : 1ULL << 40, 1, count, any() % 2 ? 0 : count};
  memcpy(journal, head, sizeof head);
  uint64_t *at = journal + sizeof head / 8;
  *at++ = any() & 1 ? text[0].start : (uint64_t)page, *at++ = size, *at++ = 1;
  for (uint64_t i = 0; i < count && (char *)(at + 2) < page + size; i++) {
    *at++ = text[0].start + i * (any() % 8);
    *at++ = any();
  }
  (void)victim_path;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  const char *mode = argv[1];
  self = argv[0];
  state ^= (uint64_t)getpid() << 20;
  if (geteuid() == 0 && (setgroups(0, NULL) != 0 || setresgid(NOBODY, NOBODY, NOBODY) != 0 || setresuid(NOBODY, NOBODY, NOBODY) != 0))
    return 2;
  victim = open(argv[2], O_PATH);
  if (victim < 0) return 2;
  lowest = dup(victim);
  close(lowest);
  signal(SIGSEGV, ignored);
  signal(SIGBUS, ignored);
  signal(SIGILL, ignored);
  pthread_t t;
  for (int i = 0; i < 2; i++) pthread_create(&t, NULL, busy, NULL);
  static const char *const files[] = {"swap", "close", "seal", "code", "truncate", NULL};
  static const char *const inside[] = {"block", "counts", "places", "buffer", "object", "asks", "calls-all", "deaf", NULL};
  if (strcmp(mode, "forge") == 0) forge(argv[2]);
  else if (strcmp(mode, "stack") == 0) pthread_create(&t, NULL, stacker, (void *)__builtin_frame_address(0));
  else if (strcmp(mode, "text") == 0) pthread_create(&t, NULL, coder, NULL);
  else if (strcmp(mode, "fork") == 0) pthread_create(&t, NULL, forker, NULL);
  else if (strcmp(mode, "threads") == 0) pthread_create(&t, NULL, threader, NULL);
  else if (isOneOf(mode, files)) pthread_create(&t, NULL, catcher, argv[1]);
  else if (isOneOf(mode, inside)) pthread_create(&t, NULL, insider, argv[1]);
  else if (strcmp(mode, "exec") != 0 && strcmp(mode, "die") != 0) pthread_create(&t, NULL, scribbler, argv[1]);
  printf("%d\n", getpid());
  fflush(stdout);
  waits = 1;
  if (strcmp(mode, "exec") == 0 || strcmp(mode, "die") == 0) {
    struct range m[1];
    while (find(m, 1, "/memfd:safepoke", "") == 0) usleep(100);
    usleep(any() % 150000);
    if (strcmp(mode, "die") == 0) syscall(any() & 1 ? SYS_exit_group : SYS_exit, 1);
    execl(self, self, "fork", argv[2], NULL);
  }
  for (;;) pause();
}
