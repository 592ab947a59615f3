// Jobs of real programs: what they write and how they end is compared with and without every function of every module traced.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { main } from './targets.test.support.js';

/** A job: its command, and what Debian calls the package that it needs. */
export interface Job {
  readonly name: string;
  readonly needs: string;
  readonly command: (place: string) => readonly string[];
}

const MOST_OUTPUT = 1 << 28;
/** A job that takes longer hangs. */
const PATIENCE_MS = 300_000;

const shell = (script: string): readonly string[] => ['sh', '-c', script];

/** Those that a machine has on which the tests run. */
export const USUAL_JOBS: readonly Job[] = [
  {
    name: 'gcc compiles C',
    needs: 'gcc',
    // The compiler proper: what the driver starts is not traced.
    command: (place) => [compilerOf('cc1', 'gcc'), '-quiet', '-O2', '-o', '-', `${place}/a.c`],
  },
  {
    name: 'g++ compiles C++',
    needs: 'g++',
    command: (place) => [compilerOf('cc1plus', 'g++'), '-quiet', '-O1', '-o', '-', `${place}/b.cc`],
  },
  {
    name: 'perl counts words',
    needs: 'perl',
    command: (place) => [
      'perl',
      '-e',
      'my %h; while (<>) { $h{$_}++ for split } print "$_ $h{$_}\\n" for sort keys %h',
      `${place}/text`,
    ],
  },
  {
    name: 'perl dies and catches it',
    needs: 'perl',
    command: (place) => [
      'perl',
      '-ne',
      'print if /(\\d+) .*(x{5,9})$/ and eval { die "a" if $1 % 3; 1 }',
      `${place}/text`,
    ],
  },
  {
    name: 'python reads, hashes, packs, raises',
    needs: 'python3',
    command: (place) => [
      '/usr/bin/python3',
      '-c',
      `import json, hashlib, zlib, decimal
d = open("${place}/text", "rb").read()
print(hashlib.sha256(d).hexdigest(), len(zlib.compress(d)), decimal.Decimal(2).sqrt(), json.dumps(list(range(50))))
for i in range(2000):
  try: {}[i]
  except KeyError: pass`,
    ],
  },
  {
    name: 'python works in threads',
    needs: 'python3',
    command: () => [
      '/usr/bin/python3',
      '-c',
      `import threading, queue
q = queue.Queue()
ts = [threading.Thread(target=lambda: [q.put(i) for i in range(200)]) for _ in range(8)]
[t.start() for t in ts]; [t.join() for t in ts]
print(q.qsize())`,
    ],
  },
  {
    name: 'sqlite3 groups and sorts',
    needs: 'sqlite3',
    command: () => [
      'sqlite3',
      ':memory:',
      'create table t(a, b); with recursive c(x) as (select 1 union all select x + 1 from c where x < 5000) insert into t select x, x * 7 % 101 from c; create index i on t(b); select b, count(*), sum(a) from t group by b order by 2, 1;',
    ],
  },
  {
    name: 'luajit compiles and runs',
    needs: 'luajit',
    command: () => [
      'luajit',
      '-e',
      'local s = 0; for i = 1, 3e6 do s = (s + i * i) % 1000003 end; local ok = pcall(error, "x"); local c = coroutine.wrap(function() for i = 1, 9 do coroutine.yield(i) end end); print(s, ok, c(), c())',
    ],
  },
  { name: 'sort sorts', needs: 'coreutils', command: (place) => ['sort', '-k3n', `${place}/text`] },
  {
    name: 'awk sums up',
    needs: 'mawk',
    command: (place) => [
      'awk',
      '{ s[$3] += $2 } END { for (k in s) t += s[k] * k; print t }',
      `${place}/text`,
    ],
  },
  { name: 'gzip packs', needs: 'gzip', command: (place) => ['gzip', '-9nc', `${place}/text`] },
  {
    name: 'tar packs and lists',
    needs: 'tar',
    command: (place) => ['tar', '--sort=name', '--mtime=@0', '-C', place, '-cf', '-', 'text', 'a.c'],
  },
  {
    name: 'node computes, throws, makes keys',
    needs: 'nodejs',
    command: () => [
      process.execPath,
      '-e',
      'const c = require("crypto"); let s = 0; for (let i = 0; i < 1e5; i++) { try { if (i % 999 === 0) throw 1; s += i } catch { s-- } } console.log(s, c.createHash("sha256").update("a".repeat(1e5)).digest("hex"), c.generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey.asymmetricKeyType)',
    ],
  },
];

const OPENSSL_CIPHERS = [
  'aes-256-cbc',
  'aes-128-ctr',
  'camellia-128-cbc',
  'chacha20',
  'aria-128-cbc',
] as const;
const OPENSSL_DIGESTS = [
  'md5',
  'sha1',
  'sha256',
  'sha512',
  'sha3-512',
  'blake2b512',
  'sm3',
  'ripemd160',
] as const;
const KEY_DIGITS = 64;
const VECTOR_DIGITS = 32;

/** Further ones, for which more must be installed. */
export const FURTHER_JOBS: readonly Job[] = [
  ...OPENSSL_DIGESTS.map((digest) => ({
    name: `openssl makes a digest: ${digest}`,
    needs: 'openssl',
    command: (place: string) => ['openssl', 'dgst', `-${digest}`, `${place}/text`],
  })),
  ...OPENSSL_CIPHERS.map((cipher) => ({
    name: `openssl encrypts: ${cipher}`,
    needs: 'openssl',
    command: (place: string) => [
      ...[
        'openssl',
        'enc',
        `-${cipher}`,
        '-K',
        '0'.repeat(cipher.includes('128') ? KEY_DIGITS / 2 : KEY_DIGITS),
      ],
      ...['-iv', '0'.repeat(VECTOR_DIGITS), '-in', `${place}/text`],
    ],
  })),
  ...['rsa', 'ec -pkeyopt ec_paramgen_curve:prime256v1', 'ed25519', 'x448'].map((algorithm) => ({
    name: `openssl makes a key: ${algorithm}`,
    needs: 'openssl',
    command: (place: string) => [
      'openssl',
      'genpkey',
      '-algorithm',
      ...algorithm.split(' '),
      '-out',
      `${place}/key`,
    ],
  })),
  { name: 'xz packs', needs: 'xz-utils', command: (place) => ['xz', '-9', '-c', `${place}/text`] },
  { name: 'bzip2 packs', needs: 'bzip2', command: (place) => ['bzip2', '-c', `${place}/text`] },
  { name: 'zstd packs', needs: 'zstd', command: (place) => ['zstd', '-q', '-c', `${place}/text`] },
  {
    name: 'git looks through its history',
    needs: 'git',
    command: (place) => ['git', '--no-pager', '-C', place, 'diff', '--no-index', '--stat', 'a.c', 'b.cc'],
  },
  {
    name: 'ruby raises, and goes on in fibers',
    needs: 'ruby',
    command: () => [
      'ruby',
      '-e',
      'h = Hash.new(0); 5000.times { |i| h[i % 97] += i; begin; raise "x" if i % 500 == 0; rescue; h[0] += 1; end }; p h.sort.first(5); f = Fiber.new { 3.times { |i| Fiber.yield i }; 9 }; p f.resume, f.resume, f.resume, f.resume',
    ],
  },
  {
    name: 'ruby calls continuations',
    needs: 'ruby',
    command: () => [
      'ruby',
      '-e',
      'require "continuation"; k = nil; n = 0; callcc { |c| k = c }; n += 1; k.call if n < 50; p n',
    ],
  },
  {
    name: 'ocaml compiles',
    needs: 'ocaml-nox',
    command: (place) => ['ocamlc.opt', '-dlambda', '-c', `${place}/c.ml`],
  },
  {
    name: 'rustc compiles, LLVM and all',
    needs: 'rustc',
    command: (place) => ['rustc', '-O', '--emit', 'asm', '-o', '-', `${place}/d.rs`],
  },
  {
    name: 'clang compiles',
    needs: 'clang-14',
    command: (place) => ['clang-14', '-O2', '-S', '-o', '-', `${place}/a.c`],
  },
  { name: 'cmake lists', needs: 'cmake', command: () => ['cmake', '--help-module-list'] },
  { name: 'jq adds', needs: 'jq', command: () => ['jq', '-n', '[range(5000) | select(. % 3 == 0)] | add'] },
  { name: 'bc computes pi', needs: 'bc', command: () => shell('echo "scale=200; 4*a(1)" | bc -l') },
  {
    name: 'readelf reads',
    needs: 'binutils',
    command: () => ['readelf', '-a', '-W', '/lib/x86_64-linux-gnu/libc.so.6'],
  },
  { name: 'objdump disassembles', needs: 'binutils', command: () => ['objdump', '-d', '/bin/ls'] },
  {
    name: 'gdb looks for functions',
    needs: 'gdb',
    command: () => ['gdb', '-batch', '-ex', 'info functions main', '/usr/bin/sort'],
  },
  {
    name: 'javac compiles',
    needs: 'default-jdk-headless',
    command: (place) => ['javac', '-d', place, `${place}/E.java`],
  },
];

/** Where a compiler's own program is. */
function compilerOf(name: string, driver: string): string {
  return spawnSync(driver, [`-print-prog-name=${name}`], { encoding: 'utf8' }).stdout.trim();
}

const FUNCTIONS = 60;

/** A folder with what the jobs read; remove it. */
export function jobPlace(): string {
  const place = mkdtempSync(join(tmpdir(), 'safepoke-jobs-'));
  const each = (make: (i: number) => string, between = '\n', count = FUNCTIONS): string =>
    Array.from({ length: count }, (_, i) => make(i)).join(between);
  const write = (name: string, text: string): void => {
    writeFileSync(join(place, name), `${text}\n`);
  };
  write(
    'text',
    each((i) => `line ${i} ${(i * 7919) % 1009} some words and others ${'x'.repeat(i % 40)}`, '\n', 20_000),
  );
  write(
    'a.c',
    `int printf(const char *, ...);\n${each((i) => `static int f${i}(int x) { switch (x % 7) { case 0: return x * ${i + 1}; case 1: return x - ${i}; case 2: return x ^ ${i}; default: { int s = 0; for (int k = 0; k < x % 9; k++) s += k * ${i}; return s; } } }`)}\nint main(void) { long s = 0; for (int i = 0; i < 1000; i++) { ${each((i) => `s += f${i}(i);`, ' ')} } printf("%ld\\n", s); }`,
  );
  write(
    'b.cc',
    'template <int N> struct A { static int of(int x) { return x % (N + 1) ? A<N - 1>::of(x * N) : throw x; } }; template <> struct A<0> { static int of(int x) { return x; } }; int main(int c, char **) { try { return A<60>::of(c); } catch (int x) { return x; } }',
  );
  write(
    'c.ml',
    'let rec fib n = if n < 2 then n else fib (n - 1) + fib (n - 2)\nlet () = try if fib 20 > 0 then raise Not_found with Not_found -> print_int (fib 20)',
  );
  write(
    'd.rs',
    'use std::collections::HashMap; fn main() { let mut m: HashMap<String, i32> = HashMap::new(); for i in 0..100 { *m.entry((i % 17).to_string()).or_insert(0) += i; } println!("{}", m.len()); }',
  );
  write(
    'E.java',
    'public class E { public static void main(String[] a) { long s = 0; for (int i = 0; i < 1000; i++) try { if (i % 10 == 0) throw new RuntimeException(); s += i; } catch (RuntimeException e) { s -= 1; } System.out.println(s); } }',
  );
  return place;
}

/** How a job is traced. */
export const JOB_WAYS = [[], ['--exits', 'none'], ['--inside']] as const;

/** Runs the job by itself and traced. @throws AssertionError where anybody could tell the difference, or the program is missing */
export function runsAlike({ name, needs, command }: Job, place: string, way: readonly string[]): void {
  const words = command(place);
  const environment = { ...process.env, HOME: place, PYTHONHASHSEED: '0', PERL_HASH_SEED: '0' };
  const run = ([program, ...rest]: readonly string[]): ReturnType<typeof spawnSync> =>
    spawnSync(program, rest, {
      cwd: place,
      env: environment,
      timeout: PATIENCE_MS,
      maxBuffer: MOST_OUTPUT,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  const alone = run(words);
  assert.equal(alone.error, undefined, `${words[0]} is missing: apt-get install ${needs}`);
  const recording = ['-F', '*!*', '-o', join(place, 'trace.spk')];
  const traced = run([process.execPath, main, 'run', ...way, ...recording, '--', ...words]);
  assert.deepEqual(
    [traced.status, traced.signal],
    [alone.status, alone.signal],
    `${name}: ${String(traced.stderr)}`,
  );
  assert.ok(Buffer.from(traced.stdout).equals(Buffer.from(alone.stdout)), `${name}: another output`);
}

export function removePlace(place: string): void {
  rmSync(place, { recursive: true, force: true });
}
