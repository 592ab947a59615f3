// Exceptions through traced frames: caught, thrown again, thrown while destructors run, through a library's callback.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>

#define NOINLINE __attribute__((noinline, noclone))
static std::atomic<long> thrower_count, middle_count, catcher_count, guard_count, compare_count, plain_count;
static volatile long sink;

extern "C" {
NOINLINE void plain(long n) {
  plain_count++;
  sink += n;
}

NOINLINE void guarded(long n) {
  guard_count++;
  plain(n);
}
}

struct Guard {
  long n;
  bool throws;
  ~Guard() noexcept(false) {
    guarded(n);
    if (throws) {
      try {
        throw 7;
      } catch (int) {
        plain(1);
      }
    }
  }
};

extern "C" {
NOINLINE long thrower(long n) {
  thrower_count++;
  Guard guard{n, n % 3 == 0};
  if (n % 2) throw std::runtime_error(std::to_string(n));
  throw n;
}

NOINLINE long middle(long n, long depth) {
  middle_count++;
  Guard guard{n, depth % 4 == 0};
  if (depth > 0) return middle(n, depth - 1) + 1;
  return thrower(n);
}

NOINLINE long catcher(long n) {
  catcher_count++;
  try {
    try {
      return middle(n, 10);
    } catch (const std::runtime_error &) {
      plain(n);
      throw;
    }
  } catch (const std::exception &e) {
    return std::atol(e.what());
  } catch (long v) {
    return v;
  }
}

NOINLINE int compare(const void *a, const void *b) {
  long n = compare_count++;
  if (n % 20 == 19) throw 5;
  return *(const int *)a - *(const int *)b;
}
}

static void work() {
  for (long i = 0; i < 300; i++) {
    if (catcher(i) != i) std::abort();
    int numbers[32];
    for (int k = 0; k < 32; k++) numbers[k] = (k * 7) % 32;
    try {
      std::qsort(numbers, 32, sizeof(int), compare);
    } catch (int) {
      plain(i);
    }
  }
}

int main(int argc, char **) {
  work();
  if (argc == 1) {
    std::thread a(work), b(work);
    a.join();
    b.join();
  }
  std::printf("thrower=%ld\nmiddle=%ld\ncatcher=%ld\nguarded=%ld\ncompare=%ld\nplain=%ld\n", thrower_count.load(),
              middle_count.load(), catcher_count.load(), guard_count.load(), compare_count.load(), plain_count.load());
}
