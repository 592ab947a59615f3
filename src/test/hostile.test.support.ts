// A target that does all it can against its tracer (test/targets/hostile.c), which is root: what it may do to itself, and to nobody else.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import type { SessionSummary } from '../index.js';
import { Bystanders, firstLine } from './bystanders.test.support.js';
import { build, fresh, main } from './targets.test.support.js';

/** Nobody's user and group on Linux systems: the kernel's overflowuid. */
const NOBODY = 65_534;
/**
 * What it may take in all until it is told to end, and then; the latter is what users are promised, and a slow machine's start of Node. What
 * was started from inside goes on for ever, and both are told to end.
 */
const LIVES_MS: Readonly<Record<HostileWay, number>> = { attach: 15_000, inside: 2000 };
export const END_MS = 2000;
export const SLACK_MS = 3000;
/** Node itself, 128 MiB of rings that are kept, and what waits to be written. */
export const MOST_MEMORY_KIB = 900 << 10;
const LOOK_MS = 20;
/** An attach passes a few dozen points, a detach some more: the rest of the rounds wait at none. */
const MOST_POINTS = 160;
const WAIT_MS = 40;
/** Documented: 0: traced; 1: refused, or it failed; and the target's own, as a shell tells it, where the summary says that it has ended, or it was started. */
const STATUSES: readonly number[] = [0, 1];
const SIGNAL_STATUS = 128;

/** What the target does, once there is something of ours in it. */
export const HOSTILE_MODES: readonly string[] = [
  ...['heads', 'tails', 'drops', 'lanes', 'ended', 'pointers', 'rings', 'holes', 'data'],
  ...['owner', 'page', 'done', 'silent', 'answers', 'calls', 'journal', 'forge'],
  ...['swap', 'close', 'seal', 'truncate', 'code', 'unmap', 'protect', 'replace'],
  ...['stack', 'text', 'fork', 'threads', 'exec', 'die'],
];

export function mostMemory(pid: number): number {
  try {
    return Number(/^VmHWM:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/** How root comes to trace it: it is there, as nobody's, or is started, and gives up its rights itself. */
export type HostileWay = 'attach' | 'inside';

/**
 * Root traces a program that does what `mode` says, and waits at the `point`th place between two changes in it, until the time is over.
 * It ends in time, by itself, with a status that is documented, one message, and without much memory.
 */
export async function hostileRound(mode: string, point: number, way: HostileWay = 'attach'): Promise<void> {
  assert.equal(process.getuid?.(), 0, 'run this as root: sudo npm test');
  const what = `${way}, mode ${mode}, fault point ${point}`;
  const place = fresh('round');
  mkdirSync(place, { mode: 0o755 });
  const bystanders = await Bystanders.gather();
  const command = [build('hostile.c'), mode, bystanders.victim];
  const files = ['-o', `${place}/trace.spk`, '--summary', `${place}/summary.json`];
  const env = { ...process.env, SAFEPOKE_WAIT_AT: String(point), SAFEPOKE_WAIT_MS: String(WAIT_MS) };
  let target: ChildProcess | undefined;
  let tracer: ChildProcess | undefined;
  try {
    let words = ['run', '--inside', ...files, '--', ...command];
    if (way === 'attach') {
      target = spawnHostile(command);
      words = ['attach', '-p', await firstLine(target), '--duration', '200ms', ...files];
    }
    tracer = spawn(process.execPath, [main, ...words], { env, stdio: ['ignore', 'ignore', 'pipe'] });
    const { code, signal, text, memory, endMs } = await watch(tracer, LIVES_MS[way]);
    assert.equal(signal, null, `${what}: safepoke was ended by a signal\n${text}`);
    const isOwn = way === 'inside' && code !== null && code > SIGNAL_STATUS;
    assert.ok(
      isOwn || statuses(`${place}/summary.json`).includes(code ?? -1),
      `${what}: exit status ${code}\n${text}`,
    );
    assert.doesNotMatch(text, /^\s+at .*:\d+:\d+|internal|unhandled|uncaught/im, `${what}: ${text}`);
    assert.ok(memory < MOST_MEMORY_KIB, `${what}: ${memory} KiB`);
    assert.ok(endMs < END_MS + SLACK_MS, `${what}: ${endMs} ms after SIGTERM\n${text}`);
    bystanders.assertUntouched(what);
    const known = ['summary.json', 'trace.spk'];
    assert.deepEqual(
      readdirSync(place).filter((name) => !known.includes(name)),
      [],
      what,
    );
  } finally {
    killAll(childrenOf(tracer?.pid ?? 0));
    tracer?.kill('SIGKILL');
    target?.kill('SIGKILL');
    bystanders.end();
    rmSync(place, { recursive: true, force: true });
  }
}

/** Starts one as nobody's. Its first line is its process id. */
export function spawnHostile([program, ...args]: readonly string[]): ChildProcess {
  return spawn(program, args, { uid: NOBODY, gid: NOBODY, cwd: '/', stdio: ['ignore', 'pipe', 'ignore'] });
}

export function childrenOf(pid: number): number[] {
  try {
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
    return text === '' ? [] : text.split(' ').map(Number);
  } catch {
    return [];
  }
}

/** Those of them that are still there. */
export function killAll(pids: readonly number[]): void {
  for (const pid of pids) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  }
}

function statuses(summary: string): readonly number[] {
  // Where tracing has not begun there is none, or an empty file.
  const text = existsSync(summary) ? readFileSync(summary, 'utf8') : '';
  if (text === '') return STATUSES;
  const { ended, exit_status, exit_signal } = JSON.parse(text) as SessionSummary;
  if (ended === 'exited') return [exit_status ?? -1];
  return ended === 'killed' ? [SIGNAL_STATUS + (exit_signal ?? 0)] : STATUSES;
}

interface Watched {
  readonly code: number | null;
  readonly signal: string | null;
  readonly text: string;
  readonly memory: number;
  /** How long it took to end once it was told to; 0: it was not. */
  readonly endMs: number;
}

async function watch(tracer: ChildProcess, livesMs: number): Promise<Watched> {
  const pid = tracer.pid ?? 0;
  let text = '';
  let memory = 0;
  let children: readonly number[] = [];
  tracer.stderr?.on('data', (data: Buffer) => (text += data.toString()));
  const looks = setInterval(() => {
    memory = Math.max(memory, mostMemory(pid));
    const now = childrenOf(pid);
    if (now.length > 0) children = now;
  }, LOOK_MS);
  let toldAt: number | undefined;
  const tell = setTimeout(() => {
    toldAt = performance.now();
    tracer.kill('SIGTERM');
  }, livesMs);
  const kill = setTimeout(() => tracer.kill('SIGKILL'), livesMs + END_MS + 2 * SLACK_MS);
  // A program that it has started has the same standard error: what outlives its tracer is not waited for.
  tracer.once('exit', () => {
    killAll(children);
  });
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) => {
    tracer.once('close', (...end) => {
      resolve(end);
    });
  });
  clearInterval(looks);
  clearTimeout(tell);
  clearTimeout(kill);
  const endMs = toldAt === undefined ? 0 : performance.now() - toldAt;
  return { code, signal, text, memory, endMs };
}

/** Points that differ from round to round, and are the same whenever it runs. */
export function pointOf(round: number): number {
  return 1 + ((round * 61) % MOST_POINTS);
}

/** Only what is traced from inside has these: the block, the object, threads that are called together, one that asks what it may execute. */
export const ONLY_INSIDE: readonly string[] = [
  'block',
  'counts',
  'places',
  'buffer',
  'object',
  'asks',
  'calls-all',
  'deaf',
];

/** What it does where it was started from inside. No journal of an earlier session is looked for there. */
export const INSIDE_MODES: readonly string[] = [
  ...ONLY_INSIDE,
  ...HOSTILE_MODES.filter((mode) => mode !== 'forge'),
];
