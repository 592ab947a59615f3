import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { isPlain } from '../../text/index.js';

const main = fileURLToPath(new URL('../main.js', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'safepoke-test-'));
after(() => rmSync(folder, { recursive: true }));

const NAMES = [
  '\x1b]0;PWNED\x07\x1b[2J',
  'line\n0000000 forged',
  'c1 \x9b2J',
  '\u202egpj.exe',
  'constructor',
];

/** A library with functions of these names. The assembler takes no such names, so others of the same length are replaced. */
function built(): Buffer {
  const places = NAMES.map((name, i) => `f${i}`.padEnd(Buffer.byteLength(name), '_'));
  const functions = places.map(
    (name) =>
      `.globl ${name}\n.type ${name},@function\n${name}: ${'nop\n'.repeat(6)}ret\n.size ${name},.-${name}\n`,
  );
  const source = join(folder, 'names.s');
  writeFileSync(source, `.text\n${functions.join('')}.section .note.GNU-stack,"",@progbits\n`);
  const library = join(folder, 'names.so');
  const made = spawnSync('gcc', ['-shared', '-nostdlib', '-o', library, source], { encoding: 'utf8' });
  assert.equal(made.status, 0, `apt-get install gcc: ${made.stderr}`);
  const bytes = readFileSync(library);
  places.forEach((place, i) => {
    for (let at = bytes.indexOf(place); at >= 0; at = bytes.indexOf(place, at + 1)) bytes.write(NAMES[i], at);
  });
  return bytes;
}

function told(...args: string[]): {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
} {
  const ran = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
  for (const line of `${ran.stdout}\n${ran.stderr}`.split('\n'))
    assert.ok(isPlain(line), JSON.stringify(line));
  assert.doesNotMatch(ran.stdout + ran.stderr, /^0000000|^ *at /m);
  return ran;
}

test('names of symbols and files are shown, not obeyed, in lists and messages', () => {
  const path = join(folder, 'f\x1b]0;PATH\x07\nfile');
  writeFileSync(path, built());
  const listed = told('functions', path);
  assert.equal(listed.status, 0, listed.stderr);
  assert.equal(listed.stdout.trimEnd().split('\n').length, NAMES.length);
  assert.match(listed.stdout, / \\x1b\]0;PWNED\\x07\\x1b\[2J/);
  assert.match(listed.stdout, /line\\n0000000 forged/);
  // Nearest names, and what the file is called, stand in messages.
  const none = told('functions', path, '-F', 'constructot');
  assert.notEqual(none.status, 0);
  for (const args of [
    ['functions', `${path}.missing`],
    ['report', path],
    ['graph', `${path}.missing`],
    ['export', path, '-f', 'folded'],
    ['report', '--\x1b[2J'],
    ['check', '--protocol', '\x1b[2J\n0000000'],
    ['stress', '--protocol', '\x1b[2J\n0000000'],
    ['control', '-p', '\x1b[2J'],
    ['attach', '-p', '\u202e1'],
    ['run', '-F', '/(\x1b[2J/', '--', '/bin/true'],
  ])
    assert.notEqual(told(...args).status, 0, args.join(' '));
});
