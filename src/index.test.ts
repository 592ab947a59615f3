import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { execFileSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { attach, listFunctions, openRecording, run, type Call } from './index.js';

const SOURCE = `
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((noinline)) unsigned leaf(unsigned n) { __asm__ volatile("" ::: "memory"); return n * 3 + 1; }
__attribute__((noinline)) unsigned middle(unsigned n) { unsigned r = leaf(n) + leaf(n + 1); __asm__ volatile("" : "+r"(r)); return r; }
int main(int argc, char **argv) {
  unsigned sum = 0;
  if (argc > 1) { for (int i = 0; i < atoi(argv[1]); i++) sum += middle(i); return sum & 1; }
  puts("ready"); fflush(stdout);
  for (;;) { sum += middle(sum); usleep(1000); }
}
`;

let folder: string;
let program: string;

before(() => {
  folder = mkdtempSync(join(tmpdir(), 'safepoke-library-'));
  program = join(folder, 'program');
  writeFileSync(join(folder, 'program.c'), SOURCE);
  execFileSync('gcc', ['-O1', '-o', program, join(folder, 'program.c')]);
});

after(() => {
  rmSync(folder, { recursive: true });
});

async function withProgram(body: (pid: number) => Promise<void>): Promise<void> {
  const child: ChildProcess = spawn(program, { stdio: ['ignore', 'pipe', 'ignore'] });
  if (child.stdout === null) throw new Error('no pipe');
  await once(child.stdout, 'data');
  try {
    await body(child.pid ?? 0);
    assert.equal(child.exitCode, null, 'the program still runs');
  } finally {
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
}

test('a program run under trace gives each of its calls, with parent, depth and times, in an async iteration', async () => {
  const calls: Call[] = [];
  const session = run([program, '50'], { filters: ['middle', 'leaf', 'main'] });
  for await (const call of session) calls.push(call);
  const of = (name: string): Call[] => calls.filter((c) => c.function.name === name);
  assert.equal(of('main').length, 1);
  assert.equal(of('middle').length, 50);
  assert.equal(of('leaf').length, 100);
  for (const call of of('leaf')) {
    assert.equal(call.parent?.function.name, 'middle');
    assert.equal(call.depth, 2);
    assert.ok(call.duration !== undefined && call.duration >= 0n);
    assert.ok((call.parent.duration ?? 0n) >= call.duration);
  }
  const summary = await session.done;
  assert.equal(summary.exit_status, 0);
  assert.equal(summary.records, 2 * 151);
  assert.equal(summary.dropped, 0);
  await session.waitForTarget();
});

test('leaving the iteration ends the session, and the process is as it was', async () => {
  await withProgram(async (pid) => {
    const maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
    const session = attach(pid, { filters: ['leaf'] });
    let seen = 0;
    for await (const call of session) {
      assert.equal(call.function.name, 'leaf');
      if (++seen === 10) break;
    }
    const summary = await session.done;
    assert.equal(summary.ended, 'stopped');
    assert.ok(summary.restored);
    assert.ok(summary.removed);
    assert.equal(readFileSync(`/proc/${pid}/maps`, 'utf8'), maps);
  });
});

/** Waits, without a turn for anybody else, until the program has ended. */
function waitForZombie(pid: number): void {
  const isOver = (): boolean =>
    !existsSync(`/proc/${pid}/stat`) || /\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  while (!isOver()) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
}

/** No more calls than this are made at once of what waits. */
const MOST_AT_ONCE = 8192;

test('once the iteration is left no more calls are made, whatever is in the rings', async (t) => {
  const session = run([program, '100000'], { filters: ['middle', 'leaf'] });
  // Each call asks for its function.
  const asked = t.mock.method(session.info, 'functionAt');
  for await (const call of session) {
    assert.equal(call.function.name, 'leaf');
    waitForZombie(session.pid);
    break;
  }
  const summary = await session.done;
  await session.waitForTarget();
  assert.equal(summary.records + summary.dropped, 2 * 300_000);
  assert.ok(asked.mock.callCount() < MOST_AT_ONCE, `${asked.mock.callCount()} were made`);
});

test('calls are made when the iteration asks for them, and it gets all of them, long after the program has ended', async (t) => {
  const session = run([program, '100000'], { filters: ['middle', 'leaf'] });
  const asked = t.mock.method(session.info, 'functionAt');
  let calls = 0;
  for await (const call of session) {
    if (calls++ > 0) continue;
    assert.equal(call.function.name, 'leaf');
    await session.done;
    assert.ok(asked.mock.callCount() < MOST_AT_ONCE, `${asked.mock.callCount()} were made`);
  }
  await session.waitForTarget();
  assert.equal(calls, 300_000);
});

test('an iteration whose body never waits gives others their turns', async (t) => {
  const session = run([program, '100000'], { filters: ['middle', 'leaf'] });
  let calls = 0;
  const turn = t.mock.fn();
  const timer = setInterval(turn, 1);
  for await (const call of session) {
    assert.ok(call.duration !== undefined);
    if (++calls > 1) continue;
    await session.done;
    turn.mock.resetCalls();
  }
  clearInterval(timer);
  await session.waitForTarget();
  assert.equal(calls, 300_000);
  assert.ok(turn.mock.callCount() > 0);
});

test('a session that records writes a file that tells the same as its summary', async () => {
  const path = join(folder, 'recording');
  const session = run([program, '1000'], { output: path });
  const summary = await session.done;
  await session.waitForTarget();
  const recording = openRecording(path);
  try {
    const counted: Record<string, number> = {};
    for (const call of recording.calls())
      counted[call.function.name] = (counted[call.function.name] ?? 0) + 1;
    assert.deepEqual(counted, { ...summary.calls });
    assert.equal(counted['leaf'], 2000);
    assert.equal(recording.fault, undefined);
  } finally {
    recording.close();
  }
});

test('no call begins before the trace, though the process is busy while it begins', async () => {
  const child = spawn(program, [String(2 ** 31 - 1)], { stdio: 'ignore' });
  await once(child, 'spawn');
  const starts: bigint[] = [];
  for (let i = 0; i < 5; i++) {
    for await (const call of attach(child.pid ?? 0, { filters: ['middle', 'leaf'] })) {
      starts.push(call.start);
      break;
    }
  }
  child.kill('SIGKILL');
  await once(child, 'exit');
  assert.equal(starts.length, 5);
  assert.deepEqual(
    starts.filter((start) => start < 0n),
    [],
  );
});

test('one process can be attached to again and again', async () => {
  await withProgram(async (pid) => {
    const maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
    for (let i = 0; i < 20; i++) {
      const summary = await attach(pid).stop();
      assert.ok(summary.restored && summary.removed);
    }
    assert.equal(readFileSync(`/proc/${pid}/maps`, 'utf8'), maps);
  });
});

test('what a killed session left is put right by the next one, and the process never notices', async () => {
  await withProgram(async (pid) => {
    const maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
    const cli = join(import.meta.dirname, 'cli', 'main.js');
    for (let i = 0; i < 5; i++) {
      const tracer = spawn(process.execPath, [cli, 'attach', '-p', String(pid)]);
      await once(tracer.stdout, 'data');
      assert.throws(() => attach(pid), { code: 'ALREADY_TRACED' });
      tracer.kill('SIGKILL');
      await once(tracer, 'exit');
      assert.notEqual(readFileSync(`/proc/${pid}/maps`, 'utf8'), maps);
      const notes: string[] = [];
      const session = attach(pid, { filters: ['leaf'], onNote: (line) => notes.push(line) });
      for await (const call of session) {
        assert.equal(call.function.name, 'leaf');
        break;
      }
      assert.ok((await session.done).restored);
      assert.match(notes.join(), /was killed while it traced/);
      assert.equal(readFileSync(`/proc/${pid}/maps`, 'utf8'), maps);
    }
  });
});

test('the functions of a file and of the process that runs it are the same, at shifted addresses', async () => {
  await withProgram(async (pid) => {
    const inFile = listFunctions({ file: program }).functions;
    const inProcess = listFunctions({ pid }).functions;
    assert.deepEqual(
      inProcess.map((f) => [f.name, f.kind, f.size]),
      inFile.map((f) => [f.name, f.kind, f.size]),
    );
    const bias = inProcess[0].address - inFile[0].address;
    assert.ok(inProcess.every((f, i) => f.address - inFile[i].address === bias));
    await Promise.resolve();
  });
});

test('bad requests are refused by name before anything is done', () => {
  assert.throws(() => attach(2 ** 22 + 1), { code: 'NO_PROCESS' });
  assert.throws(() => run([program], { exits: 'none', depth: 1 }), { code: 'DEPTH_OF_ENTRIES' });
  assert.throws(() => run([program], { bufferBytes: 1 }), { code: 'BAD_SIZE' });
  assert.throws(() => run([program], { filters: ['leav'] }), { code: 'NO_MATCH', message: /leaf/ });
  assert.throws(() => run([program], { filters: ['nowhere.so!x'] }), { code: 'NO_MODULE' });
  assert.throws(() => run(['/no/such/program']), { code: 'NO_PROGRAM' });
});
