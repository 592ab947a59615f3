import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  createReadStream,
  createWriteStream,
  mkdirSync,
  mkdtempSync,
  readdirSync,
} from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test, type TestContext } from 'node:test';
import { attach, run, type Session, type SessionStatus } from '../index.js';
import { Sandboxed, childrenOf } from './sandboxed.test.support.js';
import {
  MUSL,
  ONE_NOP,
  Running,
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
  runTraced,
  safepoke,
} from './targets.test.support.js';

/** fib(n) is entered so often. */
const FIB_15 = 1973;
const NOBODY = 65534;

test('a program traces itself from its first instruction on, with exact counts', () => {
  const traced = runTraced(['--inside'], build('fib.c'), '15');
  assert.equal(traced.status, 0, traced.stderr);
  assert.equal(traced.stdout, 'fib(15)=610\n');
  assert.deepEqual(
    [traced.summary.calls['fib'], traced.summary.calls['main'], traced.summary.dropped],
    [FIB_15, 1, 0],
  );
  assertNested(callsOf(traced.recording));
});

test('the only way from inside is the rendezvous, and the summary says so', () => {
  const traced = runTraced(['--inside', '--way', 'rendezvous', '-F', 'fib'], build('fib.c'), '15');
  assert.equal(traced.summary.calls['fib'], FIB_15, traced.stderr);
  assert.deepEqual(Object.keys(traced.summary.ways), ['rendezvous']);
  // Sites of one instruction that could be flipped are no exception.
  const flat = runTraced(['--inside', '--entry-only', '-F', 'fib'], build('fib.c', ...ONE_NOP), '15');
  assert.deepEqual(flat.summary.ways, { rendezvous: 1 });
});

test('while it runs a session tells what handlers had to do with changes, from inside only', async () => {
  const ask = (pid: number, ...args: string[]): string => {
    const ran = safepoke('control', '-p', String(pid), '--status', ...args);
    assert.equal(ran.status, 0, ran.stderr);
    return ran.stdout;
  };
  const inside = Running.run(['--inside'], build('fib.c'), '-');
  while (!inside.stdout.includes('ready')) await pause(10);
  const [pid] = childrenOf(inside.child.pid ?? 0);
  assert.match(
    ask(pid),
    /^sites +\d+ rendezvous\n(.+\n)+written +by \/proc\/self\/mem\nwaited +\d.* at longest\nhelped +\d.* by signal handlers$/m,
  );
  const { inside: counts } = JSON.parse(ask(pid, '--json')) as SessionStatus;
  assert.ok(counts !== null && counts.written_by === 'proc-self-mem');
  inside.child.stdin.end();
  const { summary } = await inside.ended();
  assert.deepEqual(Object.keys(summary.inside ?? {}), [
    'waits',
    'longest_wait_us',
    'helper_writes',
    'written_by',
  ]);
  assert.ok((summary.inside?.waits ?? 0) >= counts.waits);
  const outside = Running.run([], build('fib.c'), '-');
  while (!outside.stdout.includes('ready')) await pause(10);
  const [other] = childrenOf(outside.child.pid ?? 0);
  assert.doesNotMatch(ask(other), /waited|helped/);
  assert.equal((JSON.parse(ask(other, '--json')) as SessionStatus).inside, null);
  outside.child.stdin.end();
  assert.equal((await outside.ended()).summary.inside, null);
});

test('threads that come and go are traced exactly from inside', () => {
  const traced = runTraced(['--inside'], build('threads.c'), '4', '200', '50');
  assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
  assertCounted(traced);
  assert.equal(traced.summary.threads, 205);
});

for (const flags of ['', 'an']) {
  test(`handlers of a storm of timers run through the shim, and are traced exactly: "${flags}"`, () => {
    const traced = runTraced(['--inside'], build('signals.c'), '150', flags);
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    assertCounted(traced);
    assertNested(callsOf(traced.recording));
  });
}

test('a program finds out the same about its handlers and masks as without us', () => {
  const program = build('actions.c');
  const alone = spawnSync(program, { encoding: 'utf8', cwd: folder });
  const traced = runTraced(['--inside'], program);
  assert.equal(traced.status, 0, traced.stderr);
  assert.equal(traced.stdout, alone.stdout);
});

test('exceptions, cancellation and backtraces go through the shim and the wrappers', () => {
  const throws = runTraced(['--inside'], build('throws.cc'));
  assert.equal(throws.status, 0, throws.stderr);
  assertCounted(throws);
  const program = build('unwind.c');
  const alone = spawnSync(program, { encoding: 'utf8', cwd: folder });
  const unwound = runTraced(['--inside'], program);
  assert.equal(unwound.stdout, alone.stdout);
});

/** Ends the session and begins another, so often. */
async function turnRound(
  first: Session,
  rounds: number,
  between = 30,
  filters?: readonly string[],
): Promise<void> {
  let session = first;
  try {
    for (let i = 0; i < rounds; i++) {
      await pause(between);
      const summary = await session.stop();
      assert.deepEqual(
        [summary.ended, summary.restored, summary.removed],
        ['stopped', true, true],
        `round ${i}`,
      );
      session = attach(first.pid, { inside: true, ...(filters === undefined ? {} : { filters }) });
    }
    await pause(between);
    await session.stop();
  } catch (error) {
    // Nobody else would end it, and who waits for its end would wait for ever.
    process.kill(first.pid, 'SIGKILL');
    throw error;
  }
}

/** What `assertStaysRight` does otherwise than as a rule. */
interface Turns {
  /** Of the first session, and of the later ones. */
  readonly filters?: readonly string[];
  readonly later?: readonly string[];
  readonly between?: number;
  readonly end?: NodeJS.Signals;
}

/** Sessions come and go in a program until it is told to end. It has compared every result, and says by its status whether all were right. */
async function assertStaysRight(
  command: [string, ...string[]],
  { filters, later, between, end = 'SIGTERM' }: Turns = {},
): Promise<void> {
  const session = run(command, { inside: true, ...(filters === undefined ? {} : { filters }) });
  const ended = session.waitForTarget();
  await turnRound(session, 5, between, later);
  process.kill(session.pid, end);
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
}

test('sites are turned on and off under busy threads and a storm of signals, and no result is wrong', async () => {
  await assertStaysRight([build('signals.c'), '0', 'an']);
});

for (const letters of ['ans', 'cs']) {
  test(`handlers that a program installs by raw system calls, before and while it works, are traced exactly: "${letters}"`, () => {
    const traced = runTraced(['--inside'], build('raw.c'), '700', letters);
    assert.equal(traced.status, 0, `${traced.stdout} ${traced.stderr}`);
    assertCounted(traced);
    assertNested(callsOf(traced.recording));
  });
}

test('a handler that was installed by a raw system call has our shim once code has changed under running threads', async () => {
  const running = Running.run(['--inside', '--duration', '200ms'], build('raw.c'), '1200', 'ano');
  const { status, stdout, stderr } = await running.ended();
  assert.equal(status, 0, stderr);
  // All flags are those that it gave: SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_RESTART, SA_NODEFER.
  assert.match(stdout, /^wrong: 0\nfound: another, flags 5c000004$/m);
});

for (const letters of ['anq', 'ahq']) {
  test(`sites are turned on and off under a storm of handlers that raw system calls install: "${letters}"`, async () => {
    const session = run([build('raw.c'), '0', letters], { inside: true });
    const ended = session.waitForTarget();
    await turnRound(session, 5);
    process.kill(session.pid, 'SIGTERM');
    assert.deepEqual(await ended, { kind: 'exited', status: 0 });
  });
}

/** Where threads never meet, or one has jumped into code of ours, code is left alone, and that is said. */
function assertRestoredOrSaid(restored: boolean, notes: readonly string[]): void {
  assert.ok(
    restored || notes.some((note) => note.includes('the code stays mapped, unused')),
    notes.join('\n'),
  );
}

/** A program that a failed test has left would keep the tests from ending. */
function endAfter(t: TestContext, pid: number): void {
  t.after(() => {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  });
}

test('where each handler installs itself by a raw system call code changes or is left alone, and no result is wrong', async (t) => {
  const notes: string[] = [];
  const filters = ['even', 'odd', 'inner', 'work', 'step'];
  const options = { inside: true, filters, onNote: (line: string) => notes.push(line) };
  const first = run([build('raw.c'), '0', 'anrq'], options);
  const { pid } = first;
  endAfter(t, pid);
  const ended = first.waitForTarget();
  await pause(100);
  assertRestoredOrSaid((await first.stop()).restored, notes);
  for (let i = 0; i < 5; i++) {
    try {
      const session = attach(pid, options);
      for (const { reason } of session.refused)
        assert.match(reason, /^(handler-busy|thread-inside|changed)$/);
      assertRestoredOrSaid((await session.stop()).restored, notes);
    } catch (error) {
      if (error instanceof assert.AssertionError) throw error;
      assert.match(String(error), /installs signal handlers again and again.*past the C library/);
    }
  }
  for (const note of notes) assert.match(note, /the code stays mapped, unused|; trying on$/);
  process.kill(pid, 'SIGTERM');
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
});

test('a program with more handlers than there are shims keeps its code from being changed, and the reason is said', async () => {
  const notes: string[] = [];
  const session = run([build('many.c'), '3000'], { inside: true, onNote: (line) => notes.push(line) });
  const ended = session.waitForTarget();
  await pause(500);
  const { restored, removed } = await session.stop();
  assert.deepEqual([restored, removed], [true, false]);
  assert.match(notes.join('\n'), /signal 10 is called without our shim.*more than 512 different ones/);
  assert.throws(
    () => attach(session.pid, { inside: true }),
    /more than 512 different ones; trace it from outside/,
  );
  assert.equal(changedBytes(session.pid), 0);
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
});

test('a process whose memory another shares without being its thread is refused from inside as well, and traced when that has ended', async (t) => {
  const [lines, answers] = [fresh('lines'), fresh('answers')];
  for (const path of [lines, answers]) assert.equal(spawnSync('mkfifo', [path]).status, 0);
  const options = { inside: true, filters: ['step', 'work'] };
  const session = run([build('shares.c'), lines, answers], options);
  const { pid } = session;
  const ended = session.waitForTarget();
  let isOver = false;
  t.after(() => {
    if (!isOver) process.kill(pid, 'SIGKILL');
  });
  const target = createWriteStream(lines);
  const said = createInterface({ input: createReadStream(answers) })[Symbol.asyncIterator]();
  const says = async (expected: string): Promise<void> => {
    const { value } = (await said.next()) as { value: string | undefined };
    assert.equal(value, expected);
  };
  await says('ready');
  const { removed } = await session.stop();
  assert.equal(removed, true);
  for (const kind of ['more', 'own']) {
    target.write(`${kind}\n`);
    await says('fine');
    assert.throws(
      () => attach(pid, options),
      /shares its memory without being a thread of it.*has ended, or has executed a program/,
    );
    assert.equal(changedBytes(pid), 0);
    for (const line of ['work', 'none']) {
      target.write(`${line}\n`);
      await says('fine');
    }
    const summary = await attach(pid, options).stop();
    assert.deepEqual([summary.ended, summary.restored, summary.removed], ['stopped', true, true]);
  }
  target.end();
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
  isOver = true;
});

test('handlers that can open nothing let the agent’s thread make the change, and no result is wrong', async () => {
  await assertStaysRight([build('signals.c'), '0', 'dan']);
});

test('handlers that jump out of the rendezvous leave no wrong result behind', async (t) => {
  const notes: string[] = [];
  const first = run([build('signals.c'), '0', 'ajn'], { inside: true, onNote: (line) => notes.push(line) });
  endAfter(t, first.pid);
  const ended = first.waitForTarget();
  await pause(100);
  // Leaving may take until the program's end: a thread that has jumped elsewhere may be in our code.
  const { ended: why, restored } = await first.stop();
  assert.ok(['stopped', 'exited', 'gone'].includes(why), why);
  assertRestoredOrSaid(restored, notes);
  process.kill(first.pid, 'SIGTERM');
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
});

test('handlers that leap out by a plain longjmp leave their threads such that they can be called together', async () => {
  await assertStaysRight([build('leaps.c')], { between: 100 });
});

test('exceptions that leave handlers, and threads that end in one, leave nothing behind that keeps code from being changed', async () => {
  // None of them is open when an exception is thrown: what comes of swapped return addresses is another matter.
  const filters = ['work', 'step'];
  await assertStaysRight([build('leaves.cc'), '0'], { filters, later: filters, between: 100, end: 'SIGINT' });
});

test('what threads have counted that ended within a handler by a system call of their own is taken back', async () => {
  await assertStaysRight([build('vanish.c')], { filters: ['step', 'compare'], between: 100 });
});

test('a handler that waits for a thread that stands still keeps nobody for long', async () => {
  await assertStaysRight([build('waits.c')], { filters: ['step', 'handle'], between: 100, end: 'SIGINT' });
});

test('threads that wait in system calls get no false EINTR from a rendezvous', async () => {
  const running = Running.run(['--inside', '--duration', '1500ms'], build('blocked.c', '-lrt'));
  while (!running.stdout.includes('ready')) await pause(10);
  while (!running.stderr.includes('traced function')) await pause(10);
  assert.equal(running.stdout, 'ready\n');
  running.child.stdin.end();
  const ended = await running.ended();
  assert.deepEqual(
    [ended.status, ended.summary.restored, ended.summary.removed],
    [0, true, true],
    ended.stderr,
  );
});

test('where ptrace and process_vm_readv are forbidden, for an unprivileged user, it works all the same', () => {
  chmodSync(folder, 0o755);
  const mine = join(folder, 'nobody');
  mkdirSync(mine);
  chmodSync(mine, 0o777);
  const confined = (...args: string[]): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(build('confine.c'), [process.execPath, main, 'run', ...args], {
      cwd: mine,
      uid: NOBODY,
      gid: NOBODY,
      encoding: 'utf8',
    });
  const refused = confined('--', build('fib.c'), '15');
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /refused ptrace/);
  const summary = join(mine, 'summary.json');
  const traced = confined('--inside', '-o', 'recording', '--summary', summary, '--', build('fib.c'), '15');
  assert.equal(traced.status, 0, traced.stderr);
  assert.equal(readSummary(summary).calls['fib'], FIB_15);
  const stopped = confined(
    ...['--inside', '-o', 'recording', '--summary', summary, '--duration', '200ms', '--'],
    ...[build('signals.c'), '60000', 'an'],
  );
  assert.equal(stopped.status, 0, stopped.stderr);
  assert.match(stopped.stdout, /^wrong: 0$/m);
  const { ended, restored, removed } = readSummary(summary);
  assert.deepEqual([ended, restored, removed], ['stopped', true, true]);
});

test('when safepoke is killed the program gets its code back and runs on', async () => {
  const session = spawn(
    process.execPath,
    [main, 'run', '--inside', '-o', fresh('recording'), '--', build('busy.c'), '3'],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  let said = '';
  session.stdout.on('data', (text: Buffer) => (said += text.toString()));
  while (!said.includes('ready')) await pause(10);
  const [pid] = childrenOf(session.pid ?? 0);
  try {
    assert.ok(changedBytes(pid) > 0);
    session.kill('SIGKILL');
    while (changedBytes(pid) > 0) await pause(10);
    while (readdirSync(`/proc/${pid}/task`).length > 4) await pause(10);
  } finally {
    process.kill(pid, 'SIGKILL');
  }
});

test('the status of the program is passed on, and nothing of us is in its environment', () => {
  const traced = runTraced(['--inside'], '/bin/bash', '-c', 'echo "<$LD_PRELOAD>"; exit 7');
  assert.deepEqual([traced.status, traced.stdout], [7, '<>\n'], traced.stderr);
  assert.equal(traced.summary.exit_status, 7);
  const killed = runTraced(['--inside'], '/bin/bash', '-c', 'kill -TERM $$');
  assert.deepEqual([killed.status, killed.summary.exit_signal], [143, 15], killed.stderr);
});

/** Numbers of system calls that a filter of the program's forbids to all of its threads while it is traced, and what comes of it. */
const FILTERS = [
  { forbids: 'mremap', numbers: [25] },
  { forbids: 'futex', numbers: [202] },
  { forbids: 'open and openat', numbers: [2, 257] },
  { forbids: 'madvise and close', numbers: [28, 3] },
  { forbids: 'munmap', numbers: [11], stays: /may not unmap memory/ },
  { forbids: 'tgkill', numbers: [234], stays: /may not call tgkill \(EPERM\)/ },
  { forbids: 'rt_sigaction', numbers: [13], stays: /may not call rt_sigaction \(EPERM\)/ },
  { forbids: 'pread64', numbers: [17], fails: /may not call pread64 \(EPERM\)/ },
  { forbids: 'mremap and pwrite64', numbers: [25, 18], fails: /EPERM.*forbids pwrite64/, leavesText: true },
  {
    forbids: 'all that we need',
    numbers: [2, 9, 11, 17, 18, 25, 28, 202, 234, 257],
    fails: /EPERM/,
    leavesText: true,
  },
] as const satisfies readonly {
  forbids: string;
  numbers: readonly number[];
  stays?: RegExp;
  fails?: RegExp;
  leavesText?: boolean;
}[];

for (const filter of FILTERS) {
  test(`a program that forbids itself ${filter.forbids} lives on, and what cannot be put back is said`, async (t) => {
    const summary = fresh('summary.json');
    const confined = await Sandboxed.ready(t, filter.numbers, ['--summary', summary]);
    confined.shell.stdin.write('confine\n');
    await confined.says('ready\nfine\n');
    // The program does not mind the signal that ends the session.
    process.kill(confined.tracer, 'SIGHUP');
    await confined.tells('fails' in filter ? 'status' : 'traced functions');
    while (!('leavesText' in filter) && changedBytes(confined.pid) > 0) await pause(10);
    confined.shell.stdin.write('work\n');
    await confined.says('ready\nfine\nfine\n');
    confined.shell.stdin.end();
    await confined.tells('status');
    if ('fails' in filter) {
      assert.match(confined.told, /status 1$/m);
      assert.match(confined.told, filter.fails);
      return;
    }
    assert.match(confined.told, /status 0$/m);
    const { ended, restored, removed } = readSummary(summary);
    const stays = 'stays' in filter;
    assert.deepEqual([ended, restored, removed], ['stopped', true, !stays], confined.told);
    if (stays) assert.match(confined.told, filter.stays);
  });
}

test('where no further signal may wait, the program gets its code back without a rendezvous, and that is said', async () => {
  const summary = fresh('summary.json');
  const child = spawn(
    'prlimit',
    [
      ...[
        '--sigpending=0',
        process.execPath,
        main,
        'run',
        '--inside',
        '-F',
        'step',
        '-o',
        fresh('recording'),
      ],
      ...['--summary', summary, '--', build('sandbox.c')],
    ],
    { stdio: 'pipe' },
  );
  let [said, told] = ['', ''];
  child.stdout.on('data', (text: Buffer) => (said += text.toString()));
  child.stderr.on('data', (text: Buffer) => (told += text.toString()));
  while (said !== 'ready\n') await pause(10);
  child.kill('SIGHUP');
  while (!told.includes('traced function')) await pause(10);
  assert.match(told, /does not come \(as many signals wait as may: RLIMIT_SIGPENDING\)/);
  child.stdin.end('work\n');
  await new Promise((resolve) => child.once('close', resolve));
  assert.deepEqual([child.exitCode, said], [0, 'ready\nfine\n']);
  const { ended, restored, removed } = readSummary(summary);
  assert.deepEqual([ended, restored, removed], ['stopped', true, false]);
});

test('a program that takes the rights of another user is refused, for whoever has not got them', () => {
  const mine = mkdtempSync(join(folder, 'set-id'));
  chmodSync(folder, 0o755);
  chmodSync(mine, 0o777);
  const program = join(mine, 'program');
  copyFileSync(build('fib.c'), program);
  for (const mode of [0o4755, 0o2755]) {
    chmodSync(program, mode);
    const ran = spawnSync(process.execPath, [main, 'run', '--inside', '--', program, '15'], {
      cwd: mine,
      uid: NOBODY,
      gid: NOBODY,
      encoding: 'utf8',
    });
    assert.deepEqual([ran.status, ran.stdout], [1, ''], ran.stderr);
    assert.match(
      ran.stderr,
      /rights of another user or capabilities.*; run safepoke as root, without --inside/,
    );
  }
  chmodSync(program, 0o755);
  spawnSync('setcap', ['cap_net_raw=ep', program]);
  const isMarked = spawnSync('getcap', [program], { encoding: 'utf8' }).stdout.includes('cap_net_raw');
  if (isMarked) {
    const ran = safepoke('run', '--inside', '--', program, '15');
    assert.deepEqual([ran.status, ran.stdout], [1, ''], ran.stderr);
    assert.match(ran.stderr, /capabilities/);
  }
});

test('a program of musl is refused, linked statically or not', () => {
  const dynamic = safepoke('run', '--inside', '--', build('fib.c', MUSL), '15');
  assert.deepEqual([dynamic.status, dynamic.stdout], [1, '']);
  assert.match(dynamic.stderr, /its C library is musl.*run it without --inside/);
  const linked = safepoke('run', '--inside', '--', build('fib.c', MUSL, '-static'), '15');
  assert.deepEqual([linked.status, linked.stdout], [1, '']);
  assert.match(linked.stderr, /static program/);
});

test('children that are forked, vforked or spawned run on, and only their parent is recorded', () => {
  for (const how of ['fork', 'spawn']) {
    const traced = runTraced(['--inside'], build('processes.c'), how);
    assert.equal(traced.status, 0, traced.stderr);
    assertCounted(traced);
  }
  const all = runTraced(['--inside', '-F', '*', '-F', 'libc.so.6!*'], build('processes.c'), 'spawn');
  assert.equal(all.status, 0, all.stderr);
});

test('a program that executes another one ends the session from inside, and goes on without us', async () => {
  const running = Running.run(['--inside'], '/bin/bash', '-c', 'exec cat');
  while (!running.stderr.includes('traced functions')) await pause(10);
  running.child.stdin.end('still here\n');
  const { status, stdout, summary } = await running.ended();
  assert.deepEqual([status, stdout, summary.ended], [0, 'still here\n', 'exec']);
});

test('what cannot be traced from inside is refused with the reason, and does not run', () => {
  const isStatic = safepoke('run', '--inside', '--', build('fib.c', '-static'), '15');
  assert.equal(isStatic.status, 1);
  assert.match(isStatic.stderr, /static program/);
  assert.equal(isStatic.stdout, '');
  const noProgram = safepoke('run', '--inside', '--', '/etc/passwd');
  assert.equal(noProgram.status, 1, noProgram.stderr);
});
