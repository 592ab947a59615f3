// Programs to trace, and safepoke as a user starts it. Each test file compiles what it needs into a folder of its own.
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  readdirSync,
  readlinkSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach } from 'node:test';
import { fileURLToPath } from 'node:url';
import { JsonLinesOutput, openRecording, type SessionSummary } from '../index.js';
import { RecordingReader } from '../recording/index.js';

const sources = fileURLToPath(new URL('../../test/targets/', import.meta.url));
export const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));

/** A folder that goes when the test process ends. */
export const folder = mkdtempSync(join(tmpdir(), 'safepoke-e2e-'));
process.on('exit', () => {
  rmSync(folder, { recursive: true, force: true });
});

/** What a test started: a test that fails must not leave it running. */
const started = new Set<ChildProcessWithoutNullStreams>();

/** Ends whatever was started and still runs. */
export function endAll(): void {
  for (const child of started) child.kill('SIGKILL');
  started.clear();
}

// A hook makes node's test runner report on standard output, also where there are no tests (soak.ts).
if (process.argv[1]?.endsWith('.test.js')) afterEach(endAll);

let files = 0;

/** A path that no other part of the test uses. */
export function fresh(name: string): string {
  return join(folder, `${++files}-${name}`);
}

/** gcc would turn calls into loops, and there would be nothing to count. */
const ALWAYS = ['-g0', '-pthread', '-fno-optimize-sibling-calls'];

/** Not gcc's: links with musl instead of the system's C library. */
export const MUSL = '-musl';

/** Compiles test/targets/`source` and returns the program's path; the same flags give the same program. */
export function build(source: string, ...flags: string[]): string {
  const compiler = flags.includes(MUSL) ? 'musl-gcc' : source.endsWith('.cc') ? 'g++' : 'gcc';
  const optimise = flags.some((flag) => flag.startsWith('-O')) ? [] : ['-O2'];
  const given = flags.filter((flag) => flag !== MUSL);
  const all = (path: string): readonly string[] => [compiler, ...optimise, ...ALWAYS, ...given, '-o', path];
  if (!flags.includes('-mnop-mcount')) return compile(source, flags, all);
  // Linked with -pg it would profile itself, by a signal that interrupts its system calls.
  const object = compile(source, [...flags, '-c'], (path) => [...all(path), '-c']);
  const linked = `${object}.linked`;
  if (!existsSync(linked))
    execFileSync(compiler, [...ALWAYS, '-no-pie', '-o', linked, object], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  return linked;
}

/** The same for a Go program. */
export function buildGo(source: string): string {
  return compile(source, [], (path) => ['go', 'build', '-o', path]);
}

function compile(
  source: string,
  flags: readonly string[],
  command: (path: string) => readonly string[],
): string {
  const path = join(folder, `${source}${flags.join('')}`.replaceAll(/[^A-Za-z0-9.]+/g, '_'));
  if (existsSync(path)) return path;
  const [compiler, ...args] = command(path);
  execFileSync(compiler, [...args, join(sources, source)], {
    stdio: ['ignore', 'ignore', 'inherit'],
    // Go has no place to keep what it has compiled where there is no home.
    env: { ...process.env, GOCACHE: join(folder, 'go'), GO111MODULE: 'off' },
  });
  return path;
}

/** Has the compiler leave a nop of five bytes at each entry: a site of one instruction. */
export const ONE_NOP = ['-pg', '-mfentry', '-mnop-mcount', '-mrecord-mcount', '-fno-pie'] as const;

/** How one run of safepoke ended. */
export interface Ran {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Most output that a test reads. */
const MAX_OUTPUT = 1 << 30;
/** What takes longer than this hangs. */
const TIMEOUT_MS = 60_000;

/** Runs safepoke to its end. */
export function safepoke(...args: string[]): Ran {
  return spawnSync(process.execPath, [main, ...args], {
    cwd: folder,
    encoding: 'utf8',
    maxBuffer: MAX_OUTPUT,
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
  });
}

/** What a trace of a program said, and what the program said. */
export interface Traced extends Ran {
  readonly summary: SessionSummary;
  /** Path of the recording. */
  readonly recording: string;
}

/** `safepoke run` with a recording and a summary; the program's own output is stdout. */
export function runTraced(options: readonly string[], program: string, ...args: string[]): Traced {
  const summary = fresh('summary.json');
  const recording = fresh('recording');
  const ran = safepoke('run', '-o', recording, '--summary', summary, ...options, '--', program, ...args);
  return { ...ran, recording, summary: readSummary(summary, ran.stderr) };
}

export function readSummary(path: string, stderr = ''): SessionSummary {
  const text = existsSync(path) ? readFileSync(path, 'utf8') : '';
  assert.notEqual(text, '', `no summary was written: ${stderr}`);
  return JSON.parse(text) as SessionSummary;
}

/** A line of JSON lines output. */
export interface JsonCall {
  readonly id: number;
  readonly parent: number | null;
  readonly function: string;
  readonly module: string;
  readonly tid: number;
  readonly thread: string;
  readonly depth: number;
  readonly start_ns: number;
  readonly duration_ns: number | null;
  readonly self_ns: number | null;
  readonly end: 'returned' | 'unwound' | 'open' | 'lost' | 'entry-only';
}

export function parseJsonLines(text: string): JsonCall[] {
  return text
    .split('\n')
    .filter((line) => line.startsWith('{"id"'))
    .map((line) => JSON.parse(line) as JsonCall);
}

/** All calls of a recording. */
export function callsOf(recording: string): JsonCall[] {
  const file = openRecording(recording);
  let text = '';
  const { anomalies } = file.visitByTime(new JsonLinesOutput(file.info, (piece) => (text += piece)));
  file.close();
  assert.equal(anomalies, 0);
  assert.equal(file.fault, undefined);
  return parseJsonLines(text);
}

/** Time between the first and the last reading of the clock in a recording: its session's, from its beginning to its end. */
export function recordedMs(path: string): number {
  const readings: bigint[] = [];
  const reader = new RecordingReader(path, {
    onMessage: (message) => {
      if (message.kind === 'clock') readings.push(BigInt(message.ns));
    },
  });
  reader.push(readFileSync(path));
  reader.finish();
  return Number((readings.at(-1) ?? 0n) - readings[0]) / 1e6;
}

/** How many calls of each function ended in each way: { 'f returned': 3 }. */
export function tally(calls: readonly JsonCall[]): Record<string, number> {
  const result: Record<string, number> = {};
  for (const call of calls) {
    const key = `${call.function} ${call.end}`;
    result[key] = (result[key] ?? 0) + 1;
  }
  return result;
}

/** Fails unless every call lies within its parent, in its parent's thread, one level deeper. */
export function assertNested(calls: readonly JsonCall[]): void {
  const byId = new Map(calls.map((call) => [call.id, call]));
  for (const call of calls) {
    const duration = call.duration_ns ?? 0;
    assert.ok(duration >= 0 && (call.self_ns ?? 0) >= 0, JSON.stringify(call));
    if (call.parent === null) continue;
    const parent = byId.get(call.parent);
    assert.ok(parent !== undefined, `no parent: ${JSON.stringify(call)}`);
    const inside =
      parent.tid === call.tid &&
      parent.start_ns <= call.start_ns &&
      // Rounding to nanoseconds may make a part one larger than the whole.
      call.start_ns + duration <= parent.start_ns + (parent.duration_ns ?? Infinity) + 1;
    if (!inside) assert.fail(`${JSON.stringify(call)} is not within ${JSON.stringify(parent)}`);
  }
}

/** Counts that a target printed as lines "name=number". */
export function countsIn(stdout: string): Record<string, number> {
  return Object.fromEntries(
    [...stdout.matchAll(/^(\w+)=(\d+)$/gm)].map(([, name, count]) => [name, Number(count)]),
  );
}

/**
 * Fails unless the trace has exactly the calls that the program counted itself. What a static program calls before it has
 * a thread pointer is dropped, and counted: `early` allows for that.
 */
export function assertCounted(
  traced: Pick<Traced, 'stdout' | 'stderr' | 'summary'>,
  early: 'early' | 'none' = 'none',
): void {
  const counts = countsIn(traced.stdout);
  assert.ok(Object.keys(counts).length > 0, `the target printed no counts: ${traced.stdout}${traced.stderr}`);
  const seen = Object.fromEntries(Object.keys(counts).map((name) => [name, traced.summary.calls[name] ?? 0]));
  assert.deepEqual(seen, counts);
  if (early === 'none') assert.equal(traced.summary.dropped, 0);
}

/** A running program, told what to do by lines on its standard input. */
export class Target {
  readonly child: ChildProcessWithoutNullStreams;
  readonly pid: number;
  readonly #lines: string[] = [];
  #wake: (() => void) | undefined;
  #closed = false;
  stderr = '';

  constructor(program: string, ...args: string[]) {
    this.child = spawn(program, args, { cwd: folder, stdio: 'pipe' });
    started.add(this.child);
    assert.ok(this.child.pid !== undefined, `${program} did not start`);
    this.pid = this.child.pid;
    const wake = (): void => this.#wake?.();
    createInterface({ input: this.child.stdout })
      .on('line', (line) => {
        this.#lines.push(line);
        wake();
      })
      .on('close', () => {
        this.#closed = true;
        wake();
      });
    this.child.stderr.on('data', (text: Buffer) => (this.stderr += text.toString()));
    // A target that dies is found out by what it no longer says.
    this.child.stdin.on('error', () => undefined);
  }

  /** Starts one and waits until it says "ready". */
  static async ready(program: string, ...args: string[]): Promise<Target> {
    const target = new Target(program, ...args);
    await target.expect(/^ready/);
    return target;
  }

  say(line: string): void {
    this.child.stdin.write(`${line}\n`);
  }

  /** The next line of its output; fails when there will be none. */
  async line(): Promise<string> {
    const isClosed = (): boolean => this.#closed;
    for (;;) {
      const line = this.#lines.shift();
      if (line !== undefined) return line;
      if (isClosed()) {
        const ended = `status ${this.child.exitCode ?? 'none'}, signal ${this.child.signalCode ?? 'none'}`;
        assert.fail(`the target ended: ${ended} ${this.stderr}`);
      }
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  async expect(pattern: RegExp): Promise<string> {
    const line = await this.line();
    assert.match(line, pattern);
    return line;
  }

  /** What it still says, until it ends. */
  async rest(): Promise<string> {
    const isClosed = (): boolean => this.#closed;
    while (!isClosed()) await new Promise<void>((resolve) => (this.#wake = resolve));
    return this.#lines.splice(0).join('\n');
  }

  /** Says that there is nothing more to do; it must end with status 0 then. Returns what it still said. */
  async finish(): Promise<string> {
    this.child.stdin.end();
    const { status, signal } = await this.ended();
    const rest = await this.rest();
    assert.deepEqual({ status, signal }, { status: 0, signal: null }, `${rest}\n${this.stderr}`);
    return rest;
  }

  async ended(): Promise<{ status: number | null; signal: NodeJS.Signals | null }> {
    const { child } = this;
    if (child.exitCode === null && child.signalCode === null)
      await new Promise((resolve) => child.once('exit', resolve));
    return { status: child.exitCode, signal: child.signalCode };
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    this.child.kill(signal);
  }
}

/** safepoke at work on something, until a signal, a duration or the target ends it. */
export class Running {
  readonly child: ChildProcessWithoutNullStreams;
  readonly summaryPath: string;
  readonly recording: string;
  stdout = '';
  stderr = '';

  private constructor(
    command: 'attach' | 'run',
    options: readonly string[],
    recorded: boolean,
    environment: NodeJS.ProcessEnv = process.env,
  ) {
    this.summaryPath = fresh('summary.json');
    this.recording = fresh('recording');
    const outputs = [...(recorded ? ['-o', this.recording] : []), '--summary', this.summaryPath];
    this.child = spawn(process.execPath, [main, command, ...outputs, ...options], {
      cwd: folder,
      stdio: 'pipe',
      env: environment,
    });
    started.add(this.child);
    this.child.stdout.on('data', (text: Buffer) => (this.stdout += text.toString()));
    this.child.stderr.on('data', (text: Buffer) => (this.stderr += text.toString()));
  }

  /** Attaches, and waits until the process is being traced. */
  static async attach(pid: number, ...options: string[]): Promise<Running> {
    return Running.#attach(pid, options, true);
  }

  /** Attaches, and does not wait for that. */
  static attachLater(pid: number, ...options: string[]): Running {
    return new Running('attach', ['-p', String(pid), ...options], true);
  }

  /** The same, with calls printed as they come. */
  static async attachPrinting(pid: number, ...options: string[]): Promise<Running> {
    return Running.#attach(pid, options, false);
  }

  /** The same, recorded or printed, in another environment than ours. */
  static async attachUnder(
    environment: NodeJS.ProcessEnv,
    pid: number,
    what: 'recorded' | 'printed',
    ...options: string[]
  ): Promise<Running> {
    return Running.#attach(pid, options, what === 'recorded', environment);
  }

  static async #attach(
    pid: number,
    options: readonly string[],
    recorded: boolean,
    environment?: NodeJS.ProcessEnv,
  ): Promise<Running> {
    const running = new Running('attach', ['-p', String(pid), ...options], recorded, environment);
    while (!isTraced(pid)) {
      if (running.child.exitCode !== null) assert.fail(`safepoke ended: ${running.stderr}`);
      await pause(5);
    }
    return running;
  }

  /** Starts a program under trace. */
  static run(options: readonly string[], program: string, ...args: string[]): Running {
    return new Running('run', [...options, '--', program, ...args], true);
  }

  /** Waits until it is no more, however it ended. */
  async gone(): Promise<void> {
    const { child } = this;
    if (child.exitCode === null && child.signalCode === null)
      await new Promise((resolve) => child.once('close', resolve));
  }

  /** Waits for its end, at which it has written its summary. */
  async ended(): Promise<Traced> {
    const { child } = this;
    await this.gone();
    const ran = { status: child.exitCode, stdout: this.stdout, stderr: this.stderr };
    return { ...ran, recording: this.recording, summary: readSummary(this.summaryPath, this.stderr) };
  }

  /** Ctrl-C. */
  async stop(signal: NodeJS.Signals = 'SIGINT'): Promise<Traced> {
    this.child.kill(signal);
    return this.ended();
  }
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** True while sites of the process are changed: our code is mapped, and nobody holds a thread any more. */
export function isTraced(pid: number): boolean {
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
  if (!maps.includes('memfd:safepoke')) return false;
  return changedBytes(pid) > 0 && tracerOf(pid).every((tracer) => tracer === '0');
}

/** The lines of /proc/PID/maps, but for what grows by itself. */
export function mapsOf(pid: number): string[] {
  return readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .filter((line) => !line.endsWith('[heap]') && !line.endsWith('[stack]'));
}

/** The mappings of the program and its libraries, wherever they lie, but for what is ours. */
export function textMapsOf(pid: number): string[] {
  return mapsOf(pid).flatMap((line) => {
    const [range, permissions, offset, , , path = ''] = line.split(/\s+/);
    if (!path.startsWith('/') || path.startsWith('/memfd:')) return [];
    const [start, end] = range.split('-').map((address) => Number.parseInt(address, 16));
    return [`${(end - start).toString(16)} ${permissions} ${offset} ${path}`];
  });
}

function tracerOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((tid) => {
    try {
      return [statusField(pid, 'TracerPid', tid)];
    } catch {
      // It has ended meanwhile.
      return [];
    }
  });
}

/** A field of /proc/PID/task/TID/status. */
export function statusField(pid: number, name: string, tid = String(pid)): string {
  const status = readFileSync(`/proc/${pid}/task/${tid}/status`, 'utf8');
  return new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1] ?? '';
}

const PT_LOAD = 1;
const PF_X = 1;
const ET_EXEC = 2;

/** Bytes of the process's own executable's text that differ from the file's. */
export function changedBytes(pid: number): number {
  const file = readFileSync(`/proc/${pid}/exe`);
  const path = readlinkSync(`/proc/${pid}/exe`);
  const first = readFileSync(`/proc/${pid}/maps`, 'utf8')
    .split('\n')
    .find((line) => line.endsWith(` ${path}`));
  const base = Number.parseInt(first?.split('-')[0] ?? '', 16);
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  let changed = 0;
  try {
    const [at, size, count] = [
      Number(file.readBigUInt64LE(32)),
      file.readUInt16LE(54),
      file.readUInt16LE(56),
    ];
    for (let i = 0; i < count; i++) {
      const header = at + i * size;
      if (file.readUInt32LE(header) !== PT_LOAD || (file.readUInt32LE(header + 4) & PF_X) === 0) continue;
      const offset = Number(file.readBigUInt64LE(header + 8));
      const address = Number(file.readBigUInt64LE(header + 16));
      const bytes = Buffer.alloc(Number(file.readBigUInt64LE(header + 32)));
      const isFixed = file.readUInt16LE(16) === ET_EXEC;
      readSync(memory, bytes, 0, bytes.length, isFixed ? address : base + address);
      for (let b = 0; b < bytes.length; b++) if (bytes[b] !== file[offset + b]) changed++;
    }
  } finally {
    closeSync(memory);
  }
  return changed;
}

/** What a target answered: names and numbers. */
export function answered(line: string): Record<string, number> {
  return Object.fromEntries([...line.matchAll(/(\w+)=(\d+)/g)].map(([, name, n]) => [name, Number(n)]));
}
