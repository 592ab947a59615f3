import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { attach } from '../index.js';
import { Target, build, changedBytes, fresh, pause, safepoke, statusField } from './targets.test.support.js';

/** Fails unless safepoke ends with the status, says why in one line, and prints nothing. */
function refuses(status: number, why: RegExp, ...args: string[]): void {
  const ran = safepoke(...args);
  const told = `${args.join(' ')}: ${ran.stderr}`;
  assert.equal(ran.status, status, told);
  assert.equal(ran.stdout, '', told);
  assert.match(ran.stderr, why, told);
  assert.equal(ran.stderr.trimEnd().split('\n').length, 1, told);
}

test('what makes no sense is refused with exit status 2', () => {
  const pid = String(process.pid);
  refuses(2, /process id/, 'attach', '-p', 'redis');
  refuses(2, /process id/, 'attach', '-p', '0');
  refuses(2, /required option|-p/, 'attach');
  refuses(2, /as a time/, 'attach', '-p', pid, '--duration', '5');
  refuses(2, /as a time/, 'attach', '-p', pid, '-t', 'soon');
  refuses(2, /as a size/, 'attach', '-p', pid, '--buffer', 'big');
  refuses(2, /ring/, 'attach', '-p', pid, '--buffer', '16');
  refuses(2, /depth/, 'attach', '-p', pid, '-D', '-1');
  refuses(2, /--exits none/, 'attach', '-p', pid, '-D', '1', '--entry-only');
  refuses(2, /unknown option/, 'attach', '-p', pid, '--fast');
  refuses(2, /unknown command/, 'qwertz');
  refuses(2, /neither a file nor a process/, 'functions');
  refuses(2, /regular expression|pattern/, 'attach', '-p', pid, '-F', '/(/');
  for (const way of ['held', 'page-flip'])
    refuses(
      2,
      /from inside: .*rendezvous only; leave out one of/,
      'run',
      '--inside',
      '--way',
      way,
      '--',
      'true',
    );
  const outside = /from outside: .*; start the program with `safepoke run --inside`/;
  refuses(2, outside, 'run', '--way', 'rendezvous', '--', 'true');
  refuses(2, outside, 'attach', '-p', pid, '--way', 'rendezvous');
  refuses(2, /Allowed choices/, 'run', '--inside', '--way', 'int3', '--', 'true');
});

test('what cannot be traced is refused with exit status 1', async () => {
  const gone = spawnSync('true').pid;
  refuses(1, /there is no such process/, 'attach', '-p', String(gone));
  refuses(1, /no such/, 'attach', '-p', '4194305');
  const kernelThread = readdirSync('/proc').find(
    (pid) => /^\d+$/.test(pid) && statusField(Number(pid), 'Kthread') === '1',
  );
  if (kernelThread !== undefined) refuses(1, /kernel thread/, 'attach', '-p', kernelThread);
  const zombies = spawn('bash', ['-c', 'sleep 0.5 & echo $!; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const zombie = await new Promise<string>((resolve) => {
    zombies.stdout.once('data', (text: Buffer) => {
      resolve(text.toString().trim());
    });
  });
  while (!statusField(Number(zombie), 'State').startsWith('Z')) await pause(10);
  refuses(1, /zombie/, 'attach', '-p', zombie);
  zombies.kill('SIGKILL');
});

test('a thread, or a process that somebody else traces, is refused and stays as it was', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const thread = readdirSync(`/proc/${target.pid}/task`).find((tid) => tid !== String(target.pid));
  assert.ok(thread !== undefined);
  refuses(1, new RegExp(`thread of process ${target.pid}`), 'attach', '-p', thread);
  const gdb = spawn('gdb', ['-q', '-nx', '-p', String(target.pid)], { stdio: ['pipe', 'ignore', 'ignore'] });
  while (statusField(target.pid, 'TracerPid') === '0') await pause(10);
  refuses(1, /traces it already/, 'attach', '-p', String(target.pid));
  const ended = new Promise((resolve) => gdb.once('exit', resolve));
  gdb.stdin.end('detach\nquit\n');
  await ended;
  refuses(1, /no .*match|nothing|matches/i, 'attach', '-p', String(target.pid), '-F', 'fibb');
  assert.match(safepoke('attach', '-p', String(target.pid), '-F', 'fibb').stderr, /fib\b/);
  refuses(1, /refused/, 'attach', '-p', String(target.pid), '-F', '_start');
  assert.equal(changedBytes(target.pid), 0);
  target.say('go on');
  await target.expect(/^fine$/);
  await target.finish();
});

test('a process whose memory another shares without being its thread is refused, and traced when that has ended', async () => {
  const target = await Target.ready(build('shares.c'));
  const answers = async (line: string): Promise<void> => {
    target.say(line);
    await target.expect(/^fine$/);
  };
  for (const kind of ['more', 'own']) {
    await answers(kind);
    refuses(1, /shares its memory without being a thread/, 'attach', '-p', String(target.pid));
    assert.equal(changedBytes(target.pid), 0);
    await answers('work');
    await answers('none');
    const { restored, removed } = await attach(target.pid).stop();
    assert.deepEqual([restored, removed], [true, true]);
  }
  // One that comes during the session: the code stays as long as it may be in it.
  const notes: string[] = [];
  const session = attach(target.pid, { onNote: (line) => notes.push(line) });
  await answers('own');
  const { restored, removed } = await session.stop();
  assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, false, 0]);
  assert.match(notes.join('\n'), /^another process shares the memory.*attach once more/);
  await answers('work');
  await answers('none');
  assert.equal((await attach(target.pid).stop()).removed, true);
  await answers('work');
  await target.finish();
});

test('files that are no programs for this machine are refused', () => {
  const good = readFileSync(build('fib.c'));
  const make = (name: string, bytes: Uint8Array): string => {
    const path = fresh(name);
    writeFileSync(path, bytes);
    chmodSync(path, 0o755);
    return path;
  };
  const foreign = Buffer.from(good);
  foreign.writeUInt16LE(183, 18); // EM_AARCH64
  const small = Buffer.from(good);
  small[4] = 1; // ELFCLASS32
  for (const [name, bytes] of [
    ['text', Buffer.from('hello\n')],
    ['empty', Buffer.alloc(0)],
    ['truncated', good.subarray(0, 100)],
    ['half', good.subarray(0, good.length >> 1)],
    ['32-bit', small],
    ['foreign', foreign],
  ] as const) {
    const path = make(name, bytes);
    refuses(1, /^safepoke: cannot /, 'functions', path);
    if (name !== 'half') refuses(1, /^safepoke: cannot /, 'run', '--', path);
  }
  refuses(1, /no such|no executable|not/i, 'functions', '/nowhere/at/all');
  refuses(1, /PATH/, 'run', '--', 'no-such-program-anywhere');
  refuses(1, /it is not executable/, 'run', '--', '/etc/passwd');
  refuses(1, /it is a directory/, 'run', '--', '/tmp');
  refuses(1, /there is no such file/, 'run', '--', '/nowhere/at/all');
  refuses(1, /there is no such folder; make the folder/, 'run', '-o', '/nowhere/x', '--', '/bin/true');
});

test('a session that is refused when there was memory for it already leaves no memory and no descriptor of it here', async () => {
  const target = await Target.ready(build('busy.c'), '2');
  const refuse = async (): Promise<{ files: number; shared: number }> => {
    assert.throws(() => attach(target.pid, { filters: ['mix'], way: 'page-flip' }), { code: 'NEEDS_HOLD' });
    // Files of modules are closed when there is nothing else to do.
    await pause(0);
    await pause(0);
    const maps = readFileSync('/proc/self/maps', 'utf8');
    return {
      files: readdirSync('/proc/self/fd').length,
      shared: maps.split('\n').filter((line) => line.includes('memfd:safepoke')).length,
    };
  };
  const { files } = await refuse();
  for (let i = 0; i < 3; i++) assert.deepEqual(await refuse(), { files, shared: 0 });
  await target.finish();
});
