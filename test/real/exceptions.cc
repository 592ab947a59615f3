// Exceptions through every sort of frame, and much of libstdc++; prints what must be the same each time.
#include <algorithm>
#include <any>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <future>
#include <iomanip>
#include <iostream>
#include <map>
#include <numeric>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <unistd.h>
#include <vector>

struct Failure : std::runtime_error {
  using runtime_error::runtime_error;
};

[[gnu::noinline]] int deep(int n) {
  std::string held(30, 'x');
  if (n == 0) throw Failure("deep");
  return deep(n - 1) + int(held.size());
}

[[gnu::noinline]] int catches(int n) {
  try {
    return deep(n);
  } catch (const Failure &failure) {
    return int(std::strlen(failure.what()));
  }
}

[[gnu::noinline]] void throwsAgain() {
  try {
    std::vector<int>().at(3);
  } catch (...) {
    throw;
  }
}

template <class F> void report(F f) {
  try {
    f();
  } catch (const std::exception &error) {
    std::cout << error.what() << '\n';
  }
}

int main() {
  std::map<std::string, std::vector<int>> groups;
  for (int i = 0; i < 2000; i++) groups[std::to_string(i % 97)].push_back(i);
  long sum = 0;
  for (auto &[name, members] : groups) sum += std::accumulate(members.begin(), members.end(), 0L);
  std::cout << sum << '\n';
  int total = 0;
  for (int i = 0; i < 200; i++) total += catches(i % 10);
  std::cout << total << '\n';
  report(throwsAgain);
  report([] { std::any_cast<std::string>(std::any(3)); });
  report([] { std::stoi("zz"); });
  report([] { std::rethrow_exception(std::make_exception_ptr(Failure("kept"))); });
  report([] {
    try {
      deep(4);
    } catch (...) {
      std::throw_with_nested(Failure("nested"));
    }
  });
  report([] {
    std::ifstream file;
    file.exceptions(std::ios::failbit);
    file.open("/nonexistent");
  });
  std::smatch match;
  std::string text = "xxabbbc";
  std::cout << std::regex_search(text, match, std::regex("a(b+)c")) << match[1] << '\n';
  std::atomic<long> counted{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&counted] {
      for (int k = 0; k < 300; k++) counted += catches(k % 7);
    });
  }
  for (auto &thread : threads) thread.join();
  std::cout << counted << '\n';
  report([] { std::async(std::launch::async, []() -> int { return deep(2); }).get(); });
  std::stringstream stream;
  stream << std::fixed << std::setprecision(3) << 3.14159 << ' ' << std::hex << 255;
  std::cout << stream.str() << std::endl;
  std::set_terminate([] {
    std::puts("terminated");
    std::fflush(stdout);
    _exit(7);
  });
  []() noexcept { deep(2); }();
}
