// From inside where a program cannot write its own code by /proc/self/mem: it is unlocked for that, and locked again.
import assert from 'node:assert/strict';
import { spawn, spawnSync, type SpawnSyncReturns } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { OBJECT_DATA, TEXT } from '../inside/layout.js';
import type { ConfinedRounds } from './confined-rounds.test.support.js';
import { Sandboxed, childrenOf } from './sandboxed.test.support.js';
import {
  assertCounted,
  assertNested,
  build,
  callsOf,
  changedBytes,
  folder,
  fresh,
  main,
  pause,
  readSummary,
  textMapsOf,
  type Traced,
} from './targets.test.support.js';

/** What fails with EPERM: to open one's own memory (glibc and Node use openat), or to write it. */
const FORBIDDEN = ['SYS_open', 'SYS_pwrite64'] as const;
const FIB_15 = 1973;
const ROUNDS = 8;
/** Threads of these programs once they are at work. */
const SIGNALS_THREADS = 4;
const WAITS_THREADS = 2;
/** Fault points that are gone over, so that a few come to all parts of a session. */
const STRIDE = 23;
const roundsProgram = fileURLToPath(new URL('./confined-rounds.test.support.js', import.meta.url));

function place(call: string, ...flags: string[]): string {
  return build('confine.c', `-DALSO=${call}`, ...flags);
}

/** Node, confined with all that it starts. */
function confined(wrapper: string, ...args: string[]): SpawnSyncReturns<string> {
  return spawnSync(wrapper, [process.execPath, ...args], {
    cwd: folder,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
}

function traced(call: string, ...command: string[]): Traced {
  const [recording, summary] = [fresh('recording'), fresh('summary.json')];
  const ran = confined(
    place(call),
    ...[main, 'run', '--inside', '-o', recording, '--summary', summary, '--', ...command],
  );
  return { ...ran, recording, summary: readSummary(summary, ran.stderr) };
}

/** The mappings of a program that nobody traces. */
async function mapsAlone(
  [program, ...args]: readonly [string, ...string[]],
  threads: number,
): Promise<string[]> {
  const alone = spawn(program, args, { stdio: 'ignore' });
  assert.ok(alone.pid !== undefined);
  try {
    while (readdirSync(`/proc/${alone.pid}/task`).length < threads) await pause(5);
    return textMapsOf(alone.pid);
  } finally {
    alone.kill('SIGKILL');
  }
}

for (const call of FORBIDDEN) {
  test(`where ${call} is forbidden code is unlocked for each change, and counts are exact`, () => {
    const fib = traced(call, build('fib.c'), '15');
    assert.deepEqual([fib.status, fib.stdout], [0, 'fib(15)=610\n'], fib.stderr);
    assert.deepEqual([fib.summary.calls['fib'], fib.summary.dropped], [FIB_15, 0]);
    assert.equal(fib.summary.inside?.written_by, 'mprotect');
    const threads = traced(call, build('threads.c'), '4', '50', '50');
    assert.equal(threads.status, 0, `${threads.stdout} ${threads.stderr}`);
    assertCounted(threads);
    const signals = traced(call, build('signals.c'), '150', 'an');
    assert.equal(signals.status, 0, `${signals.stdout} ${signals.stderr}`);
    assertCounted(signals);
    assertNested(callsOf(signals.recording));
  });

  test(`where ${call} is forbidden sessions come and go under a storm of signals, and rights and mappings stay what they are`, async () => {
    const command = [build('signals.c'), '0', 'anq'] as const;
    const alone = await mapsAlone(command, SIGNALS_THREADS);
    const ran = confined(place(call), roundsProgram, String(ROUNDS), ...command);
    assert.equal(ran.status, 0, ran.stderr);
    const seen = JSON.parse(ran.stdout) as ConfinedRounds;
    // It has compared every result, and says by its status whether all were right.
    assert.deepEqual(seen.end, { kind: 'exited', status: 0 });
    assert.deepEqual([seen.left, seen.notClean], [0, 0]);
    if (seen.refused === 0) assert.ok(seen.changed > 0);
    // Handlers never write here: they wait.
    assert.deepEqual([new Set(seen.writtenBy), seen.helperWrites], [new Set(['mprotect']), 0]);
    for (const maps of [...seen.during, ...seen.after]) assert.deepEqual(maps, alone);
  });
}

test('a handler that keeps the patcher waiting until it gives up leaves no code unlocked', async () => {
  const command = [build('waits.c')] as const;
  const alone = await mapsAlone(command, WAITS_THREADS);
  const ran = confined(place('SYS_open'), roundsProgram, String(ROUNDS), ...command);
  assert.equal(ran.status, 0, ran.stderr);
  const seen = JSON.parse(ran.stdout) as ConfinedRounds;
  assert.deepEqual([seen.left, seen.notClean], [0, 0]);
  for (const maps of [...seen.during, ...seen.after]) assert.deepEqual(maps, alone);
  assert.deepEqual(seen.end, { kind: 'killed', signal: 15 });
});

test('handlers in a place from which /proc has gone wait for the agent’s thread, which has its file, and no result is wrong', () => {
  const ran = spawnSync(process.execPath, [roundsProgram, String(ROUNDS), build('signals.c'), '0', 'anpq'], {
    cwd: folder,
    encoding: 'utf8',
  });
  assert.equal(ran.status, 0, ran.stderr);
  const seen = JSON.parse(ran.stdout) as ConfinedRounds;
  assert.deepEqual([seen.end, seen.left, seen.notClean], [{ kind: 'exited', status: 0 }, 0, 0], ran.stdout);
  assert.deepEqual([new Set(seen.writtenBy), seen.helperWrites], [new Set(['proc-self-mem']), 0]);
});

test('where code can be made writable neither way the program is refused with both reasons, and does not run', () => {
  for (const [call, what] of [
    ['SYS_open', 'open it: EPERM'],
    ['SYS_pwrite64', 'write it: EPERM'],
  ] as const) {
    const wrapper = place(call, `-DNOT_WRITABLE=${OBJECT_DATA - TEXT}`);
    // What V8 compiles once more in the background may happen to have just the length that the filter looks for.
    const ran = confined(
      wrapper,
      '--liftoff-only',
      ...[main, 'run', '--inside', '-o', fresh('recording'), '--', build('fib.c'), '15'],
    );
    assert.deepEqual([ran.status, ran.stdout], [1, ''], ran.stderr);
    assert.match(
      ran.stderr,
      new RegExp(`neither by /proc/self/mem \\(${what}\\) nor by mprotect \\(EPERM\\)`),
    );
  }
});

function hasAgent(pid: number): boolean {
  return readdirSync(`/proc/${pid}/task`).some(
    (tid) => readFileSync(`/proc/${pid}/task/${tid}/comm`, 'utf8') === 'safepoke\n',
  );
}

test('safepoke dies between two changes, whichever: the program has its code, rights and mappings back, and right results', async () => {
  const program = build('signals.c');
  const alone = await mapsAlone([program, '0', 'an'], SIGNALS_THREADS);
  let point = 1;
  for (let isThrough = false; !isThrough; point += STRIDE) {
    const tracer = spawn(
      place('SYS_open'),
      [
        ...[process.execPath, main, 'run', '--inside', '--buffer', '1M', '--duration', '100ms'],
        ...['-o', fresh('recording'), '--', program, '0', 'an'],
      ],
      {
        cwd: folder,
        stdio: ['ignore', 'pipe', 'pipe'],
        env: { ...process.env, SAFEPOKE_DIE_AT: String(point) },
      },
    );
    let [said, told] = ['', ''];
    tracer.stdout.on('data', (text: Buffer) => (said += text.toString()));
    tracer.stderr.on('data', (text: Buffer) => (told += text.toString()));
    const closed = new Promise((resolve) => tracer.stdout.once('close', resolve));
    let pid: number | undefined;
    while (pid === undefined) {
      assert.ok(tracer.pid !== undefined && tracer.exitCode === null, told);
      [pid] = childrenOf(tracer.pid).filter((child) =>
        readFileSync(`/proc/${child}/comm`, 'utf8').startsWith('signals'),
      );
      await pause(1);
    }
    try {
      while (tracer.signalCode === null && !told.includes('traced functions')) await pause(5);
      isThrough = tracer.signalCode === null;
      while (changedBytes(pid) > 0 || hasAgent(pid) === !isThrough) await pause(5);
      while (readdirSync(`/proc/${pid}/task`).length < SIGNALS_THREADS) await pause(5);
      assert.deepEqual(textMapsOf(pid), alone, `fault point ${point}`);
    } finally {
      process.kill(pid, 'SIGTERM');
    }
    await closed;
    assert.match(said, /^wrong: 0$/m, `fault point ${point}: ${told}`);
  }
  assert.ok(point > 2 * STRIDE);
});

test('a program that forbids itself mprotect and mremap keeps its changed code, lives on, and that is said', async (t) => {
  const [mprotect, mremap] = [10, 25];
  const run = await Sandboxed.ready(t, [mprotect, mremap], [], [place('SYS_open')]);
  run.shell.stdin.write('confine\n');
  await run.says('ready\nfine\n');
  process.kill(run.tracer, 'SIGHUP');
  await run.tells('status');
  assert.match(run.told, /EPERM: mprotect says EPERM(.|\n)*status 1$/m);
  assert.ok(changedBytes(run.pid) > 0);
  assert.ok(textMapsOf(run.pid).every((line) => !/ .wx/.test(line)));
  run.shell.stdin.write('work\n');
  await run.says('ready\nfine\nfine\n');
});
