import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Compiles and links one C program (or, with `-shared`, a shared object) with gcc and returns the file's bytes. */
export function compile(source: string, ...flags: string[]): Uint8Array {
  return compileWith('gcc', 'c', source, flags);
}

/** The same for C++. */
export function compileCpp(source: string, ...flags: string[]): Uint8Array {
  return compileWith('g++', 'cc', source, flags);
}

function compileWith(compiler: string, suffix: string, source: string, flags: string[]): Uint8Array {
  const folder = mkdtempSync(join(tmpdir(), 'safepoke-fixture-'));
  try {
    const input = join(folder, `fixture.${suffix}`);
    const output = join(folder, 'fixture');
    writeFileSync(input, source);
    execFileSync(compiler, ['-w', ...flags, '-o', output, input], { stdio: ['ignore', 'ignore', 'inherit'] });
    return new Uint8Array(readFileSync(output));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
