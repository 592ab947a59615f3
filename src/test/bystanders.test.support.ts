// What has nothing to do with a target, and so is what it was, whatever the target does to its tracer.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { folder, fresh } from './targets.test.support.js';

const VICTIM = 'only root may read or write this\n'.repeat(1000);

/** A file that the target can name and not open, and a process. */
export class Bystanders {
  readonly victim = fresh('victim');
  readonly #process = spawn('cat', { stdio: ['pipe', 'pipe', 'ignore'] });
  #before = '';

  private constructor() {
    // The target names it, and may do no more.
    chmodSync(folder, 0o755);
    writeFileSync(this.victim, VICTIM);
    chmodSync(this.victim, 0o600);
  }

  static async gather(): Promise<Bystanders> {
    const all = new Bystanders();
    // Loaded once it answers.
    all.#process.stdin.write('begun\n');
    await firstLine(all.#process);
    all.#before = all.#look();
    return all;
  }

  #look(): string {
    const pid = this.#process.pid ?? 0;
    const { size, mtimeMs, mode } = statSync(this.victim);
    const nice = /\) \S+(?: \S+){15} (\S+)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))?.[1];
    const maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
    return JSON.stringify({ size, mtimeMs, mode, nice, maps, text: readFileSync(this.victim, 'utf8') });
  }

  assertUntouched(what: string): void {
    assert.equal(
      this.#look(),
      this.#before,
      `${what}: a file or a process that has nothing to do with it was changed`,
    );
  }

  end(): void {
    this.#process.kill('SIGKILL');
    rmSync(this.victim);
  }
}

/** Waits for the first line that a program writes. */
export async function firstLine(child: ChildProcess): Promise<string> {
  assert.ok(child.stdout);
  for await (const line of createInterface(child.stdout)) return line;
  throw new Error('a program has ended before it began');
}
