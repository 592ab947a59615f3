// Which exits fit: shares of functions by program and flags, and the reasons for the rest.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseElf } from '../elf/index.js';
import { functionsOf } from '../symbols/index.js';
import { exitShares, planModule, type ExitShares } from '../x86/index.js';
import { renderTable } from './table.js';

/** Debian's programs and libraries, as they are installed. */
const PROGRAMS = [
  '/usr/bin/redis-server',
  '/usr/lib/postgresql/15/bin/postgres',
  '/usr/sbin/nginx',
  process.execPath,
  '/lib/x86_64-linux-gnu/libc.so.6',
  '/usr/lib/x86_64-linux-gnu/libssl.so.3',
  '/usr/lib/x86_64-linux-gnu/libcrypto.so.3',
  '/usr/lib/x86_64-linux-gnu/libsqlite3.so.0',
  '/usr/lib/x86_64-linux-gnu/libstdc++.so.6',
];
const LEVELS = ['-O0', '-O1', '-Og', '-Os', '-O2', '-O3'] as const;
const COMPILERS = [
  ['g++', ...LEVELS, '-O2 -fcf-protection=full', '-O2 -flto'],
  ['clang++', '-O0', '-O1', '-O2', '-Os'],
] as const;
/** V8's compiled builtins, which are not traced (managed-code): they would count as native functions. */
const MANAGED = 'Builtins_';

/** Templates of the C++ library: a thousand functions and more, as compilers make them of code that people write. */
const SOURCE = `
#include <algorithm>
#include <deque>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <numeric>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>
using Value = std::variant<int, double, std::string, std::vector<int>>;
static std::string text(const Value &value) {
  return std::visit([](const auto &v) -> std::string {
    std::ostringstream out;
    if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::vector<int>>) for (int i : v) out << i << ' ';
    else out << v;
    return out.str();
  }, value);
}
int main(int argc, char **argv) {
  std::map<std::string, std::vector<Value>> all;
  std::unordered_map<int, std::string> names;
  std::set<std::string, std::greater<>> sorted;
  std::deque<double> numbers;
  std::mt19937 random(argc);
  std::regex word("([a-z]+)-([0-9]*)|(x|y)*z"), line("^\\\\s*(\\\\w+)\\\\s*=\\\\s*(.*)$");
  for (int i = 0; i < argc; i++) {
    std::smatch match;
    std::string name = argv[i];
    all[name].push_back(i);
    all[name].emplace_back(std::vector<int>(i));
    names.emplace(i, name);
    sorted.insert(name);
    numbers.push_back(std::normal_distribution<>(i, 2)(random));
    if (std::regex_search(name, match, word) || std::regex_match(name, match, line)) all[match[1]].push_back(match.str());
    std::thread([&] { std::iota(numbers.begin(), numbers.end(), 0.5); }).join();
    if (std::filesystem::exists(name)) for (auto &entry : std::filesystem::directory_iterator(".")) sorted.insert(entry.path().string());
  }
  std::stable_sort(numbers.begin(), numbers.end());
  std::vector<std::function<int(int)>> functions{[&](int n) { return n + argc; }, [](int n) { return n * 2; }};
  for (auto &[name, values] : all) for (auto &value : values) std::cout << name << text(value) << functions[name.size() % 2](1);
}`;

function sharesOf(path: string): ExitShares {
  const elf = parseElf(new Uint8Array(readFileSync(realpathSync(path))), path);
  const all = functionsOf(elf);
  const plan = planModule(elf, all);
  const traced = new Set(
    all.filter((_, i) => typeof plan.verdicts.at(i) !== 'string').map((f) => f.addressNumber),
  );
  const managed = elf.mentions(MANAGED)
    ? new Set(all.filter((f) => f.name.startsWith(MANAGED)).map((f) => f.addressNumber))
    : new Set<number>();
  const { ranges } = plan.landings;
  return exitShares(
    plan,
    // What no symbol names has an entry all the same, which nobody can ask for.
    (address) => traced.has(address) || ranges.functions[ranges.startingAt(address)] < 0,
    (address) => !managed.has(address),
  );
}

const percent = (part: number, whole: number): string => ((100 * part) / Math.max(whole, 1)).toFixed(1);

function row(name: string, shares: ExitShares): string[] {
  const { functions, fits, reasons, both, oneStore, exits } = shares;
  let sum = 0;
  const columns = (['at', 'behind', 'hole', 'branches', 'made', 'copy'] as const).map((fit) => {
    sum += fits[fit];
    return percent(sum, functions);
  });
  const rest = [...reasons].sort((a, b) => b[1] - a[1]).map(([reason, n]) => `${n} ${reason}`);
  return [
    name,
    String(functions),
    ...columns,
    percent(both, functions),
    percent(oneStore, exits),
    rest.join(', '),
  ];
}

/** A table of the programs that are there, and of one that is compiled into `directory` with each compiler and flag. */
export function benchExits(directory: string): string {
  const rows = PROGRAMS.filter((path) => existsSync(path)).map((path) => row(basename(path), sharesOf(path)));
  const source = join(directory, 'exits.cc');
  writeFileSync(source, SOURCE);
  for (const [compiler, ...levels] of COMPILERS)
    for (const flags of levels) {
      const program = join(directory, 'exits');
      execFileSync(compiler, ['-std=c++17', '-w', '-pthread', ...flags.split(' '), '-o', program, source]);
      rows.push(row(`${compiler} ${flags}`, sharesOf(program)));
    }
  return renderTable(
    'Functions all of whose exits fit, %: each column adds a way; both: and the entry; store: exits that are one store',
    ['program', 'functions', 'at', 'behind', 'hole', 'branches', 'made', 'copy', 'both', 'store', 'the rest'],
    rows,
  );
}
