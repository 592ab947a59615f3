// Who can keep a tracer out of a process, and who cannot: src/linux/process-lock.ts.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { attach, isSafepokeError } from '../index.js';
import { ProcessLock, readStartTime } from '../linux/index.js';
import { Target, build, folder, fresh, pause, safepoke, type Ran } from './targets.test.support.js';

const NOBODY = 65534;
const OTHER = 65533;
const contender = fileURLToPath(new URL('contender.js', import.meta.url));

chmodSync(folder, 0o755);

/** The beginning of a command that is run by another user. */
function as(uid: number): [string, ...string[]] {
  return ['setpriv', '--reuid', String(uid), '--regid', String(uid), '--clear-groups'];
}

function startAs(uid: number, ...command: string[]): Promise<Target> {
  const [first, ...rest] = [...as(uid), ...command];
  return Target.ready(first, ...rest);
}

function busyOf(uid: number): Promise<Target> {
  return startAs(uid, build('busy.c'), '1');
}

/** A process that has locked another and does no more. */
function holderOf(uid: number, pid: number): Promise<Target> {
  return startAs(uid, 'flock', '-F', '-n', `/proc/${pid}/mem`, 'sh', '-c', 'echo ready; exec sleep 600');
}

function attachBriefly(pid: number): Ran {
  return safepoke('attach', '-p', String(pid), '-F', 'fib', '--duration', '50ms', '-o', fresh('recording'));
}

async function assertWell(target: Target): Promise<void> {
  target.say('0');
  assert.equal(await target.line(), 'fine');
  await target.finish();
}

test('a user who may not trace a process keeps nobody out of it', async () => {
  const target = await busyOf(NOBODY);
  const refused = spawnSync(as(OTHER)[0], [
    ...as(OTHER).slice(1),
    'flock',
    '-n',
    `/proc/${target.pid}/mem`,
    'true',
  ]);
  assert.notEqual(refused.status, 0, 'another user has locked it');
  const start = readStartTime(target.pid);
  const squat = `const { createServer } = require('node:net');
    createServer().listen('\\0safepoke-${target.pid}-${start ?? 0}', () => console.log('ready'));`;
  await startAs(OTHER, process.execPath, '-e', squat);
  const ran = attachBriefly(target.pid);
  assert.equal(ran.status, 0, ran.stderr);
  assert.doesNotMatch(ran.stderr, /locked/);
  await assertWell(target);
});

test('the user of a process keeps others like himself out of it, but not root, also while whoever has the lock stands still', async () => {
  const target = await busyOf(NOBODY);
  const holder = await holderOf(NOBODY, target.pid);
  process.kill(holder.pid, 'SIGSTOP');
  const other = await startAs(NOBODY, process.execPath, contender, String(target.pid));
  other.say('attach');
  assert.match(await other.line(), new RegExp(`^refused ALREADY_TRACED .*process ${holder.pid}, begins`));
  const ran = attachBriefly(target.pid);
  assert.equal(ran.status, 0, ran.stderr);
  assert.match(ran.stderr, new RegExp(`process ${holder.pid} of user ${NOBODY} has locked it`));
  await assertWell(target);
});

test('root that has locked a process keeps everybody out of it, and is named', async () => {
  const target = await busyOf(NOBODY);
  const holder = await holderOf(0, target.pid);
  const ran = attachBriefly(target.pid);
  assert.equal(ran.status, 1);
  assert.match(ran.stderr, new RegExp(`another safepoke, process ${holder.pid}, begins to trace it`));
  const other = await startAs(NOBODY, process.execPath, contender, String(target.pid));
  other.say('attach');
  assert.match(await other.line(), /^refused ALREADY_TRACED /);
  await assertWell(target);
});

test('a lock whose holder has ended keeps nobody out, though a child of its has the file still', async () => {
  const target = await busyOf(0);
  const holder = new Target('flock', '-n', `/proc/${target.pid}/mem`, 'sh', '-c', 'echo $$; exec sleep 600');
  const child = Number(await holder.line());
  try {
    process.kill(holder.pid, 'SIGKILL');
    await once(holder.child, 'exit');
    assert.equal(ProcessLock.take(target.pid), undefined, 'the child has it no more');
    const ran = attachBriefly(target.pid);
    assert.equal(ran.status, 0, ran.stderr);
  } finally {
    process.kill(child);
  }
  await assertWell(target);
});

test('a session of one user keeps another out, root too, and is named', async () => {
  for (const [first, second] of [
    [NOBODY, 0],
    [0, NOBODY],
  ]) {
    const target = await busyOf(NOBODY);
    const tracer = await startAs(first, process.execPath, contender, String(target.pid));
    tracer.say('attach');
    assert.equal(await tracer.line(), 'traces');
    const other = await startAs(second, process.execPath, contender, String(target.pid));
    other.say('attach');
    assert.match(
      await other.line(),
      new RegExp(`^refused ALREADY_TRACED .*process ${tracer.pid}, traces it`),
    );
    tracer.say('detach');
    assert.match(await tracer.line(), /"restored":true/);
    other.say('attach');
    assert.equal(await other.line(), 'traces');
    other.say('detach');
    assert.match(await other.line(), /"restored":true/);
    await assertWell(target);
  }
});

test('without a lock in common, as in another mount of /proc, a session is seen all the same', async () => {
  const target = await busyOf(0);
  const tracer = await Target.ready(
    'unshare',
    '--mount-proc',
    process.execPath,
    contender,
    String(target.pid),
  );
  tracer.say('attach');
  assert.equal(await tracer.line(), 'traces');
  const ran = attachBriefly(target.pid);
  assert.equal(ran.status, 1);
  assert.match(ran.stderr, new RegExp(`process ${tracer.pid}, traces it`));
  tracer.say('detach');
  assert.match(await tracer.line(), /"restored":true/);
  await assertWell(target);
});

test('a tracer in a container is known, though it says another id of itself', async () => {
  const target = await Target.ready(
    ...(['unshare', '--pid', '--fork', '--mount-proc', '--kill-child'] as [string, ...string[]]),
    ...['sh', '-c', `sleep 600 | ${build('busy.c')} 1 & exec ${process.execPath} ${contender} $!`],
  );
  await target.expect(/^ready/);
  target.say('attach');
  assert.equal(await target.line(), 'traces');
  const busy = readdirSync('/proc').find((pid) => isProgram(pid, build('busy.c'), target.pid));
  assert.ok(busy !== undefined);
  const ran = attachBriefly(Number(busy));
  assert.equal(ran.status, 1, ran.stderr);
  assert.match(ran.stderr, /another safepoke, process \d+, traces it/);
  target.say('detach');
  assert.match(await target.line(), /"restored":true/);
});

function isProgram(pid: string, path: string, container: number): boolean {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    return readlinkSync(`/proc/${pid}/exe`) === path && /^NSpid:\t\d+\t\d+$/m.test(status) && container > 0;
  } catch {
    return false;
  }
}

test('a process cannot say of one that has nothing to do with it that it traces it', async () => {
  const target = await startAs(NOBODY, build('claims.c'), '1', String(readStartTime(1) ?? 0n));
  const ran = safepoke(
    'attach',
    '-p',
    String(target.pid),
    '-F',
    'work',
    '--duration',
    '50ms',
    '-o',
    fresh('r'),
  );
  assert.equal(ran.status, 0, ran.stderr);
  await target.finish();
});

test('what a tracer starts does not have its lock', async () => {
  const target = await busyOf(0);
  const session = attach(target.pid, { filters: ['fib'], bufferBytes: 1 << 18 });
  const child = spawn('sleep', ['600'], { stdio: 'inherit' });
  try {
    assert.ok(child.pid !== undefined);
    await pause(100);
    const files = readdirSync(`/proc/${child.pid}/fd`).map((fd) =>
      readlinkSync(`/proc/${child.pid}/fd/${fd}`),
    );
    assert.deepEqual(
      files.filter((path) => path.startsWith('/proc/')),
      [],
    );
    assert.throws(
      () => attach(target.pid, { filters: ['fib'] }),
      (error) => isSafepokeError(error) && error.code === 'ALREADY_TRACED',
    );
    await session.stop();
    const again = attach(target.pid, { filters: ['fib'], bufferBytes: 1 << 18 });
    await again.stop();
  } finally {
    child.kill();
  }
  await assertWell(target);
});
