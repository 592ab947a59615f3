import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import assert from 'node:assert/strict';

const main = fileURLToPath(new URL('../main.js', import.meta.url));

function safepoke(...args: readonly string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, 'stress', ...args], {
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

test('a safe protocol and one that is not, for a second: the safe one is never wrong, and the status is 0', () => {
  const { status, stdout } = safepoke(
    ...['--seconds', '1', '--threads', '2', '--json'],
    ...['--protocol', 'nmi-one-word', '--protocol', 'unprotected'],
  );
  const lines = stdout.trim().split('\n');
  const [safe, unsafe] = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  assert.equal(lines.length, 2);
  assert.equal(safe['name'], 'nmi-one-word');
  assert.equal(safe['verdict'], 'safe');
  assert.deepEqual([safe['wrong'], safe['refused'], safe['crashes'], safe['stuck']], [0, 0, {}, 0]);
  assert.equal(unsafe['verdict'], 'unsafe');
  assert.equal(status, 0);
});

test('a table goes to stdout, a row for each protocol, with the steps that are left out', () => {
  const { status, stdout, stderr } = safepoke(
    ...['--seconds', '60', '--modifications', '10', '--threads', '1', '--no-verdicts'],
    ...['--protocol', 'nmi-no-storm', '--without', 'read-barrier'],
  );
  assert.equal(status, 0);
  assert.match(stdout, /changes.*\n.*\n {2}without read-barrier .* -$/m);
  assert.match(stderr, /60 s each, 1 threads?/);
});

test('what there is not is a usage error that lists what there is', () => {
  for (const [args, expected] of [
    [['--protocol', 'hope'], /no such protocol.*page-flip/],
    [['--protocol', 'int3', '--without', 'hope'], /no such step.*last-wait/],
    [['--without', 'refs'], /--protocol NAME/],
    [['--threads', '99'], /room for 32/],
    [['--seconds', '-1'], /number above 0/],
  ] as const) {
    const { status, stderr } = safepoke(...args);
    assert.equal(status, 2);
    assert.match(stderr, expected);
  }
});
