// Real programs that change their own code, without ptrace (`run --inside`): under load, with handlers, threads and children.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import {
  ControlServer,
  attach,
  run,
  type Session,
  type SessionStatus,
  type SessionSummary,
} from '../index.js';
import { prepareNginx, underLoad as nginxUnderLoad, workersOf } from './nginx.test.support.js';
import {
  SCRIPTS,
  assertCodeIsThatOfFiles,
  freePort,
  isRunning,
  runsTheSame,
  safepoke,
  temporaryFolder,
  totalCalls,
  until,
  untilListening,
} from './real.test.support.js';
import { RedisClient, redisCommand, underLoad } from './redis-client.test.support.js';

/** Debian's, whatever else may stand in PATH under that name. */
const PYTHON = '/usr/bin/python3';
const EVERYTHING_OF_LIBC = ['libc.so.6!*', 'ld-linux-x86-64.so.2!*'];
const INSIDE = ['--inside'];

/** Starts a program under trace from inside; it and its children end with the test at the latest. */
function runInside(t: TestContext, command: readonly string[], filters: readonly string[]): Session {
  const session = run(command, { inside: true, filters });
  t.after(() => {
    for (const pid of [...workersOf(session.pid), session.pid])
      if (isRunning(pid)) process.kill(pid, 'SIGKILL');
  });
  return session;
}

/** Ends a session: the program runs on, and is what its files say. */
async function stop(session: Session): Promise<SessionSummary> {
  const summary = await session.stop();
  assert.deepEqual(
    { ended: summary.ended, restored: summary.restored, removed: summary.removed },
    { ended: 'stopped', restored: true, removed: true },
  );
  assertCounters(summary);
  assertCodeIsThatOfFiles(session.pid);
  return summary;
}

/** What the protocol has counted: there, and without a contradiction. */
function assertCounters({ inside }: SessionSummary): void {
  assert.ok(inside !== null);
  const { waits, longest_wait_us: longest, helper_writes: helped } = inside;
  assert.ok(waits >= 0 && longest >= 0 && helped >= 0, JSON.stringify(inside));
  if (waits === 0) assert.equal(longest, 0);
}

/** Asks a session by the command line, as from another terminal. */
async function control(pid: number, ...args: string[]): Promise<SessionStatus> {
  const { status, stdout, stderr } = await safepoke(['control', '-p', String(pid), ...args, '--json']);
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout) as SessionStatus;
}

for (const filters of [['*'], EVERYTHING_OF_LIBC, ['*!*']]) {
  test(`python runs threads, exceptions, handlers and children alike with ${filters.join(' and ')} traced from inside`, async (t) => {
    const summary = await runsTheSame(t, filters, [PYTHON, join(SCRIPTS, 'python.py')], {}, INSIDE);
    assert.ok(summary.patched > 1000, `${summary.patched} functions`);
    assert.ok(totalCalls(summary) > 10_000);
    assert.deepEqual([summary.exit_status, summary.threads], [9, 6]);
    assertCounters(summary);
  });
}

for (const filters of [['libsqlite3.so.0!*'], EVERYTHING_OF_LIBC]) {
  test(`sqlite3 answers alike with ${filters.join(' and ')} traced from inside, and calls are as many as from outside`, async (t) => {
    const command = ['sqlite3', ':memory:', `.read ${join(SCRIPTS, 'query.sql')}`];
    const inside = await runsTheSame(t, filters, command, {}, INSIDE);
    assert.ok(inside.patched > 1000 && totalCalls(inside) > 1000, `${inside.patched} functions`);
    assert.equal(inside.dropped, 0);
    assertCounters(inside);
    const outside = await runsTheSame(t, filters, command);
    assert.equal(outside.inside, null);
    // Of the dynamic loader the program from inside has one library more to look at, before it begins and at its end.
    if (filters !== EVERYTHING_OF_LIBC) assert.deepEqual(inside.calls, outside.calls);
  });
}

test('redis-server answers rightly while its functions are switched, left and traced again from inside, and counts are exact', async (t) => {
  const port = await freePort();
  const folder = temporaryFolder(t);
  const command = [...redisCommand(port, folder), '--logfile', join(folder, 'log')];
  let session = runInside(t, command, ['*']);
  const { pid } = session;
  const ended = session.waitForTarget();
  await untilListening(port);
  const client = await RedisClient.connect(port);
  t.after(() => {
    client.close();
  });
  // A command that none of the other clients gives.
  const ask = async (times: number): Promise<void> => {
    for (let i = 0; i < times; i++) await client.ask('PFADD', 'sketch', String(i));
  };
  await underLoad(t, port, async () => {
    for (let round = 0; round < 3; round++) {
      if (round > 0) session = attach(pid, { inside: true, filters: ['*'] });
      // A session that ends by itself is the failure to be told, not what follows from it.
      let end: string | undefined;
      session.done.then(
        ({ ended: why }) => (end = why),
        (error: unknown) => (end = String(error)),
      );
      const server = await ControlServer.open(session);
      await ask(30);
      const off = await control(pid, '--off', 'pfaddCommand', '--off', 'a*');
      assert.ok(off.off > 50 && off.on > 2500, JSON.stringify(off));
      await ask(50);
      assert.equal(end, undefined);
      const on = await control(pid, '--on', '*');
      assert.deepEqual([on.off, on.on], [0, off.on + off.off]);
      await ask(7);
      for (let i = 0; i < 40; i++) {
        assert.ok(session.switch(['*Command', 'lookupKey*'], i % 2 === 1) > 100);
        await new Promise((resolve) => setImmediate(resolve));
      }
      await ask(1);
      server.close();
      const summary = await stop(session);
      assert.ok(summary.patched > 2500, `${summary.patched} functions`);
      assert.ok(totalCalls(summary) > 10_000);
      assert.ok(summary.switched > 4000, `${summary.switched} switched`);
      // What is dropped is counted, but not by function.
      if (summary.dropped === 0) assert.equal(summary.calls['pfaddCommand'], 38);
      await ask(1);
    }
  });
  process.kill(pid, 'SIGTERM');
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
});

test('a snapshot that redis-server takes while traced from inside can be loaded, and its child ends well', async (t) => {
  const port = await freePort();
  const folder = temporaryFolder(t);
  const session = runInside(t, [...redisCommand(port, folder), '--logfile', join(folder, 'log')], ['*']);
  const ended = session.waitForTarget();
  await untilListening(port);
  const client = await RedisClient.connect(port);
  t.after(() => {
    client.close();
  });
  for (let i = 0; i < 2000; i++) await client.ask('SET', `key${i}`, `value ${i}`);
  for (let i = 0; i < 3; i++) {
    assert.match(await client.ask('BGSAVE'), /^Background saving started/);
    await until(async () => (await client.ask('INFO', 'persistence')).includes('rdb_bgsave_in_progress:0'));
    assert.match(await client.ask('INFO', 'persistence'), /rdb_last_bgsave_status:ok/);
  }
  const { calls } = await stop(session);
  // The child has none of the parent's rings: what it calls is not recorded.
  assert.deepEqual([calls['rdbSaveBackground'], calls['rdbSave']], [3, undefined]);
  process.kill(session.pid, 'SIGTERM');
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
});

test('python threads compute rightly under a storm of signals while their functions are traced, switched and left from inside', async (t) => {
  const folder = temporaryFolder(t);
  let session = runInside(t, [PYTHON, join(SCRIPTS, 'storm.py'), folder], ['*']);
  const { pid } = session;
  const ended = session.waitForTarget();
  await until(() => existsSync(join(folder, 'ready')));
  for (let round = 0; round < 4; round++) {
    if (round > 0) session = attach(pid, { inside: true, filters: round % 2 === 0 ? ['*'] : ['*!*'] });
    for (let i = 0; i < 20; i++) {
      assert.ok(session.switch(['Py*', '*!_int_*'], i % 2 === 1) > 0);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const { patched, refused, calls } = await stop(session);
    // A handler that does not get a processor for a while keeps some from being changed.
    const wanted = patched + (refused['handler-busy'] ?? 0);
    assert.ok(wanted > 1400 && Object.keys(calls).length > 10, `${patched} of ${wanted} functions`);
  }
  writeFileSync(join(folder, 'stop'), '');
  assert.deepEqual(await ended, { kind: 'exited', status: 9 });
  assert.deepEqual(JSON.parse(readFileSync(join(folder, 'result'), 'utf8')), {
    wrong: [],
    handlers: ['on_alarm', 'on_user'],
  });
});

test('nginx serves rightly, reloads and ends while its master is traced from inside; its workers are not', async (t) => {
  const { command, port } = await prepareNginx(t);
  let session = runInside(t, command, ['*']);
  const { pid } = session;
  const ended = session.waitForTarget();
  await untilListening(port);
  await nginxUnderLoad(port, false, async () => {
    for (let round = 0; round < 3; round++) {
      if (round > 0) session = attach(pid, { inside: true, filters: ['*'] });
      // Those that were born traced serve on when their master is left, and are replaced when it reloads.
      for (let reloads = 0; reloads < 2; reloads++) {
        await until(() => workersOf(pid).length === 2);
        const workers = workersOf(pid);
        process.kill(pid, 'SIGHUP');
        await until(() => workers.every((worker) => !isRunning(worker)) && workersOf(pid).length === 2);
        for (const worker of workersOf(pid))
          assert.equal(threadsOf(worker), 1, 'a worker has no thread of ours');
      }
      const { calls, threads } = await stop(session);
      // Two workers at each reload, and two at the start: the functions that only workers call are recorded in none of them.
      assert.equal(calls['ngx_spawn_process'], round === 0 ? 6 : 4);
      assert.deepEqual([threads, calls['ngx_http_process_request']], [1, undefined]);
    }
  });
  process.kill(pid, 'SIGQUIT');
  assert.deepEqual(await ended, { kind: 'exited', status: 0 });
});

test('an nginx that goes into the background serves on, untraced, when the process that safepoke ran has ended', async (t) => {
  const { command, port, folder } = await prepareNginx(t, 'on');
  const session = runInside(t, command, ['*']);
  const { ended, restored } = await session.done;
  assert.deepEqual([ended, restored], ['exited', true]);
  await untilListening(port);
  await until(() => existsSync(join(folder, 'pid')));
  const master = Number(readFileSync(join(folder, 'pid'), 'utf8'));
  t.after(() => {
    for (const one of [...workersOf(master), master]) if (isRunning(one)) process.kill(one, 'SIGKILL');
  });
  assert.equal(threadsOf(master), 1);
  await nginxUnderLoad(port, false, async () => {
    const workers = workersOf(master);
    process.kill(master, 'SIGHUP');
    await until(() => workers.every((worker) => !isRunning(worker)) && workersOf(master).length === 2);
  });
  process.kill(master, 'SIGQUIT');
  await until(() => !isRunning(master));
});

function threadsOf(pid: number): number {
  return Number(/^Threads:\s*(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
}
