// safepoke as its users run it: a process of its own that attaches to the one that is measured.
import { spawn } from 'node:child_process';
import { readFileSync, rmSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { SessionSummary } from '../trace/index.js';
import { pause } from './timed-target.js';

const MAIN = fileURLToPath(new URL('../cli/main.js', import.meta.url));
const POLL_MS = 20;
const ATTACH_LIMIT_MS = 30_000;

/** A running `safepoke attach`. */
export class Attached {
  private constructor(
    private readonly closed: Promise<string>,
    private readonly kill: () => void,
    private readonly summaryPath: string,
    private readonly recording: string,
  ) {}

  /** Attaches and waits until the process is traced; `args` choose functions. Files go to `directory`. */
  static async start(pid: number, args: readonly string[], directory: string): Promise<Attached> {
    const recording = join(directory, `bench-${pid}.rec`);
    const summary = join(directory, `bench-${pid}.json`);
    rmSync(recording, { force: true });
    const child = spawn(
      process.execPath,
      [MAIN, 'attach', '-p', String(pid), ...args, '-o', recording, '--summary', summary],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    );
    let errors = '';
    child.stderr.on('data', (chunk: Buffer) => (errors += chunk.toString()));
    const closed = new Promise<string>((resolve) => child.once('close', () => resolve(errors)));
    // The recording's first message is written once the sites are changed.
    const until = performance.now() + ATTACH_LIMIT_MS;
    while (!hasBytes(recording)) {
      if (child.exitCode !== null || performance.now() > until)
        throw new Error(`safepoke attach did not begin: ${errors}`);
      await pause(POLL_MS);
    }
    await pause(POLL_MS);
    return new Attached(closed, () => child.kill('SIGINT'), summary, recording);
  }

  /** Detaches; what the session says it did. */
  async stop(): Promise<SessionSummary> {
    this.kill();
    const errors = await this.closed;
    rmSync(this.recording, { force: true });
    const text = readFileSync(this.summaryPath, 'utf8');
    rmSync(this.summaryPath, { force: true });
    if (text === '') throw new Error(`safepoke attach left no summary: ${errors}`);
    return JSON.parse(text) as SessionSummary;
  }
}

function hasBytes(path: string): boolean {
  return existsSync(path) && readFileSync(path).length > 0;
}
