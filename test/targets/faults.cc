// Faults that become exceptions (-fnon-call-exceptions): the handler throws, through the instruction that faulted. Goes on until its input
// ends; says how often a result was wrong.
#include <csignal>
#include <cstdio>
#include <poll.h>
#include <xmmintrin.h>

#define NOINLINE __attribute__((noinline, noclone))

struct Node {
  long pad[3];
  long value;
  double ratio;
  __m128i wide;
  Node *next;
  long (*call)(Node *, long);
};

static void on_fault(int number) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number);
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  throw 42L;
}

extern "C" {
NOINLINE long load(Node *p, long) { return p->value; }
NOINLINE long scaled(Node *p, long k) { return p->value * k + 12345; }
NOINLINE long second(Node *p, long k) { return k + 100 + p->value; }
NOINLINE long store(Node *p, long k) { p->value = k; return k; }
NOINLINE long stores_last(Node *p, long k) { long a = k * 3 + 1; if (a > 1000) return a; p->pad[1] = a; return 0; }
NOINLINE long real(Node *p, long k) { return (long)(p->ratio * (double)k); }
NOINLINE long wide(Node *p, long) { __m128i a = p->wide; p->wide = a; return a[0]; }
NOINLINE long divides(Node *, long k) { return 1000 / k; }
NOINLINE long divides_first(long k, long n) { return n % k; }
NOINLINE long through(Node *p, long k) { return p->call(p, k); }
NOINLINE long chained(Node *p, long k) { return p->next->next->value + k; }
NOINLINE long guarded(Node *p, long k) { struct Guard { long &a; ~Guard() { a++; } }; long n = k; { Guard guard{n}; n += p->value; } return n; }
NOINLINE long branches(Node *p, long k) { if (k > 5) return p->value; if (k > 3) return p->pad[0]; return p->pad[1] + 1; }
NOINLINE long caught(Node *p, long k) { try { return p->value + k; } catch (long x) { return x + 1; } }
NOINLINE long divided(Node *p, long k) { return divides_first(p == nullptr ? 0 : k, 100); }

static long (*const functions[])(Node *, long) = {load, scaled, second, store, stores_last, real, wide, divides, through, chained, guarded, branches, caught, divided};

NOINLINE long call(long (*f)(Node *, long), Node *p, long k) {
  try {
    return f(p, k) + 1;
  } catch (long x) {
    return x;
  }
}
}

int main() {
  signal(SIGSEGV, on_fault);
  signal(SIGFPE, on_fault);
  Node good{};
  good.next = &good;
  good.call = load;
  long wrong = 0, expected = 0, sum = 0;
  puts("ready");
  fflush(stdout);
  pollfd input{0, POLLIN, 0};
  for (int round = 0; round < 200 || poll(&input, 1, 0) == 0; round++) {
    sum = 0;
    for (auto f : functions) {
      good.value = 3;
      good.ratio = 2.5;
      long a = call(f, &good, 4);
      long b = call(f, nullptr, 0);
      sum = sum * 31 + a * 7 + b;
    }
    if (round == 0) expected = sum;
    wrong += sum != expected;
  }
  printf("wrong %ld of %ld\n", wrong, expected);
}
