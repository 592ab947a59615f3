import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { after, test } from 'node:test';
import assert from 'node:assert/strict';

const main = fileURLToPath(new URL('../main.js', import.meta.url));
const directory = mkdtempSync(join(tmpdir(), 'safepoke-check-'));
after(() => {
  rmSync(directory, { recursive: true });
});

function safepoke(...args: readonly string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, 'check', ...args], {
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

test('exit status is 0 for safe, 1 for unsafe and for a livelock, 2 for usage', () => {
  assert.equal(safepoke('--protocol', 'nmi-one-word').status, 0);
  assert.equal(safepoke('--protocol', 'nmi-2008').status, 1);
  assert.equal(safepoke('--protocol', 'nmi-2008', '--scenario', 'nmi-storm').status, 1);
  assert.equal(safepoke('--protocol', 'hope').status, 2);
});

test('a counterexample goes to stdout as a timeline, without colours in a pipe', () => {
  const { stdout, stderr } = safepoke('--protocol', 'nmi-2008', '--memory', 'sc');
  assert.match(stdout, /CPU 0 patcher +CPU 1 NMI/);
  assert.match(stdout, /^ >\d+ /m);
  assert.match(stdout, /different bytes land in the head of site A/);
  assert.ok(!stdout.includes('\u001b'));
  assert.match(stderr, /states/);
});

test('steps are left out by name, several together', () => {
  const { status, stdout } = safepoke(
    '--protocol',
    'nmi-2008',
    '--overlap',
    'never',
    '--without',
    'wait-barrier',
    '--without',
    'last-wait',
  );
  assert.equal(status, 1);
  assert.match(stdout, /without wait-barrier, last-wait/);
});

test('an unknown name is refused with the names that are known', () => {
  for (const [args, known] of [
    [['--protocol', 'nmi-2008', '--without', 'hope'], /last-wait/],
    [['--protocol', 'nmi-2008', '--memory', 'vax'], /relaxed/],
    [['--protocol', 'nmi-2008', '--scenario', 'hope'], /two-sites/],
    [['--protocol', 'nmi-2008', '--overlap', 'maybe'], /never/],
    [['--protocol', 'nmi-2008', '--arch', 'vax'], /sparc/],
    [['--protocol', 'nmi-2008', '--cpus', '0'], /from 1 to/],
    [['--memory', 'tso'], /--protocol/],
  ] as const) {
    const { status, stderr, stdout } = safepoke(...args);
    assert.equal(status, 2, args.join(' '));
    assert.match(stderr, known);
    assert.equal(stdout, '');
  }
});

test('where the hooks are empty, the protocol protects nothing', () => {
  for (const args of [['--arch', 'arm'], ['--no-dynamic-ftrace'], ['--no-function-tracer']]) {
    const { status, stdout } = safepoke('--protocol', 'nmi-one-word', '--json', ...args);
    assert.equal(status, 1);
    assert.equal((JSON.parse(stdout) as { hooks: string }).hooks, 'empty');
  }
});

test('--json prints one object with the whole result', () => {
  const { stdout } = safepoke('--protocol', 'nmi-2008', '--json');
  const result = JSON.parse(stdout) as Record<string, unknown>;
  for (const key of [
    'protocol',
    'without',
    'memory',
    'scenario',
    'overlap',
    'cpus',
    'nmis',
    'verdict',
    'states',
    'transitions',
    'depth',
    'ms',
    'violation',
    'trace',
  ])
    assert.ok(key in result, key);
  assert.equal(result.verdict, 'unsafe');
  assert.equal((result.trace as unknown[]).length, result.depth);
  const safe = JSON.parse(safepoke('--protocol', 'nmi-one-word', '--json').stdout) as Record<string, unknown>;
  assert.equal(safe.trace, null);
  assert.equal(safe.violation, null);
});

test('--list names protocols, steps, scenarios and memory models', () => {
  const { stdout, status } = safepoke('--list');
  assert.equal(status, 0);
  for (const name of [
    'nmi-2008',
    'nmi-one-word',
    'int3-help',
    'fill-barrier',
    'call-and-back',
    'relaxed',
    'sparc',
  ])
    assert.match(stdout, new RegExp(`\\b${name}\\b`));
});

test('--promela and --html write their files', () => {
  const model = join(directory, 'model.pml');
  const page = join(directory, 'page.html');
  safepoke('--protocol', 'nmi-2008', '--promela', model, '--html', page);
  assert.match(readFileSync(model, 'utf8'), /proctype patcher/);
  assert.match(readFileSync(page, 'utf8'), /^<!doctype html>/);
  const { status, stderr } = safepoke(
    '--protocol',
    'nmi-2008',
    '--html',
    join(directory, 'none', 'page.html'),
  );
  assert.equal(status, 1);
  assert.match(stderr, /choose another file/);
});
