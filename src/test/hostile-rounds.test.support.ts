// Hostile programs by the thousand: one process of ours has a session with each of them, and files and processes beside them stay.
import assert from 'node:assert/strict';
import { fork, type ChildProcess } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { readLink } from '../linux/index.js';
import { Bystanders, firstLine } from './bystanders.test.support.js';
import type { HostileOrder, HostileReport } from './hostile-tracer.test.support.js';
import {
  END_MS,
  HOSTILE_MODES,
  INSIDE_MODES,
  MOST_MEMORY_KIB,
  SLACK_MS,
  childrenOf,
  killAll,
  mostMemory,
  pointOf,
  spawnHostile,
  type HostileWay,
} from './hostile.test.support.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { build, fresh } from './targets.test.support.js';

const tracerProgram = fileURLToPath(new URL('hostile-tracer.test.support.js', import.meta.url));
const WAIT_MS = 10;
/** What takes longer than this hangs. */
const ROUND_MS = 20_000;
/** One that fails is told, and the rest goes on; so many are enough. */
const MOST_FAILURES = 20;
const MOST_BLOCKS = 100;
/** clear_refs, proc(5): the most memory that a process has had begins anew. */
const RESET_PEAK = '5';

/** The process that traces, and what it may not keep. */
class Tracer {
  readonly #child: ChildProcess;
  #stderr = '';
  #files: number | undefined;

  constructor() {
    this.#child = fork(tracerProgram, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    this.#child.stderr?.on('data', (text: Buffer) => (this.#stderr += text.toString()));
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Has it trace, and looks at what has become of it. */
  async trace(order: HostileOrder, what: string): Promise<HostileReport> {
    const report = await new Promise<HostileReport>((resolve, reject) => {
      const fail = (why: string): void => {
        clearTimeout(late);
        reject(new Error(`${what}: ${why}\n${this.#stderr}`));
      };
      const late = setTimeout(fail, ROUND_MS, `safepoke has not come back within ${ROUND_MS} ms`);
      this.#child.once('exit', (status, signal) => {
        fail(`safepoke ended, status ${status}, signal ${signal}`);
      });
      this.#child.once('message', (message) => {
        clearTimeout(late);
        this.#child.removeAllListeners('exit');
        resolve(message as HostileReport);
      });
      this.#child.send(order);
    });
    assert.equal(this.#stderr, '', what);
    assert.ok(report.endMs < END_MS + SLACK_MS, `${what}: ${report.endMs} ms until it ended`);
    const memory = mostMemory(this.pid);
    assert.ok(memory < MOST_MEMORY_KIB, `${what}: ${memory} KiB`);
    writeFileSync(`/proc/${this.pid}/clear_refs`, RESET_PEAK);
    const files = filesOf(this.pid);
    // Node's own, and no program's.
    this.#files ??= files.length;
    assert.ok(files.length <= this.#files, `${what}: descriptors stay open: ${files.join(', ')}`);
    const shared = readFileSync(`/proc/${this.pid}/maps`, 'utf8').match(/memfd:safepoke/g) ?? [];
    assert.ok(shared.length <= mostShared(order), `${what}: ${shared.length} mappings stay`);
    return report;
  }

  /** With what it has started. */
  end(): void {
    const children = childrenOf(this.pid);
    this.#child.removeAllListeners();
    this.#child.kill('SIGKILL');
    killAll(children);
  }
}

function filesOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).map((fd) => `${fd} ${readLink(`/proc/${pid}/fd/${fd}`)}`);
}

/** Of a program that was started from inside a block is there until it is collected as garbage. */
function mostShared({ target }: HostileOrder): number {
  return typeof target === 'number' ? 0 : MOST_BLOCKS;
}

/** One program, as `mode` says, and one session with it; or, from inside, its start and two sessions. */
async function round(
  tracer: Tracer,
  victim: string,
  way: HostileWay,
  mode: string,
  point: number,
): Promise<HostileReport> {
  const what = `${way}, mode ${mode}, fault point ${point}`;
  const place = fresh('round');
  mkdirSync(place);
  const command = [build('hostile.c'), mode, victim];
  const order = { point, waitMs: WAIT_MS, output: `${place}/trace.spk` };
  let program: ChildProcess | undefined;
  try {
    let target: HostileOrder['target'] = command;
    if (way === 'attach') {
      program = spawnHostile(command);
      target = Number(await firstLine(program));
    }
    const report = await tracer.trace({ ...order, target }, what);
    const others = readdirSync(place).filter((name) => name !== 'trace.spk');
    assert.deepEqual(others, [], what);
    return report;
  } finally {
    program?.kill('SIGKILL');
    rmSync(place, { recursive: true, force: true });
  }
}

/** All modes in turn, with one tracer until it fails. */
export async function manyRounds(rounds: Rounds, way: HostileWay, modes: readonly string[]): Promise<void> {
  assert.equal(process.getuid?.(), 0, 'run this as root: sudo npm test');
  let bystanders = await Bystanders.gather();
  let tracer = new Tracer();
  const failures: string[] = [];
  try {
    // In a few rounds it only becomes as large as it will be.
    const watched = (): number | undefined => (rounds.isLong ? tracer.pid : undefined);
    for (let i = 0; failures.length < MOST_FAILURES && rounds.next(undefined, watched()); i++) {
      const mode = modes[i % modes.length];
      const point = pointOf(i);
      try {
        const report = await round(tracer, bystanders.victim, way, mode, point);
        bystanders.assertUntouched(`${way}, mode ${mode}, fault point ${point}`);
        rounds.count(`hostile rounds (${way})`);
        rounds.count('sessions that began', report.begun);
        rounds.count('lanes that lied', report.corrupt);
        rounds.count('refusals', report.refused.length);
        rounds.note('ms until a session ended', report.endMs);
      } catch (error) {
        failures.push(error instanceof Error ? error.message : String(error));
        tracer.end();
        bystanders.end();
        bystanders = await Bystanders.gather();
        tracer = new Tracer();
      }
    }
  } finally {
    tracer.end();
    bystanders.end();
  }
  assert.deepEqual(failures, []);
}

export const hostileHazards: readonly Hazard[] = [
  {
    name: 'a hostile program that changes all memory it shares, in turn in every way and at every step: only it suffers',
    run: (rounds) => manyRounds(rounds, 'attach', HOSTILE_MODES),
  },
  {
    name: 'a hostile program that is traced from inside and changes all memory it shares, in every way: only it suffers',
    run: (rounds) => manyRounds(rounds, 'inside', INSIDE_MODES),
  },
];
