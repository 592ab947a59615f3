// The program that is measured (bench/targets/calls.c), run on its own or under a tracer, and asked for rounds.
import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';

/** Nanoseconds per call in one round, the mean of the threads. */
export interface Round {
  /** By the clock on the wall. */
  readonly wall: number;
  /** Of processor time: what other programs on the machine take is not in it, page faults are. */
  readonly cpu: number;
}

/** Between rounds tracers empty their buffers. */
const PAUSE_MS = 60;

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

export class TimedTarget {
  readonly #child: ChildProcess;
  readonly #waiting: ((line: string | undefined) => void)[] = [];
  #errors = '';

  /** Starts `command`, which runs `calls` in some way. */
  constructor(command: readonly string[], options: { readonly cwd?: string } = {}) {
    const [program, ...rest] = command;
    this.#child = spawn(program, rest, { ...options, stdio: ['pipe', 'pipe', 'pipe'] });
    const { stdout, stderr } = this.#child;
    if (stdout === null || stderr === null) throw new Error('pipes were asked for');
    stderr.on('data', (chunk: Buffer) => (this.#errors += chunk.toString()));
    createInterface(stdout).on('line', (line) => this.#waiting.shift()?.(line));
    this.#child.on('close', () => {
      for (const settle of this.#waiting.splice(0)) settle(undefined);
    });
    this.#child.stdin?.on('error', () => undefined);
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** One round of `calls` calls in each thread. @throws Error with what the command said, if it has ended */
  async round(calls: number): Promise<Round> {
    const line = await new Promise<string | undefined>((resolve) => {
      this.#waiting.push(resolve);
      if (this.#child.exitCode === null) this.#child.stdin?.write(`${calls}\n`);
      else resolve(undefined);
    });
    if (line === undefined) throw new Error(`the program that is measured ended: ${this.#errors.trim()}`);
    const [wall, cpu] = line.split(' ').map(Number);
    return { wall, cpu };
  }

  /** The median of several rounds with pauses between them, after one that warms up. */
  async rounds(calls: number, count: number): Promise<Round> {
    const walls: number[] = [];
    const cpus: number[] = [];
    for (let i = 0; i <= count; i++) {
      const { wall, cpu } = await this.round(calls);
      if (i > 0) {
        walls.push(wall);
        cpus.push(cpu);
      }
      await pause(PAUSE_MS);
    }
    return { wall: median(walls), cpu: median(cpus) };
  }

  /** Ends it; resolves when it has. */
  async end(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const closed = new Promise<void>((resolve) => this.#child.once('close', () => resolve()));
    this.#child.stdin?.end();
    await closed;
  }
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
