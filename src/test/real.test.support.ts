// Real programs under trace, driven through the command line as a user would. Whatever a test starts, it ends by process id.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { createServer, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { SessionSummary } from '../index.js';
import { readMaps, readStatus } from '../linux/index.js';

const CLI = join(import.meta.dirname, '../cli/main.js');
/** Scripts that programs under trace run. */
export const SCRIPTS = join(import.meta.dirname, '../../test/real');

/** What a program did. */
export interface Outcome {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A folder that goes with the test. */
export function temporaryFolder(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'safepoke-real-'));
  t.after(() => {
    rmSync(folder, { recursive: true, force: true });
  });
  return folder;
}

/** Starts a program that the test ends at the latest. */
export function start(
  t: TestContext,
  command: string,
  args: readonly string[],
  options: SpawnOptions = {},
): ChildProcess & { readonly pid: number } {
  const child = spawn(command, args, { stdio: 'ignore', ...options });
  t.after(() => {
    child.kill('SIGKILL');
  });
  if (child.pid === undefined) throw new Error(`${command} does not start`);
  return Object.assign(child, { pid: child.pid });
}

/** Runs a program to its end. */
export async function finish(
  command: string,
  args: readonly string[],
  options: SpawnOptions = {},
): Promise<Outcome> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  let stdout = '';
  let stderr = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status, signal) => {
      resolve({ status, signal, stdout, stderr });
    });
  });
}

/** Runs safepoke. */
export function safepoke(args: readonly string[], options: SpawnOptions = {}): Promise<Outcome> {
  return finish(process.execPath, [CLI, ...args], options);
}

export interface Traced {
  readonly outcome: Outcome;
  readonly summary: SessionSummary;
}

async function withSummary(
  t: TestContext,
  args: readonly string[],
  rest: readonly string[],
  options: SpawnOptions = {},
): Promise<Traced> {
  const folder = temporaryFolder(t);
  const file = join(folder, 'summary.json');
  const recording = join(folder, 'recording');
  const outcome = await safepoke([...args, '-o', recording, '--summary', file, ...rest], options);
  const told = existsSync(file) ? readFileSync(file, 'utf8') : '';
  assert.notEqual(
    told,
    '',
    `no summary: status ${String(outcome.status)}, signal ${String(outcome.signal)}: ${outcome.stderr}`,
  );
  return { outcome, summary: JSON.parse(told) as SessionSummary };
}

function filterArguments(filters: readonly string[]): string[] {
  return filters.flatMap((filter) => ['-F', filter]);
}

/** Attaches to a process for a while; it must run on, and be as it was. */
export async function attachFor(
  t: TestContext,
  pid: number,
  filters: readonly string[],
  duration: string,
): Promise<SessionSummary> {
  const args = ['attach', '-p', String(pid), ...filterArguments(filters), '--duration', duration];
  const { outcome, summary } = await withSummary(t, args, []);
  assert.equal(outcome.status, 0, outcome.stderr);
  assert.equal(summary.ended, 'stopped', outcome.stderr);
  assert.equal(summary.restored, true);
  assert.equal(summary.removed, true);
  return summary;
}

/** Runs a program with and without trace, and demands that nobody can tell the difference. `how` are options of `run`. */
export async function runsTheSame(
  t: TestContext,
  filters: readonly string[],
  command: readonly string[],
  options: SpawnOptions = {},
  how: readonly string[] = [],
): Promise<SessionSummary> {
  const plain = await finish(command[0], command.slice(1), options);
  const { outcome, summary } = await withSummary(
    t,
    ['run', ...how, ...filterArguments(filters)],
    ['--', ...command],
    options,
  );
  assert.equal(outcome.stdout, plain.stdout, outcome.stderr);
  // A program that a signal kills is told about as shells do.
  if (plain.status !== null) assert.equal(outcome.status, plain.status, outcome.stderr);
  else assert.ok((outcome.status ?? 0) > 128, outcome.stderr);
  assert.equal(plainNotes(outcome.stderr), plain.stderr);
  return summary;
}

/** Standard error without what safepoke says. */
function plainNotes(stderr: string): string {
  return stderr.replace(/^safepoke: .*\n/gm, '');
}

/** Sum of the calls recorded. */
export function totalCalls(summary: SessionSummary): number {
  return Object.values(summary.calls).reduce((sum, n) => sum + n, 0);
}

/** A port of the loopback that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === 'string') throw new Error('no port');
  return address.port;
}

/** Waits until something listens. */
export async function untilListening(port: number): Promise<void> {
  await until(
    () =>
      new Promise<boolean>((resolve) => {
        const socket = connect(port, '127.0.0.1');
        socket.on('connect', () => {
          socket.destroy();
          resolve(true);
        });
        socket.on('error', () => {
          resolve(false);
        });
      }),
  );
}

/** Asks again and again until the answer is yes. Never decides a test but by hanging it: node's own runner has a limit. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(20);
}

export function isRunning(pid: number): boolean {
  const state = readStatus(pid)?.get('State');
  return state !== undefined && !state.startsWith('Z');
}

/** The executable mappings of a process, anonymous ones too: what a tracer may leave behind shows here. */
export function codeMappings(pid: number): string[] {
  return (readMaps(pid) ?? [])
    .filter(({ permissions, path }) => permissions.includes('x') || path.includes('memfd'))
    .map(
      ({ start, end, permissions, path }) =>
        `${start.toString(16)}-${end.toString(16)} ${permissions} ${path}`,
    );
}

/** Demands that every byte of code in a process is that of its file; the object that is loaded with a program has none. */
export function assertCodeIsThatOfFiles(pid: number): void {
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  try {
    for (const { start, end, permissions, offset, path } of readMaps(pid) ?? []) {
      if (!permissions.includes('x') || !path.startsWith('/') || path.startsWith('/memfd:')) continue;
      const file = openSync(path, 'r');
      try {
        const [inFile, inMemory] = [Buffer.alloc(end - start), Buffer.alloc(end - start)];
        const length = readSync(file, inFile, 0, inFile.length, offset);
        readSync(memory, inMemory, 0, inMemory.length, start);
        assert.ok(inMemory.subarray(0, length).equals(inFile.subarray(0, length)), `${path} differs`);
      } finally {
        closeSync(file);
      }
    }
  } finally {
    closeSync(memory);
  }
}
