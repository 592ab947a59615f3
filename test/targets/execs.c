// A program that becomes another, again and again: itself, unless another is named. Each tells what it was given and what it finds, so that
// its output is to be the same whether it is traced or not.
//
//   execs NUMBER HOW [PROGRAM]   NUMBER times more; HOW: a letter of `ways` for the function that does it, or * for each in turn, before it
//                                t: in a second thread, s: in a signal handler, f: after failing in many ways, k: after children that do so,
//                                h: with a handler that does it, too
//                                q: without a word of what it finds, but at the end; w: when standard input has ended
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

__attribute__((noinline, noclone)) static long step(long n) {
  __asm__ volatile("" : "+r"(n));
  return n + 1;
}

static const char ways[] = "vVpPlLedaxX";
static char number[16], *how, *program;

static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static void tell_files(void) {
  DIR *folder = opendir("/proc/self/fd");
  int files[64], count = 0;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL && count < 64;)
    if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(folder)) files[count++] = atoi(entry->d_name);
  closedir(folder);
  qsort(files, count, sizeof *files, compare);
  printf("files");
  for (int i = 0; i < count; i++) printf(" %d", files[i]);
  printf("\n");
}

static void tell_status(void) {
  char line[256];
  FILE *status = fopen("/proc/self/status", "r");
  while (fgets(line, sizeof line, status))
    if (strncmp(line, "SigBlk", 6) == 0 || strncmp(line, "SigIgn", 6) == 0) fputs(line, stdout);
  fclose(status);
}

static void tell(int argc, char **argv) {
  printf("part");
  for (int i = 0; i < argc; i++) printf(" <%s>", argv[i]);
  printf("\n");
  for (char **entry = environ; entry != NULL && *entry != NULL; entry++)
    if ((*entry)[0] != '_' || (*entry)[1] != '=') printf("  %s\n", *entry);
  tell_files();
  tell_status();
  fflush(stdout);
}

static void execute(char way) {
  char *argv[] = {program, number, how, "3", "4", "5", "6", "7", "eight", NULL};
  char *own[] = {"ONE=1", "PATH=/nowhere", "LAST=of all", NULL};
  // What shells pass on is what they were given.
  char **given = getenv("LD_PRELOAD") != NULL || getenv("KEEP") != NULL ? environ : own;
  int file;
  switch (way) {
    case 'v': execve(program, argv, given); break;
    case 'V': execv(program, argv); break;
    case 'p': execvpe(program, argv, given); break;
    case 'P': execvp(program, argv); break;
    case 'l': execl(program, program, number, how, "3", "4", "5", "6", "7", "eight", NULL); break;
    case 'L': execlp(program, program, number, how, "3", "4", "5", "6", "7", "eight", NULL); break;
    case 'e': execle(program, program, number, how, "3", "4", "5", "6", "7", "eight", NULL, given); break;
    case 'd':
      file = open(program, O_RDONLY | O_CLOEXEC);
      fexecve(file, argv, given);
      break;
    case 'a':
      execveat(AT_FDCWD, program, argv, given, 0);
      break;
    case 'x': syscall(SYS_execve, program, argv, given); break;
    case 'X': syscall(SYS_execveat, AT_FDCWD, program, argv, given, 0); break;
    case 'r': {
      long result;
      register long r10 __asm__("r10") = 0;
      __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_execve), "D"(program), "S"(argv), "d"(given), "r"(r10) : "rcx", "r11", "memory");
    }
  }
  printf("not executed: %s\n", strerror(errno));
  exit(9);
}

static char chosen;

static void *in_thread(void *unused) {
  execute(chosen);
  return unused;
}

static void in_handler(int signal) {
  (void)signal;
  execute(chosen);
}

// An address at which there is nothing.
static volatile long nowhere = 8;

static void say(long result) { printf("%ld %s\n", result, strerror(errno)); }

static void fail(void) {
  char *argv[] = {"x", NULL}, *bad[] = {(char *)nowhere, NULL}, *large[3] = {"x", NULL, NULL};
  say(execve("/no/such/file", argv, environ));
  say(execvp("no-such-program", argv));
  say(execlp("no-such-program", "x", NULL));
  say(execl("/etc/passwd", "x", NULL));
  say(execv("/etc", argv));
  say(execve((char *)nowhere, argv, environ));
  say(execve(program, bad, environ));
  say(execve(program, argv, bad));
  say(execve(program, argv, (char **)nowhere));
  say(fexecve(1000, argv, environ));
  say(execveat(1000, "", argv, environ, AT_EMPTY_PATH));
  say(syscall(SYS_execve, "", argv, environ));
  large[1] = malloc(1 << 20);
  memset(large[1], 'x', (1 << 20) - 1);
  large[1][(1 << 20) - 1] = 0;
  say(execv(program, large));
  free(large[1]);
  tell_files();
  tell_status();
}

static void beget(void) {
  char *show[] = {program, "0", "n", NULL}, *shown[] = {"CHILD=1", NULL};
  pid_t pid;
  fflush(stdout);
  for (int i = 0; i < 4; i++) {
    if (i == 0) {
      if ((pid = fork()) == 0) execve(program, show, environ), _exit(1);
    } else if (i == 1) {
      if ((pid = vfork()) == 0) execve(program, show, shown), _exit(1);
    } else if (i == 2) {
      if ((pid = vfork()) == 0) execl(program, program, "0", "n", NULL), _exit(1);
    } else {
      posix_spawn(&pid, program, NULL, NULL, show, shown);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("child %d\n", status);
    fflush(stdout);
  }
}

int main(int argc, char **argv) {
  int left = argc > 1 ? atoi(argv[1]) : 0;
  how = argc > 2 ? argv[2] : "n";
  int is_quiet = strchr(how, 'q') != NULL;
  program = argc > 3 && argv[3][0] == '/' ? argv[3] : argv[0];
  if (strchr(how, 'w') != NULL)
    while (getchar() != EOF) continue;
  if (!is_quiet || left == 0) tell(argc, argv);
  long n = 0;
  for (int i = 0; i < 10 + left; i++) n = step(n);
  if (n != 10 + left) return 1;
  if (strchr(how, 'k') != NULL) beget();
  if (strchr(how, 'f') != NULL) fail();
  if (left == 0) {
    printf("the end\n");
    return 7;
  }
  snprintf(number, sizeof number, "%d", left - 1);
  chosen = how[strlen(how) - 1];
  if (chosen == '*') chosen = ways[left % (sizeof ways - 1)];
  fflush(stdout);
  if (strchr(how, 't') != NULL) {
    pthread_t thread;
    pthread_create(&thread, NULL, in_thread, NULL);
    pthread_join(thread, NULL);
  } else if (strpbrk(how, "sh") != NULL) {
    struct sigaction action = {.sa_handler = in_handler};
    sigaction(SIGUSR1, &action, NULL);
    if (strchr(how, 's') != NULL) raise(SIGUSR1);
  }
  execute(chosen);
}
