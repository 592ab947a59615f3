// Four threads that allocate, copy, format and sort without end; a wrong byte ends the program with status 1.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int compare(const void *a, const void *b) {
  int x = *(const int *)a, y = *(const int *)b;
  return (x > y) - (x < y);
}

static void wrong(const char *what) {
  fprintf(stderr, "wrong: %s\n", what);
  _exit(1);
}

static void *work(void *argument) {
  unsigned seed = (unsigned)(uintptr_t)argument;
  for (unsigned round = 0;; round++) {
    size_t length = 16 + rand_r(&seed) % 5000;
    unsigned char *bytes = malloc(length), *copy = calloc(1, length);
    memset(bytes, (int)(round & 0xff), length);
    memcpy(copy, bytes, length);
    bytes = realloc(bytes, length * 2);
    if (memcmp(bytes, copy, length) != 0) wrong("copy");
    char text[64], again[64];
    snprintf(text, sizeof text, "%u %s %.3f", round, "text", round / 8.0);
    unsigned read;
    double number;
    if (sscanf(text, "%u %60s %lf", &read, again, &number) != 3 || read != round || strcmp(again, "text") != 0)
      wrong("format");
    int numbers[64];
    for (int i = 0; i < 64; i++) numbers[i] = (int)rand_r(&seed);
    qsort(numbers, 64, sizeof numbers[0], compare);
    for (int i = 1; i < 64; i++) if (numbers[i - 1] > numbers[i]) wrong("order");
    char *duplicate = strdup(text);
    if (strlen(duplicate) != strlen(text) || strchr(duplicate, 't') == NULL) wrong("string");
    free(duplicate);
    free(copy);
    free(bytes);
    if (round % 8 == 0) nanosleep(&(struct timespec){0, 100000}, NULL);
  }
  return NULL;
}

int main(void) {
  for (uintptr_t i = 1; i < 4; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, work, (void *)i);
  }
  work((void *)4);
}
