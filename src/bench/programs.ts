// Builds what is measured, from the sources in bench/targets/.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const TARGETS = fileURLToPath(new URL('../../bench/targets/', import.meta.url));
const CALLS = join(TARGETS, 'calls.c');

/** Compiles; undefined if the compiler is not there. @throws Error where the compiler complains */
function compile(compiler: string, args: readonly string[], output: string): string | undefined {
  const { error, status, stderr } = spawnSync(compiler, [...args, '-o', output], { encoding: 'utf8' });
  if (error !== undefined) return undefined;
  if (status !== 0) throw new Error(`${compiler} ${args.join(' ')}: ${stderr}`);
  return output;
}

/** bench/targets/calls.c, the same source for every tracer. */
export function buildCalls(
  directory: string,
  variant: string,
  flags: readonly string[],
  compiler = 'gcc',
): string | undefined {
  return compile(compiler, ['-O2', '-pthread', ...flags, CALLS], join(directory, `calls-${variant}`));
}

/** bench/targets/scale.c: many threads. */
export function buildScale(directory: string): string | undefined {
  return compile('gcc', ['-O2', '-pthread', join(TARGETS, 'scale.c')], join(directory, 'scale'));
}

/** bench/targets/delay.c: how late signals come. */
export function buildDelay(directory: string): string | undefined {
  return compile('gcc', ['-O2', '-pthread', join(TARGETS, 'delay.c')], join(directory, 'delay'));
}

/**
 * A program of `count` small functions, which it calls in turn, with naps, without end; with an argument it only tells the
 * time at which `main` began, in nanoseconds of CLOCK_MONOTONIC, and ends.
 */
export function buildMany(
  directory: string,
  count: number,
  variant: string,
  flags: readonly string[],
): string | undefined {
  const lines = ['#include <stdint.h>', '#include <stdio.h>', '#include <time.h>', '#include <unistd.h>'];
  for (let i = 0; i < count; i++) {
    // Branches and constants differ, so that the compiler folds no two into one.
    lines.push(
      `uint64_t function_${i}(uint64_t x) { if (x & ${1 + (i % 7)}) x += ${i}; return x * ${2 * i + 3}u ^ x >> ${1 + (i % 13)}; }`,
    );
  }
  lines.push('static uint64_t (*const all[])(uint64_t) = {');
  for (let i = 0; i < count; i++) lines.push(`function_${i},`);
  lines.push(
    '};',
    'volatile uint64_t sink;',
    'int main(int argc, char **argv) {',
    '  uint64_t x = argv != NULL;',
    '  struct timespec t;',
    '  clock_gettime(CLOCK_MONOTONIC, &t);',
    '  if (argc > 1) return printf("main %llu\\n", t.tv_sec * 1000000000ull + t.tv_nsec) < 0;',
    '  for (;;) {',
    '    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) x = all[i](x);',
    '    sink = x;',
    '    if (getppid() == 1) return 0;',
    '    usleep(20000);',
    '  }',
    '}',
  );
  const source = join(directory, `many-${count}.c`);
  writeFileSync(source, `${lines.join('\n')}\n`);
  // -O0: an optimising compiler takes minutes for so many.
  return compile('gcc', ['-O0', ...flags, source], join(directory, `many-${variant}`));
}
