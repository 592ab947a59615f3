// A target that does all it can against its tracer (test/targets/hostile.c), which is root: what it may do to itself, and to nobody else.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createInterface } from 'node:readline';
import type { SessionSummary } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { build, folder, fresh, main } from './targets.test.support.js';

/** Nobody's user and group on Linux systems: the kernel's overflowuid. */
const NOBODY = 65_534;
const VICTIM = 'only root may read or write this\n'.repeat(1000);
/** What it may take in all until it is told to end, and then; the latter is what users are promised, and a slow machine's start of Node. */
const TRACE_MS = 15_000;
const END_MS = 2000;
const SLACK_MS = 3000;
/** Node itself, 128 MiB of rings that are kept, and what waits to be written. */
const MOST_MEMORY_KIB = 900 << 10;
const LOOK_MS = 20;
/** An attach passes a few dozen points, a detach some more: the rest of the rounds wait at none. */
const MOST_POINTS = 160;
const WAIT_MS = 40;
/** Documented: 0: traced; 1: refused, or it failed; and the target's own, as a shell tells it, where the summary says that it has ended. */
const STATUSES: readonly number[] = [0, 1];
const SIGNAL_STATUS = 128;

/** What the target does, once there is something of ours in it. */
export const HOSTILE_MODES: readonly string[] = [
  ...['heads', 'tails', 'drops', 'lanes', 'ended', 'pointers', 'rings', 'holes', 'data'],
  ...['owner', 'page', 'done', 'silent', 'answers', 'calls', 'journal', 'forge'],
  ...['swap', 'close', 'seal', 'truncate', 'code', 'unmap', 'protect', 'replace'],
  ...['stack', 'text', 'fork', 'threads', 'exec', 'die'],
];

/** What nothing may change. */
class Bystanders {
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
async function firstLine(child: ChildProcess): Promise<string> {
  assert.ok(child.stdout);
  for await (const line of createInterface(child.stdout)) return line;
  throw new Error('a program has ended before it began');
}

function mostMemory(pid: number): number {
  try {
    return Number(/^VmHWM:\s*(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/**
 * Root attaches to a program that does what `mode` says, and waits at the `point`th place between two changes in it, until the time is over.
 * It ends in time, by itself, with a status that is documented, one message, and without much memory.
 */
export async function hostileRound(mode: string, point: number): Promise<void> {
  assert.equal(process.getuid?.(), 0, 'run this as root: sudo npm test');
  const what = `mode ${mode}, fault point ${point}`;
  const program = build('hostile.c');
  const place = fresh('round');
  mkdirSync(place, { mode: 0o755 });
  const bystanders = await Bystanders.gather();
  const target = spawn(program, [mode, bystanders.victim], {
    uid: NOBODY,
    gid: NOBODY,
    cwd: '/',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  let tracer: ChildProcess | undefined;
  try {
    const pid = Number(await firstLine(target));
    const files = ['-o', `${place}/trace.spk`, '--summary', `${place}/summary.json`];
    const command = [main, 'attach', '-p', String(pid), '--duration', '200ms', ...files];
    const env = { ...process.env, SAFEPOKE_WAIT_AT: String(point), SAFEPOKE_WAIT_MS: String(WAIT_MS) };
    tracer = spawn(process.execPath, command, { env, stdio: ['ignore', 'ignore', 'pipe'] });
    const { code, signal, text, memory, endMs } = await watch(tracer);
    assert.equal(signal, null, `${what}: safepoke was ended by a signal\n${text}`);
    assert.ok(
      statuses(`${place}/summary.json`).includes(code ?? -1),
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
    tracer?.kill('SIGKILL');
    target.kill('SIGKILL');
    bystanders.end();
    rmSync(place, { recursive: true, force: true });
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

async function watch(tracer: ChildProcess): Promise<Watched> {
  const pid = tracer.pid ?? 0;
  let text = '';
  let memory = 0;
  tracer.stderr?.on('data', (data: Buffer) => (text += data.toString()));
  const looks = setInterval(() => {
    memory = Math.max(memory, mostMemory(pid));
  }, LOOK_MS);
  let toldAt: number | undefined;
  const tell = setTimeout(() => {
    toldAt = performance.now();
    tracer.kill('SIGTERM');
  }, TRACE_MS);
  const kill = setTimeout(() => tracer.kill('SIGKILL'), TRACE_MS + END_MS + 2 * SLACK_MS);
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) => {
    tracer.once('close', (...end) => {
      resolve(end);
    });
  });
  clearInterval(looks);
  clearTimeout(tell);
  clearTimeout(kill);
  return { code, signal, text, memory, endMs: toldAt === undefined ? 0 : performance.now() - toldAt };
}

/** Points that differ from round to round, and are the same whenever it runs. */
export function pointOf(round: number): number {
  return 1 + ((round * 61) % MOST_POINTS);
}

export const hostileHazards: readonly Hazard[] = [
  {
    name: 'a hostile program that changes all memory it shares, in turn in every way and at every step: only it suffers',
    async run(rounds: Rounds): Promise<void> {
      for (let round = 0; rounds.next(); round++) {
        const mode = HOSTILE_MODES[round % HOSTILE_MODES.length];
        await hostileRound(mode, pointOf(round));
        rounds.count('hostile rounds');
      }
    },
  },
];
