// From inside into the program that the target executes (`--inside --follow`). What each part of "execs.c" was given and what it finds,
// its environment, files and masks, is to be the same as without us.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  copyFileSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { SHARED_NAME } from '../agent/index.js';
import type { SessionSummary } from '../index.js';
import { attach, run } from '../index.js';
import { InsideProcess } from '../inside/inside-process.js';
import { makeSharedObject } from '../inside/shared-object.js';
import { waitForThread } from '../linux/index.js';
import { HoldTimes, killStopped } from '../target/index.js';
import { killedWhileExecuting } from './hazards-inside.test.support.js';
import { freePort, start, temporaryFolder, until, untilListening } from './real.test.support.js';
import { RedisClient, redisCommand } from './redis-client.test.support.js';
import { Rounds } from './rounds.test.support.js';
import { childrenOf } from './sandboxed.test.support.js';
import {
  Running,
  build,
  changedBytes,
  folder,
  fresh,
  main,
  pause,
  readSummary,
} from './targets.test.support.js';

const FOLLOW = ['--inside', '--follow'] as const;
/** What "execs.c" ends with, and how often it calls `step` in a part with so many left. */
const STATUS = 7;
const steps = (left: number): number => 10 + left;
const NOBODY = 65534;
/** Rounds in which safepoke is killed at some moment. */
const KILLS = 30;
/** It passes its environment on to what it executes. */
const ENVIRONMENT: NodeJS.ProcessEnv = { ...process.env, KEEP: '1' };

interface Parts {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly parts: readonly SessionSummary[];
}

/** Summaries of all parts of a trace. That of one which could not begin is empty. */
function partsAt(path: string): SessionSummary[] {
  const parts: SessionSummary[] = [];
  const isThere = (at: string): boolean => (statSync(at, { throwIfNoEntry: false })?.size ?? 0) > 0;
  for (let at = path; isThere(at); at = `${path}.${parts.length + 1}`) parts.push(readSummary(at));
  return parts;
}

/** Follows a program to its end. */
function followed(
  command: readonly string[],
  options: readonly string[] = [],
  environment = ENVIRONMENT,
): Parts {
  const summary = fresh('summary.json');
  const ran = spawnSync(
    process.execPath,
    [main, 'run', ...FOLLOW, '-o', fresh('recording'), '--summary', summary, ...options, '--', ...command],
    { cwd: folder, encoding: 'utf8', env: environment },
  );
  return { status: ran.status, stdout: ran.stdout, stderr: ran.stderr, parts: partsAt(summary) };
}

/** Fails unless a program does the same with us, and each of its parts has exactly its calls. */
function assertFollowed(command: readonly [string, ...string[]], environment = ENVIRONMENT): Parts {
  const [program, ...args] = command;
  const alone = spawnSync(program, args, { cwd: folder, encoding: 'utf8', env: environment });
  const traced = followed(command, [], environment);
  assert.deepEqual([traced.status, traced.stdout], [alone.status, alone.stdout], traced.stderr);
  assertSteps(traced, Number(args[0]));
  return traced;
}

/** Of all parts from one with so many left on. */
function assertSteps({ parts, stderr }: Parts, left: number): void {
  const wanted = Array.from({ length: left + 1 }, (_, i) => steps(left - i));
  assert.deepEqual(
    parts.map(({ calls }) => calls['step']),
    wanted,
    stderr,
  );
  assert.deepEqual(
    parts.map(({ ended, dropped }) => `${ended} ${dropped}`),
    [...Array.from({ length: left }, () => 'exec 0'), 'exited 0'],
  );
  assert.deepEqual([parts.at(-1)?.exit_status, parts.at(-1)?.exit_signal], [STATUS, null]);
}

test('a program that executes another sixty times is traced exactly in each, and finds what it finds without us', () => {
  assertFollowed([build('execs.c'), '60', 'v']);
});

test('each of the functions that execute a program is followed, with what it was given', () => {
  assertFollowed([build('execs.c'), '11', '*']);
  // With an environment of the caller's own, and one of which a variable is ours already.
  assertFollowed([build('execs.c'), '11', '*'], {});
});

for (const [how, where] of [
  ['tv', 'a second thread'],
  ['tL', 'a second thread, by a list of arguments and PATH'],
  ['sv', 'a signal handler'],
  ['se', 'a signal handler, by a list of arguments'],
] as const) {
  test(`what is executed in ${where} is followed`, () => {
    assertFollowed([build('execs.c'), '3', how]);
  });
}

test('where nothing can be executed the reason is the same, nothing of ours is left, and the trace goes on', () => {
  assertFollowed([build('execs.c'), '2', 'fv']);
});

test('children that are forked, vforked or spawned execute programs without us', () => {
  assertFollowed([build('execs.c'), '2', 'kv']);
});

test('a library that the user wants to be loaded stays, in each part', () => {
  const source = join(folder, 'own.c');
  writeFileSync(source, 'int own(void) { return 1; }\n');
  const library = join(folder, 'own.so');
  assert.equal(spawnSync('gcc', ['-shared', '-fPIC', '-o', library, source]).status, 0);
  const traced = assertFollowed([build('execs.c'), '3', '*'], { ...ENVIRONMENT, LD_PRELOAD: library });
  assert.equal(traced.stdout.split(`LD_PRELOAD=${library}\n`).length, 5);
});

test('a program is found in PATH as the C library finds it, and a script is what its interpreter is', () => {
  const program = build('execs.c');
  for (const how of ['p', 'P', 'L'])
    assertFollowed(['execs.c', '2', how], { ...ENVIRONMENT, PATH: `/nowhere::${folder}:/bin` });
  const script = join(folder, 'script');
  writeFileSync(script, `#!${program}\n`);
  chmodSync(script, 0o755);
  const traced = followed([program, '1', 'v', script]);
  assert.equal(traced.status, STATUS, traced.stderr);
  // Its arguments are: the interpreter, the script, the rest. So there is none left.
  assert.deepEqual(
    traced.parts.map(({ calls }) => calls['step']),
    [steps(1), steps(0)],
  );
});

test('what a shell executes in its own place is traced in the second part', () => {
  for (const shell of ['sh', 'bash']) {
    const script = `exec ${build('execs.c')} 0 n`;
    const traced = followed(
      [shell, '-c', script],
      ['-F', 'libc.so.6!getpid', '-F', '*!step', '-F', 'libc.so.6!puts'],
    );
    assert.equal(traced.status, STATUS, traced.stderr);
    assert.deepEqual(
      traced.parts.map(({ ended }) => ended),
      ['exec', 'exited'],
      traced.stderr,
    );
    assert.equal(traced.parts[1].calls['step'], steps(0), traced.stderr);
  }
});

test('a static program is not followed: the reason is said, and it runs as it does without us', async () => {
  const isStatic = build('execs.c', '-static');
  const quick = followed([build('execs.c'), '1', 'v', isStatic]);
  assert.equal(quick.status, STATUS);
  assert.match(quick.stderr, /static program.*not followed/);
  assert.equal(quick.parts.length, 1);
  const running = Running.run([...FOLLOW], build('execs.c'), '1', 'wv', isStatic);
  running.child.stdin.end();
  await running.gone();
  assert.match(running.stdout, /^the end$/m);
  assert.doesNotMatch(running.stdout, /LD_PRELOAD/);
});

/** A program that exits by itself, with a status of its own, and has no C library; perhaps it needs a library, which has none either. */
function withoutLibc(needsLibrary: boolean): string {
  const compile = (name: string, text: string, ...flags: string[]): string => {
    const [source, target] = [join(folder, `${name}.c`), join(folder, name)];
    writeFileSync(source, text);
    const made = spawnSync('gcc', ['-nostdlib', '-fPIC', '-o', target, source, ...flags]);
    assert.equal(made.status, 0, String(made.stderr));
    return target;
  };
  const start = `void _start(void) { __asm__("syscall" : : "a"(60), "D"(${STATUS})); }\n`;
  const loader = ['-pie', '-Wl,--dynamic-linker=/lib64/ld-linux-x86-64.so.2'];
  if (!needsLibrary) return compile('alone', start, ...loader);
  const library = compile('library-alone.so', 'int nothing;\n', '-shared');
  return compile('alone-with-library', start, ...loader, '-Wl,--no-as-needed', library);
}

test('a dynamic program without a C library is not traced: the reason is said, and executed by another it runs as without us', () => {
  for (const needsLibrary of [false, true]) {
    const program = withoutLibc(needsLibrary);
    assert.throws(() => InsideProcess.start(program, [program]), /it has no C library/);
    const executed = followed([build('execs.c'), '1', 'v', program]);
    assert.equal(executed.status, STATUS, executed.stderr);
    assert.match(executed.stderr, /it has no C library/);
    assert.equal(executed.parts.length, 1);
  }
});

test('a program that was executed, and cannot map what it shares with us, runs as without us: the rendezvous is not blocked', () => {
  const [object, objectFile, noFile] = [join(folder, 'object'), 3, 99];
  writeFileSync(
    object,
    makeSharedObject({ blockFile: noFile, objectFile, blockOffset: 0, isSuccessor: true }),
  );
  const file = openSync(object, 'r');
  const preload = `LD_PRELOAD=/proc/self/fd/${objectFile}`;
  const ran = (stdio: readonly ('pipe' | number)[], ...options: string[]): string => {
    const command = ['--ignore-environment', ...options, build('execs.c'), '0', 'sn'];
    const { status, stdout } = spawnSync('env', command, { stdio: [...stdio], encoding: 'utf8' });
    assert.equal(status, STATUS);
    return stdout;
  };
  const streams = ['pipe', 'pipe', 'pipe'] as const;
  assert.equal(ran([...streams, file], '--block-signal=RTMAX', preload), ran(streams));
  closeSync(file);
});

test('with standard streams closed what is executed finds them closed, and writes into nothing of ours', () => {
  for (const closed of ['<&-', '2>&-', '<&- 2>&-', '<&- >&- 2>&-']) {
    const redirected = `exec ${build('execs.c')} 3 '*' ${closed}`;
    const alone = spawnSync('sh', ['-c', redirected], { cwd: folder, encoding: 'utf8', env: ENVIRONMENT });
    const traced = followed(['sh', '-c', redirected], ['-F', 'libc.so.6!getpid', '-F', '*!step']);
    assert.deepEqual([traced.status, traced.stdout], [alone.status, alone.stdout], traced.stderr);
    assert.equal(traced.parts.length, 5, traced.stderr);
  }
});

test('where limits leave a successor no room for what is ours it runs without us', () => {
  const limits = [
    ['ulimit -n 5', /too few further files/],
    ['ulimit -n 7', /too few further files/],
    ['ulimit -v 200000', /address space is limited to 204800000 bytes/],
  ] as const;
  for (const [limit, reason] of limits) {
    const traced = followed(
      ['sh', '-c', `${limit}; exec ${build('execs.c')} 1 qv`],
      ['-F', 'libc.so.6!getpid'],
    );
    assert.deepEqual([traced.status, traced.stdout.includes('the end')], [STATUS, true], traced.stderr);
    assert.match(traced.stderr, reason);
    assert.equal(traced.parts.length, 1);
  }
});

test('what only lists the libraries that are loaded is not followed', () => {
  const command = ['env', 'LD_TRACE_LOADED_OBJECTS=1', build('execs.c')] as const;
  const traced = followed(command, ['-F', 'libc.so.6!getenv', '-F', 'libc.so.6!setlocale']);
  assert.equal(traced.status, 0, traced.stderr);
  assert.match(traced.stdout, /libc\.so/);
  assert.doesNotMatch(traced.stdout, /proc|safepoke-inside/);
  assert.match(traced.stderr, /LD_TRACE_LOADED_OBJECTS is set/);
});

test('the interpreter of a script is looked for where the kernel finds it: a static one is not followed', () => {
  const own = join(folder, 'interpreters');
  mkdirSync(own);
  copyFileSync(build('execs.c', '-static'), join(own, 'relative'));
  const script = join(own, 'script');
  writeFileSync(script, '#!./relative\n');
  chmodSync(script, 0o755);
  // Here stands another of that name, which could be followed.
  copyFileSync(build('execs.c'), join(folder, 'relative'));
  const shell = `cd ${own}; exec ./script 0 n`;
  const alone = spawnSync('sh', ['-c', shell], { cwd: folder, encoding: 'utf8', env: ENVIRONMENT });
  const traced = followed(['sh', '-c', shell], ['-F', 'libc.so.6!getpid']);
  assert.deepEqual([traced.status, traced.stdout], [alone.status, alone.stdout], traced.stderr);
  assert.match(traced.stderr, /static program/);
});

test('a program that is executed by a system call of the program’s own is not followed, and runs without us', () => {
  const traced = followed([build('execs.c'), '1', 'r']);
  assert.deepEqual([traced.status, traced.parts.length], [STATUS, 1], traced.stderr);
  assert.doesNotMatch(traced.stdout, /\/proc\/self\/fd|LD_PRELOAD/);
});

test('where ptrace and process_vm_readv are forbidden, for an unprivileged user, it is followed all the same', () => {
  chmodSync(folder, 0o755);
  const mine = join(folder, 'follower');
  mkdirSync(mine);
  chmodSync(mine, 0o777);
  for (const [i, flags] of [[], ['-DALSO=SYS_open'], ['-DALSO=SYS_pwrite64']].entries()) {
    const summary = join(mine, `summary${i}.json`);
    const options = [...FOLLOW, '-o', 'recording', '--summary', summary, '--', build('execs.c'), '3', '*'];
    const ran = spawnSync(build('confine.c', ...flags), [process.execPath, main, 'run', ...options], {
      cwd: mine,
      uid: NOBODY,
      gid: NOBODY,
      encoding: 'utf8',
    });
    assert.equal(ran.status, STATUS, ran.stderr);
    assertSteps({ ...ran, parts: partsAt(summary) }, 3);
  }
});

test('a program that nobody goes on with is let go, and so is one whose functions cannot be traced', async () => {
  const session = run([build('execs.c'), '1', 'qv'], { inside: true, followExec: true });
  const ended = session.waitForTarget();
  assert.equal((await session.done).ended, 'exec');
  assert.deepEqual(await ended, { kind: 'exited', status: STATUS });
  const other = run([build('execs.c'), '1', 'qv'], { inside: true, followExec: true });
  const otherEnded = other.waitForTarget();
  assert.equal((await other.done).ended, 'exec');
  assert.throws(() => attach(other.pid, { inside: true, filters: ['no_such_function'] }), /no_such_function/);
  assert.deepEqual(await otherEnded, { kind: 'exited', status: STATUS });
});

test('when the trace is over what is executed is the program’s own business', async () => {
  const session = run([build('execs.c'), '2', 'wv'], { inside: true, followExec: true });
  const ended = session.waitForTarget();
  assert.equal((await session.stop()).ended, 'stopped');
  process.kill(session.pid, 'SIGKILL');
  assert.deepEqual(await ended, { kind: 'killed', signal: 9 });
});

/** Programs whose ids may be somebody else's by now. */
const reaped = new Set<number>();

/** A program that is not followed by a session, but by the test itself: it asks, and waits. */
async function asking(t: TestContext, how: string, executions = 1): Promise<InsideProcess> {
  const program = build('execs.c');
  const inside = InsideProcess.start(program, [program, String(executions), how]);
  t.after(() => {
    if (!reaped.has(inside.pid)) killStopped(inside.pid);
    inside.close();
  });
  inside.following.begin();
  inside.begin().release();
  while (!inside.following.isAsked) await pause(1);
  return inside;
}

/** The status with which it ends, whatever it has become. */
async function endOf({ pid }: InsideProcess): Promise<number> {
  for (;;) {
    const result = waitForThread(pid, false);
    if (result.kind !== 'none') reaped.add(pid);
    if (result.kind === 'exited') return result.status;
    assert.equal(result.kind, 'none');
    await pause(5);
  }
}

const lives = (): void => undefined;

test('threads can be called together while one waits for what it is to execute', async (t) => {
  for (const how of ['qv', 'tqv']) {
    const inside = await asking(t, how);
    for (let i = 0; i < 20; i++) {
      const met = inside.meet(new HoldTimes());
      assert.equal(met.threads.length, how.length - 1);
      met.release();
    }
    assert.ok(inside.following.isAsked);
    inside.following.serve();
    while (!inside.isOver) await pause(1);
    inside.succeed(lives).begin().release();
    assert.equal(await endOf(inside), STATUS);
  }
});

/** Blocks that are mapped in the test itself, when garbage is collected. */
async function blocksMapped(): Promise<number> {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let i = 0; i < 3; i++) {
    collect();
    await pause(10);
  }
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes(`/memfd:${SHARED_NAME}`)).length;
}

test('what was mapped for programs that have become others does not stay mapped', async (t) => {
  const executions = 12;
  const before = await blocksMapped();
  const follow = async (): Promise<void> => {
    let inside = await asking(t, 'qv', executions);
    for (let left = executions; left > 0; left--) {
      while (!inside.following.isAsked) await pause(1);
      inside.following.serve();
      while (!inside.isOver) await pause(1);
      inside = inside.succeed(lives);
      if (left > 1) inside.following.begin();
      inside.begin().release();
    }
    assert.equal(await endOf(inside), STATUS);
  };
  await follow();
  // The first is still known to what cleans up, and the last to nobody but its owner.
  assert.ok((await blocksMapped()) - before <= 2);
});

test('a handler that comes while a thread waits for what it is to execute, and executes something itself, is not followed', async (t) => {
  const inside = await asking(t, 'hqv');
  process.kill(inside.pid, 'SIGUSR1');
  inside.following.serve();
  while (!inside.isOver) await pause(1);
  assert.throws(() => inside.succeed(lives), /was quicker|has ended|executed past/);
  assert.equal(await endOf(inside), STATUS);
});

test('a program that safepoke does not answer goes on without us', async (t) => {
  const inside = await asking(t, 'qv');
  assert.equal(await endOf(inside), STATUS);
  assert.throws(() => inside.succeed(lives), /in time/);
});

test('safepoke is killed at any moment while a program executes itself again and again: it goes on, and finds nothing of us', async () => {
  await killedWhileExecuting(new Rounds(0, KILLS));
});

test('redis-server that a shell executes in its own place answers under trace', async (t) => {
  const port = await freePort();
  const own = temporaryFolder(t);
  const summary = fresh('summary.json');
  const command = [
    'sh',
    '-c',
    `exec ${redisCommand(port, own)
      .map((word) => `'${word}'`)
      .join(' ')} --logfile log`,
  ];
  const options = ['-F', 'libc.so.6!getpid', '-F', '*', '-o', fresh('recording'), '--summary', summary];
  const tracer = start(t, process.execPath, [main, 'run', ...FOLLOW, ...options, '--', ...command], {
    cwd: own,
  });
  await untilListening(port);
  const [pid] = childrenOf(tracer.pid);
  t.after(() => {
    if (tracer.exitCode === null) process.kill(pid, 'SIGKILL');
  });
  assert.ok(changedBytes(pid) > 0);
  const client = await RedisClient.connect(port);
  for (let i = 0; i < 100; i++) assert.equal(await client.ask('INCR', 'count'), String(i + 1));
  client.close();
  process.kill(pid, 'SIGTERM');
  await until(() => tracer.exitCode !== null);
  assert.equal(partsAt(summary)[1].calls['incrCommand'], 100);
});
