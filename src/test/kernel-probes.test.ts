// Probes of the kernel that are put on functions while these are traced, and the text that is writable so that they wait.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { basename } from 'node:path';
import { test } from 'node:test';
import { attach } from '../index.js';
import { PAGE, SYS, filePages, pageOf, readMaps } from '../linux/index.js';
import { addressOf, kernelProbe, type KernelProbe } from './kernel-probe.test.support.js';
import { childrenOf } from './sandboxed.test.support.js';
import { assertAsBefore, stateOf, textOf, type ProcessState } from './process-state.test.support.js';
import {
  Running,
  Target,
  answered,
  build,
  changedBytes,
  fresh,
  main,
  pause,
  statusField,
} from './targets.test.support.js';

const INT3 = 0xcc;
const JMP = 0xe9;
/** Calls of fib(20), itself included. */
const FIB_20_CALLS = 21_891;

/** How text that anybody may write to is mapped: paths of files. */
function openText(pid: number): string[] {
  return (readMaps(pid) ?? [])
    .filter(({ permissions, path }) => permissions === 'rwxp' && path.startsWith('/'))
    .map(({ path }) => path);
}

/** Probes on functions as they are now; but for `leaf` each begins with an instruction that is shorter than our jump. */
function probesOn(pid: number, patterns: readonly string[]): { probe: KernelProbe; address: number }[] {
  return patterns.map((pattern) => {
    const address = addressOf(pid, pattern);
    return { probe: kernelProbe(pid, address), address };
  });
}

/** The first byte of a function. */
function firstByte(pid: number, address: number): number {
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  try {
    const byte = Buffer.alloc(1);
    readSync(memory, byte, 0, 1, address);
    return byte[0];
  } finally {
    closeSync(memory);
  }
}

async function fib(target: Target): Promise<void> {
  target.say('20');
  await target.expect(/^fib\(20\)=6765$/);
}

/** A safepoke attaches to a process, and is killed. */
async function isKilledOn(pid: number, ...options: string[]): Promise<void> {
  const killed = await Running.attach(pid, ...options);
  killed.child.kill('SIGKILL');
  await killed.gone();
}

/** A child that the program forks now: it runs until all has been done with it, and must have been right. */
async function withChild(target: Target, work: (child: number) => Promise<void>): Promise<void> {
  target.say('fork');
  const { child } = answered(await target.line());
  try {
    await work(child);
  } finally {
    process.kill(child, 'SIGINT');
  }
  target.say('wait');
  await target.expect(/^status=0 wrong=0$/);
  await target.finish();
}

/** Looks at a traced process until its text is as it was, mapping and all. */
async function becomes(pid: number, before: Pick<ProcessState, 'text'>): Promise<void> {
  while (openText(pid).length > 0 || !textOf(pid).equals(before.text)) await pause(5);
}

test('text is writable while functions are traced, and as it was afterwards, also when safepoke is killed', async () => {
  const target = await Target.ready(build('fib.c'), '-');
  const { pid } = target;
  const before = stateOf(pid);
  const files = (): string[] => openText(pid).map((path) => basename(path));
  const running = await Running.attach(pid, '-F', 'fib');
  const opened = files();
  assert.deepEqual(opened, [basename(build('fib.c'))]);
  await fib(target);
  await running.stop();
  assertAsBefore(pid, before, 'after the session');
  for (let i = 0; i < 5; i++) {
    await isKilledOn(pid, '-F', 'fib');
    await becomes(pid, before);
    await fib(target);
  }
  const session = attach(pid, { filters: ['fib'], readOnlyText: true });
  assert.deepEqual(files(), []);
  await fib(target);
  await session.stop();
  assertAsBefore(pid, before, 'in the end');
  await target.finish();
});

test('from inside text is writable while functions are traced, and as it was afterwards, also when safepoke is killed', async () => {
  // The program gets neither of them: it goes on. Its input is a FIFO, as Node would close a pipe when safepoke has ended.
  const input = fresh('input');
  execFileSync('mkfifo', [input]);
  const writer = openSync(input, 'r+');
  const reader = openSync(input, 'r');
  for (const signal of ['SIGALRM', 'SIGKILL'] as const) {
    const command = [main, 'run', '--inside', '-F', 'fib', '-o', fresh('trace'), '--', build('fib.c'), '-'];
    const child = spawn(process.execPath, command, { stdio: [reader, 'pipe', 'ignore'] });
    let shown = '';
    child.stdout?.on('data', (data: Buffer) => {
      shown += data.toString();
    });
    while (!shown.includes('ready')) await pause(10);
    const [pid] = childrenOf(child.pid ?? 0);
    assert.equal(openText(pid).length, 1);
    child.kill(signal);
    while (openText(pid).length > 0) await pause(10);
    assert.equal(changedBytes(pid), 0);
    writeSync(writer, '20\n');
    while (!/^fib\(20\)=6765$/m.test(shown)) await pause(10);
    process.kill(pid, 'SIGKILL');
  }
  closeSync(reader);
  closeSync(writer);
});

test('where writable text would count against the program it stays read-only, and that is said', async () => {
  for (const [limits, why] of [
    [['--data=1000000000'], /may end the program: its limit on data/],
    [[], undefined],
  ] as const) {
    const target = await Target.ready(build('fib.c'), '-');
    execFileSync('prlimit', ['--pid', String(target.pid), ...limits]);
    const notes: string[] = [];
    const session = attach(target.pid, { filters: ['fib'], onNote: (note) => notes.push(note) });
    assert.equal(openText(target.pid).length === 0, why !== undefined);
    if (why === undefined) assert.deepEqual(notes, []);
    else assert.match(notes.join('\n'), why);
    await fib(target);
    const { restored, removed } = await session.stop();
    assert.deepEqual([restored, removed], [true, true]);
    await target.finish();
  }
});

test('text in which nothing is traced stays read-only, and probes of the kernel there go on working', async () => {
  const target = await Target.ready(build('fib.c', '-static'), '-');
  const { pid } = target;
  const [{ probe, address }] = probesOn(pid, ['fgets']);
  try {
    const session = attach(pid, { filters: ['fib'] });
    const executable = (readMaps(pid) ?? []).filter(({ path }) => path === build('fib.c', '-static'));
    assert.match(
      executable.find(({ start, end }) => start <= address && address < end)?.permissions ?? '',
      /^r-x/,
    );
    if (probe.isReal) probe.put();
    await fib(target);
    if (probe.isReal) assert.equal(firstByte(pid, address), INT3);
    const { restored, removed } = await session.stop();
    assert.deepEqual([restored, removed], [true, true]);
    if (probe.isReal) assert.equal(firstByte(pid, address), INT3);
    await fib(target);
  } finally {
    probe.close();
  }
  await fib(target);
  await target.finish();
});

test('text is read-only again where a debugger is there as the session ends', async () => {
  const target = await Target.ready(build('fib.c'), '-');
  const before = stateOf(target.pid);
  const session = attach(target.pid, { filters: ['fib'], exits: 'none' });
  const gdb = spawn('gdb', ['-q', '-nx', '-p', String(target.pid)], { stdio: ['pipe', 'ignore', 'ignore'] });
  const ended = new Promise((resolve) => gdb.once('exit', resolve));
  while (statusField(target.pid, 'TracerPid') === '0') await pause(5);
  const stopped = session.stop();
  await pause(300);
  gdb.stdin.end('detach\nquit\n');
  const { restored, removed } = await stopped;
  await ended;
  assert.deepEqual([restored, removed], [true, true]);
  assertAsBefore(target.pid, before, 'after both');
  await fib(target);
  await target.finish();
});

test('text of a process that is stopped as the session ends is read-only again when it goes on', async () => {
  const target = await Target.ready(build('fib.c'), '-');
  const session = attach(target.pid, { filters: ['fib'] });
  target.kill('SIGSTOP');
  while (!statusField(target.pid, 'State').startsWith('T')) await pause(5);
  assert.equal((await session.stop()).removed, false);
  target.kill('SIGCONT');
  while (openText(target.pid).length > 0) await pause(5);
  assert.equal((await attach(target.pid, { filters: ['fib'] }).stop()).removed, true);
  await fib(target);
  await target.finish();
});

test('where the program filters its own system calls meanwhile text is read-only again unless mprotect is forbidden, which is said', async () => {
  for (const [number, isForbidden] of [
    [SYS.getpid, false],
    [SYS.mprotect, true],
  ] as const) {
    const target = await Target.ready(build('sandbox.c'), String(number));
    const notes: string[] = [];
    const session = attach(target.pid, { filters: ['step'], onNote: (note) => notes.push(note) });
    assert.ok(openText(target.pid).length > 0);
    target.say('confine');
    await target.expect(/^fine$/);
    const { restored, removed } = await session.stop();
    assert.deepEqual([restored, removed], [true, true]);
    assert.equal(openText(target.pid).length > 0, isForbidden);
    assert.equal(
      notes.some((note) => note.includes('text stays writable')),
      isForbidden,
    );
    target.say('work');
    await target.expect(/^fine$/);
    await target.finish();
  }
});

test('text of a program that has patched itself is read-only again in each of its mappings, also when safepoke is killed', async () => {
  const target = await Target.ready(build('patches.c'));
  const { pid } = target;
  const works = async (): Promise<void> => {
    target.say('work');
    await target.expect(/^wrong=0$/);
  };
  const before = stateOf(pid);
  const filters = ['first', 'second', 'third'];
  for (let i = 0; i < 3; i++) {
    const session = attach(pid, { filters });
    await works();
    const { restored, removed, calls } = await session.stop();
    assert.deepEqual([restored, removed, calls['second']], [true, true, 1000]);
    assert.deepEqual(openText(pid), []);
    await isKilledOn(pid, '-F', 'first', '-F', 'second', '-F', 'third');
    await becomes(pid, before);
    await works();
  }
  await target.finish();
});

test('a page that a program makes writable for itself meanwhile stays so', async () => {
  const target = await Target.ready(build('patches.c'));
  const { pid } = target;
  const say = async (line: string): Promise<void> => {
    target.say(line);
    await target.expect(/^wrong=0$/);
  };
  const session = attach(pid, { filters: ['first'] });
  await say('keep');
  const { restored, removed } = await session.stop();
  assert.deepEqual([restored, removed, openText(pid).length], [true, true, 1]);
  await say('work');
  const again = await attach(pid, { filters: ['first', 'third'] }).stop();
  assert.deepEqual([again.restored, again.removed, openText(pid).length], [true, true, 1]);
  await say('work');
  await target.finish();
});

test('where safepoke was killed and cannot have turned all functions back, text stays writable until a session comes', async () => {
  const target = await Target.ready(build('fib.c'), '-');
  const { pid } = target;
  const [fibAt, address] = ['fib', 'round_of'].map((name) => addressOf(pid, name));
  // Somebody else has changed the page that the functions are on, behind the end of one.
  const memory = openSync(`/proc/${pid}/mem`, 'r+');
  const end = address - 1;
  writeSync(memory, Buffer.of(INT3), 0, 1, end);
  closeSync(memory);
  const before = stateOf(pid);
  const killed = await Running.attach(pid, '-F', 'fib');
  while (firstByte(pid, fibAt) !== JMP) await pause(5);
  killed.child.kill('SIGKILL');
  await killed.gone();
  await fib(target);
  await pause(100);
  assert.ok(openText(pid).includes(build('fib.c')));
  assert.ok(!textOf(pid).equals(before.text));
  assert.equal((await attach(pid, { filters: ['fib'] }).stop()).removed, true);
  assertAsBefore(pid, before, 'after a session');
  await fib(target);
  await target.finish();
});

test('pages that a breakpoint has left as copies are the file’s again, and turned back when safepoke is killed', async () => {
  const target = await Target.ready(build('fib.c'), '-');
  const { pid } = target;
  const before = stateOf(pid);
  const address = addressOf(pid, 'fib');
  const memory = openSync(`/proc/${pid}/mem`, 'r+');
  const original = Buffer.of(firstByte(pid, address));
  for (const byte of [Buffer.of(INT3), original]) writeSync(memory, byte, 0, 1, address);
  closeSync(memory);
  assert.deepEqual(filePages(pid, pageOf(address), PAGE), [false]);
  await isKilledOn(pid, '-F', 'fib');
  await becomes(pid, before);
  assert.deepEqual(filePages(pid, pageOf(address), PAGE), [true]);
  await fib(target);
  await target.finish();
});

test('a child that was forked under trace has its text read-only again when it is attached to', async () => {
  const target = await Target.ready(build('offspring.c'));
  const running = await Running.attach(target.pid, '-F', 'step', '-F', 'work');
  await withChild(target, async (child) => {
    await running.stop();
    assert.ok(openText(child).length > 0);
    const { restored, removed } = await attach(child, { filters: ['step'] }).stop();
    assert.deepEqual([restored, removed, openText(child)], [true, true, []]);
  });
});

test('text is one mapping again after sessions on a process whose parent was traced before it was forked, and when safepoke is killed there', async () => {
  const target = await Target.ready(build('offspring.c'));
  const filters = ['step', 'work', 'lives', 'libc.so.6!fflush'];
  await attach(target.pid, { filters }).stop();
  await withChild(target, async (child) => {
    const before = stateOf(child);
    for (let i = 0; i < 2; i++) {
      const { restored, removed } = await attach(child, { filters }).stop();
      assert.deepEqual([restored, removed], [true, true]);
      assertAsBefore(child, before, `after ${i + 1} sessions`);
      await isKilledOn(child, ...filters.flatMap((filter) => ['-F', filter]));
      await becomes(child, before);
      await attach(child, { filters }).stop();
      assertAsBefore(child, before, `after ${i + 1} kills`);
    }
  });
});

test('a child that was forked under trace, its text in pieces, is traced, and has its code back when safepoke is killed', async () => {
  const target = await Target.ready(build('offspring.c'));
  const before = { text: textOf(target.pid) };
  const running = await Running.attach(target.pid, '-F', 'step', '-F', 'libc.so.6!*');
  await withChild(target, async (child) => {
    await running.stop();
    // It has the jumps that its parent had: these go first.
    await attach(child, { filters: ['step'] }).stop();
    for (let i = 0; i < 3; i++) {
      await isKilledOn(child, '-F', 'step', '-F', 'libc.so.6!*');
      await becomes(child, before);
    }
    const { restored, removed } = await attach(child, { filters: ['step'] }).stop();
    assert.deepEqual([restored, removed, openText(child)], [true, true, []]);
  });
});

test('a probe of the kernel that is put on traced functions waits until safepoke has left or was killed', async (t) => {
  // All in one file that nobody else uses, with text of more than a page: the kernel looks for its probes there when it is read-only again.
  const target = await Target.ready(build('fib.c', '-static'), '-');
  const { pid } = target;
  const before = stateOf(pid);
  const all = probesOn(pid, ['fib', 'leaf', 'fflush']);
  if (!all.every(({ probe }) => probe.isReal)) t.diagnostic('no real probes are to be had here: none is put');
  try {
    for (const isKilled of [false, true, false, true]) {
      const running = await Running.attach(pid, '-F', 'fib', '-F', 'leaf', '-F', 'fflush');
      const traced = all.map(({ address }) => firstByte(pid, address));
      assert.deepEqual(traced, [JMP, JMP, JMP]);
      for (const { probe } of all) if (probe.isReal) probe.put();
      await fib(target);
      assert.deepEqual(
        all.map(({ address }) => firstByte(pid, address)),
        traced,
      );
      if (isKilled) {
        running.child.kill('SIGKILL');
        await running.gone();
        while (openText(pid).length > 0) await pause(5);
      } else {
        const { summary } = await running.stop();
        assert.deepEqual(
          [summary.restored, summary.removed, summary.calls['fib']],
          [true, true, FIB_20_CALLS],
        );
      }
      await fib(target);
      for (const { probe, address } of all) if (probe.isReal) assert.equal(firstByte(pid, address), INT3);
      await fib(target);
      for (const { probe } of all) if (probe.isReal) probe.takeAway();
      await fib(target);
      await becomes(pid, before);
    }
  } finally {
    for (const { probe } of all) probe.close();
  }
  await target.finish();
});
