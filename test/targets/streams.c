// A program that shares its standard streams with whoever traces it: it looks at them all the time, and notes in a file, FILE, each new
// state that it has seen. It writes BYTES to standard output meanwhile, and notes each write that fails.
// It begins to write when GO is there, a file. With "sets" it changes its streams itself before it ends: what it has set is to stay.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { STREAMS = 3, BLOCK = 4096, LEAST_LOOKS = 100 };

struct state {
  int flags;
  int is_terminal;
  struct termios terminal;
};

static FILE *notes;
static struct state last[STREAMS];

__attribute__((noinline)) void look(int round) {
  for (int fd = 0; fd < STREAMS; fd++) {
    struct state now;
    memset(&now, 0, sizeof now);
    now.flags = fcntl(fd, F_GETFL);
    now.is_terminal = tcgetattr(fd, &now.terminal) == 0;
    if (round > 0 && memcmp(&now, &last[fd], sizeof now) == 0) continue;
    last[fd] = now;
    fprintf(notes, "%d: flags %o, terminal %d %x %x %x %x\n", fd, now.flags, now.is_terminal, now.terminal.c_iflag,
            now.terminal.c_oflag, now.terminal.c_cflag, now.terminal.c_lflag);
  }
}

int main(int argc, char **argv) {
  if (argc < 4 || (notes = fopen(argv[1], "w")) == NULL) return 2;
  long bytes = atol(argv[2]);
  char block[BLOCK];
  memset(block, 'x', sizeof block);
  block[BLOCK - 1] = '\n';
  for (int round = 0; bytes > 0 || round < LEAST_LOOKS || access(argv[3], F_OK) != 0; round++) {
    look(round);
    if (bytes > 0 && access(argv[3], F_OK) == 0) {
      // A stop for ptrace may cut a write to a terminal short, as any stop does; no write may fail.
      for (ssize_t done = 0; done < BLOCK;) {
        ssize_t written = write(1, block + done, BLOCK - done);
        if (written < 0) {
          fprintf(notes, "write: %s\n", strerror(errno));
          break;
        }
        done += written;
      }
      bytes -= BLOCK;
    }
    nanosleep(&(struct timespec){0, 2000000}, NULL);
  }
  if (argc > 4 && strcmp(argv[4], "sets") == 0) {
    struct termios terminal;
    if (tcgetattr(0, &terminal) == 0) {
      terminal.c_lflag &= ~(tcflag_t)ECHO;
      tcsetattr(0, TCSANOW, &terminal);
    }
    for (int fd = 0; fd < STREAMS; fd++) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  }
  return fclose(notes) == 0 ? 0 : 1;
}
