// A program that forbids itself system calls while it is traced from inside ("sandbox.c"), under a shell that outlives safepoke.
import assert from 'node:assert/strict';
import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { readFileSync } from 'node:fs';
import type { TestContext } from 'node:test';
import { build, folder, fresh, main, pause } from './targets.test.support.js';

/** Processes that the main thread of a process has started and not yet waited for. */
export function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
    .trim()
    .split(' ')
    .filter(Boolean)
    .map(Number);
}

export class Sandboxed {
  readonly shell: ChildProcessWithoutNullStreams;
  readonly tracer: number;
  readonly pid: number;
  readonly #output: { said: string; told: string };

  private constructor(shell: ChildProcessWithoutNullStreams, output: { said: string; told: string }) {
    this.shell = shell;
    this.#output = output;
    [this.tracer] = childrenOf(shell.pid ?? 0);
    [this.pid] = childrenOf(this.tracer);
  }

  /** Ready to confine itself: `numbers` are the system calls. `before` is what safepoke itself is to be started by, `options` its own. */
  static async ready(
    t: TestContext,
    numbers: readonly number[],
    options: readonly string[] = [],
    before: readonly string[] = [],
  ): Promise<Sandboxed> {
    // A shell keeps the program's standard input open where safepoke ends before the program.
    const script = '"$@"; echo "status $?" >&2; exec sleep 1000';
    const safepoke = [...before, process.execPath, main, 'run', '--inside', '-F', 'step', '-F', 'handle'];
    const program = [build('sandbox.c'), ...numbers.map(String)];
    const args = ['-c', script, 'sh', ...safepoke, '-o', fresh('recording'), ...options, '--', ...program];
    const shell = spawn('sh', args, { cwd: folder, stdio: 'pipe' });
    t.after(() => shell.kill('SIGKILL'));
    const output = { said: '', told: '' };
    shell.stdout.on('data', (text: Buffer) => (output.said += text.toString()));
    shell.stderr.on('data', (text: Buffer) => (output.told += text.toString()));
    await says(output, 'ready\n');
    return new Sandboxed(shell, output);
  }

  /** What safepoke, and then the shell, have written for people. */
  get told(): string {
    return this.#output.told;
  }

  /** Waits for so much of the program's output, which must be this. */
  async says(lines: string): Promise<void> {
    await says(this.#output, lines);
  }

  async tells(text: string): Promise<void> {
    while (!this.told.includes(text)) await pause(10);
  }
}

async function says(output: { readonly said: string }, lines: string): Promise<void> {
  while (output.said.length < lines.length) await pause(10);
  assert.equal(output.said, lines);
}
