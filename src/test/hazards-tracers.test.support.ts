// Other tracers on the same process, and safepoke itself stopped, killed, with a full disk, without a reader.
import { setImmediate } from 'node:timers/promises';
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readSync, readdirSync, rmSync, statSync, writeSync } from 'node:fs';
import { CannotError, attach, openRecording, type RecordingFile } from '../index.js';
import type { RecordingSink } from '../recording/index.js';
import { attachTo } from '../trace/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { addressOf, kernelProbe } from './kernel-probe.test.support.js';
import { textOf } from './process-state.test.support.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import {
  Running,
  Target,
  build,
  changedBytes,
  fresh,
  mapsOf,
  pause,
  safepoke,
  statusField,
} from './targets.test.support.js';

const BUFFER = 1 << 18;
const NEWEST_BYTES = 32 << 20;
const LOOK_MS = 200;
/** One that wants no more memory for so long is killed. */
const STARVES_MS = 3000;
const MINUTE_MS = 60_000;
/** Calls of fib(n), itself included, for the n that is used here. */
const FIB_20 = 21_891;
const FIB_25 = 242_785;

async function fib(target: Target, n: 20 | 25): Promise<void> {
  target.say(String(n));
  await target.expect(n === 20 ? /^fib\(20\)=6765$/ : /^fib\(25\)=75025$/);
}

/**
 * A debugger that comes while the process is traced: its breakpoints work, also those in the middle of our jump, functions are traced
 * again when it has gone, and it is waited for at the end.
 */
async function debugger_(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  while (rounds.next(target.pid)) {
    const notes: string[] = [];
    const noted = async (what: string): Promise<void> => {
      while (!notes.some((note) => note.includes(what))) await pause(5);
    };
    const session = attach(target.pid, {
      bufferBytes: BUFFER,
      filters: ['leaf', 'round_of'],
      onNote: (note) => notes.push(note),
    });
    await fib(target, 20);
    const gdb = spawn('gdb', ['-q', '-nx', '-p', String(target.pid)], { stdio: ['pipe', 'pipe', 'ignore'] });
    let said = '';
    gdb.stdout.on('data', (text: Buffer) => (said += text.toString()));
    const hears = async (what: RegExp): Promise<RegExpExecArray> => {
      for (;;) {
        const found = what.exec(said);
        if (found !== null) return found;
        await pause(5);
      }
    };
    const ended = new Promise((resolve) => gdb.once('exit', resolve));
    await noted('a debugger (gdb) has come');
    gdb.stdin.write('x/2i round_of\n');
    const [, second] = await hears(/<round_of\+(\d+)>/);
    assert.ok(Number(second) < SITE_LENGTH);
    gdb.stdin.write(`break leaf\nbreak *((char *)round_of + ${second})\n`);
    await hears(/Breakpoint 2 at/);
    target.say('5');
    gdb.stdin.write('continue\n');
    await hears(/Breakpoint 2, /);
    gdb.stdin.write('continue\n');
    await hears(/Breakpoint 1, /);
    const isPatient = rounds.done % 2 === 0;
    const stopped = isPatient ? undefined : session.stop();
    await pause(50);
    gdb.stdin.end('delete\ndetach\nquit\n');
    await ended;
    await target.expect(/^fib\(5\)=5$/);
    if (isPatient) {
      await noted('the debugger has gone');
      await fib(target, 20);
    }
    const { restored, removed, calls } = await (stopped ?? session.stop());
    assert.deepEqual([restored, removed, calls['round_of']], [true, true, isPatient ? 2 : 1]);
    assert.equal(changedBytes(target.pid), 0);
    await fib(target, 20);
  }
  await target.finish();
}

/**
 * A breakpoint of the kernel (a uprobe) that comes while a function is traced whose text stayed read-only, and goes later: it is left
 * alone, and the function is itself again when it has gone. Its first instruction is as long as our jump: with a shorter one nothing
 * would help.
 */
async function kernelBreakpoint(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  const { pid } = target;
  const address = addressOf(pid, 'leaf');
  const probe = kernelProbe(pid, address);
  // An imitation has nobody who would handle it.
  const runUnderProbe = async (): Promise<void> => {
    if (probe.isReal) await fib(target, 20);
  };
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  const read = (): string => {
    const bytes = Buffer.alloc(SITE_LENGTH);
    readSync(memory, bytes, 0, bytes.length, address);
    return bytes.toString('hex');
  };
  const original = read();
  const underProbe = `cc${original.slice(2)}`;
  const wanted = { bufferBytes: BUFFER, filters: ['leaf', 'fib'], readOnlyText: true };
  rounds.count(probe.isReal ? 'kinds of real probes' : 'kinds of imitated probes');
  try {
    while (rounds.next(pid)) {
      const session = attach(pid, wanted);
      await fib(target, 20);
      probe.put();
      await runUnderProbe();
      // It may come and go while the session goes on, or stay beyond its end, noticed or not.
      const [goes, isNoticed] = [rounds.done % 3 === 0, rounds.done % 3 < 2];
      if (isNoticed) while (read() !== underProbe) await pause(1);
      if (goes) {
        probe.takeAway();
        await fib(target, 20);
      }
      const summary = await session.stop();
      assert.deepEqual(
        [summary.restored, summary.removed, read()],
        [goes, true, goes ? original : underProbe],
      );
      await runUnderProbe();
      if (!goes) {
        const next = attach(pid, wanted);
        assert.deepEqual(
          next.refused.map(({ reason }) => reason),
          ['changed'],
        );
        await next.stop();
        probe.takeAway();
      }
      await fib(target, 20);
      assert.equal(read(), original);
      assert.equal(changedBytes(pid), 0);
    }
  } finally {
    probe.close();
    closeSync(memory);
  }
  await target.finish();
}

/**
 * Breakpoints of the kernel that come and go while functions are traced whose text is writable: they wait until safepoke has left, or was
 * killed, and none is ever put over a jump. The first instructions are shorter than that.
 */
async function waitingBreakpoints(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c', '-static'), '-');
  const { pid } = target;
  const before = textOf(pid);
  const probes = ['fib', 'fflush', 'dlsym'].map((name) => kernelProbe(pid, addressOf(pid, name)));
  const areReal = probes.every(({ isReal }) => isReal);
  const put = (): void => {
    if (areReal) for (const probe of probes) probe.put();
  };
  const takeAway = (): void => {
    if (areReal) for (const probe of probes) probe.takeAway();
  };
  rounds.count(areReal ? 'kinds of real probes' : 'kinds without real probes');
  try {
    while (rounds.next(pid)) {
      const isKilled = rounds.done % 4 === 0;
      const filters = ['fib', 'fflush'];
      const running = isKilled ? await Running.attach(pid, '-F', 'fib', '-F', 'fflush') : undefined;
      const session = isKilled ? undefined : attach(pid, { filters });
      for (let i = 0; i < 3; i++) {
        put();
        await fib(target, 20);
        takeAway();
      }
      if (rounds.done % 2 === 0) put();
      running?.child.kill('SIGKILL');
      await running?.gone();
      if (session !== undefined) {
        const { restored, removed, calls } = await session.stop();
        assert.deepEqual([restored, removed, calls['fib']], [true, true, 3 * FIB_20]);
      }
      await fib(target, 20);
      if (areReal && rounds.done % 2 === 0) {
        // Each has come.
        while (textOf(pid).filter((byte, i) => byte !== before[i]).length !== probes.length) await pause(2);
      }
      takeAway();
      while (!textOf(pid).equals(before)) await pause(2);
      await fib(target, 20);
    }
  } finally {
    for (const probe of probes) probe.close();
  }
  await target.finish();
}

/** All calls of a function in what a recording has, to wherever it was cut. */
function callsIn(recording: RecordingFile, name: string): { calls: number; lost: number; anomalies: number } {
  let calls = 0;
  const { lost, anomalies } = recording.visit({
    onEnter: (_lane, _depth, index) => {
      if (recording.info.functionAt(index).name === name) calls++;
      return 0;
    },
    onLeave: () => undefined,
    onLeaf: () => 0,
    onLost: () => undefined,
  });
  return { calls, lost, anomalies };
}

/** safepoke stands still while the target runs on; it may lose records, but counts them, and the target waits for nothing. */
async function stoppedTracer(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  while (rounds.next(target.pid)) {
    const running = await Running.attach(target.pid, '-F', 'fib', '--buffer', '256K');
    running.child.kill('SIGSTOP');
    await fib(target, 25);
    if (rounds.isLong && rounds.done === 1) await pause(MINUTE_MS);
    running.child.kill('SIGCONT');
    await fib(target, 20);
    const { summary, recording, stderr } = await running.stop();
    assert.equal(summary.records + summary.dropped, 2 * (FIB_25 + FIB_20), stderr);
    assert.ok(summary.dropped > 0);
    const file = openRecording(recording);
    const { calls, lost, anomalies } = callsIn(file, 'fib');
    assert.deepEqual(
      [file.fault, calls, lost, anomalies],
      [undefined, summary.calls['fib'], summary.dropped, 0],
    );
    file.close();
  }
  await target.finish();
}

function isShared(mapping: string): boolean {
  return mapping.includes('memfd:safepoke');
}

/** A file for which there is room up to a number of bytes, in the middle of a record. */
function smallDisk(path: string, room: number): RecordingSink {
  const file = openSync(path, 'w');
  let left = room;
  return {
    write: (chunks) => {
      for (const chunk of chunks) {
        const taken = Math.min(left, chunk.length);
        writeSync(file, chunk, 0, taken);
        left -= taken;
        if (taken === chunk.length) continue;
        throw new CannotError('OUTPUT_UNWRITABLE', {
          tried: `write ${path}`,
          why: 'ENOSPC',
          next: 'make room',
        });
      }
    },
  };
}

/** The disk is full: the target gets its code back, what was written can be read, and safepoke says what happened. */
async function fullDisk(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  while (rounds.next(target.pid)) {
    const path = fresh('recording');
    const room = (1 << 20) + 7 * rounds.done;
    const session = attachTo(target.pid, { filters: ['fib'], sink: smallDisk(path, room) });
    await fib(target, 25);
    await assert.rejects(session.done, /cannot write .*: ENOSPC/);
    assert.deepEqual([session.summary?.restored, session.summary?.removed], [true, true]);
    assert.equal(changedBytes(target.pid), 0);
    await fib(target, 20);
    const file = openRecording(path);
    assert.equal(file.fault?.code, 'RECORDING_TRUNCATED');
    assert.match(file.fault.message, new RegExp(`byte ${room},`));
    const { calls, anomalies } = callsIn(file, 'fib');
    assert.ok(calls > 30_000 && calls <= FIB_25, String(calls));
    assert.equal(anomalies, 0);
    file.close();
    rmSync(path);
    // Not even the first bytes can be written: nothing of it stays open or mapped here either.
    const ours = (): string[] => [...readdirSync('/proc/self/fd'), ...mapsOf(process.pid).filter(isShared)];
    const sink = smallDisk(path, 0);
    // Files of modules are open as long as no event is waited for.
    await setImmediate();
    const before = ours();
    assert.throws(() => attachTo(target.pid, { filters: ['fib'], sink }), /ENOSPC/);
    await setImmediate();
    assert.deepEqual(ours(), before);
    const ran = safepoke('attach', '-p', String(target.pid), '-F', 'fib', '-o', '/dev/full');
    assert.deepEqual([ran.status, changedBytes(target.pid)], [1, 0], ran.stderr);
    assert.match(ran.stderr, /cannot write \/dev\/full: .*make room/);
    assert.ok(existsSync('/dev/full'));
    await fib(target, 20);
  }
  await target.finish();
}

/** No more memory for it; it ends by itself when it wants some. */
async function starve({ child }: Running): Promise<void> {
  const size = Number(statusField(child.pid ?? 0, 'VmSize').split(' ')[0]) * 1024;
  execFileSync('prlimit', ['--pid', String(child.pid), `--as=${size}`]);
  const ended = new Promise((resolve) => child.once('exit', resolve));
  await Promise.race([ended, pause(STARVES_MS)]);
  child.kill('SIGKILL');
}

/** Dies at any moment; the next session puts everything back, and the recording has all that was written. */
async function dyingTracer(rounds: Rounds, die: (running: Running) => unknown): Promise<void> {
  const target = await Target.ready(build('busy.c'), '3');
  while (rounds.next(target.pid)) {
    const running = await Running.attach(target.pid, '-F', 'fib', '-F', 'mix', '--buffer', '1M');
    // What is killed before it has written anything leaves nothing to be read.
    while ((statSync(running.recording, { throwIfNoEntry: false })?.size ?? 0) === 0) await pause(1);
    await pause(rounds.done % 50);
    await die(running);
    await running.gone();
    target.say('go on');
    await target.expect(/^fine$/);
    const file = openRecording(running.recording);
    assert.match(file.fault?.message ?? '', /is cut off at byte/);
    assert.equal(callsIn(file, 'fib').anomalies, 0);
    file.close();
    const session = attach(target.pid, { filters: ['mix'], bufferBytes: BUFFER });
    const { restored, removed } = await session.stop();
    assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, true, 0]);
    target.say('go on');
    await target.expect(/^fine$/);
  }
  await target.finish();
}

/** Nobody reads any more. */
async function closedPipe(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('busy.c'), '2');
  while (rounds.next(target.pid)) {
    const running = await Running.attachPrinting(target.pid, '-F', 'mix', '--buffer', '1M');
    while (running.stdout.length < 1000) await pause(2);
    running.child.stdout.destroy();
    const { status, summary } = await running.ended();
    assert.deepEqual([status, summary.restored, summary.removed], [0, true, true]);
    assert.equal(changedBytes(target.pid), 0);
    target.say('go on');
    await target.expect(/^fine$/);
  }
  await target.finish();
}

/** A flight recorder that never comes to rest: what it keeps is bounded, and so is all else. */
async function fullRate(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('busy.c'), '2');
  const output = fresh('recording');
  // Garbage of a second says nothing of memory: less of it is made where there is no time to see it level off.
  const filters = rounds.isLong ? ['fib', 'mix'] : ['mix'];
  const wanted = { filters, bufferBytes: 1 << 24, output, newestBytes: NEWEST_BYTES };
  const session = attach(target.pid, wanted);
  while (rounds.next(target.pid)) await pause(LOOK_MS);
  const { restored, removed, records, dropped } = await session.stop();
  assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, true, 0]);
  assert.ok(records > 0);
  rounds.note('million records', records / 1e6);
  rounds.note('million dropped', dropped / 1e6);
  assert.ok(statSync(output).size <= 2 * NEWEST_BYTES);
  rmSync(output);
  target.say('go on');
  await target.expect(/^fine$/);
  await target.finish();
}

export const tracerHazards: readonly Hazard[] = [
  { name: 'a debugger that comes during the trace, with a breakpoint on a traced function', run: debugger_ },
  {
    name: 'a breakpoint of the kernel that comes to a traced function of read-only text, and goes soon, or stays when safepoke leaves',
    run: kernelBreakpoint,
  },
  {
    name: 'breakpoints of the kernel that come to traced functions, and go, wait until safepoke has left or was killed',
    run: waitingBreakpoints,
  },
  { name: 'safepoke stopped for a while: every record is kept or counted', run: stoppedTracer },
  { name: 'a full disk: the target is as it was, and what was written can be read', run: fullDisk },
  {
    name: 'safepoke killed at any moment: the target lives, the next session puts it right',
    run: (rounds) => dyingTracer(rounds, ({ child }) => child.kill('SIGKILL')),
  },
  {
    name: 'safepoke without memory: it ends, the target lives, the next session puts it right',
    run: (rounds) => dyingTracer(rounds, starve),
  },
  { name: 'nobody reads what is printed: the trace ends', run: closedPipe },
  { name: 'a flight recorder at full rate: memory of target and tracer does not grow', run: fullRate },
];
