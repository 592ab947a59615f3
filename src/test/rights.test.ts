// Rights that a program gives up: no thread of ours in it keeps them, whichever they are, from outside and from inside, while it is traced,
// when safepoke was killed, and where it had none from the beginning.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync, statSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { AGENT, AgentThread } from '../agent/index.js';
import { ERRNO, SYS } from '../linux/index.js';
import { attach } from '../index.js';
import { childrenOf } from './sandboxed.test.support.js';
import {
  Running,
  Target,
  build,
  changedBytes,
  fresh,
  main,
  pause,
  statusField,
} from './targets.test.support.js';

/** Of users above this nobody is one (systemd’s UIDs and GIDs). */
const NOBODYS = 0x8000_0000;
/** The name of safepoke’s thread. */
const OURS = 'safepoke';

/** What the program does; each in a program of its own. */
const CHANGES = [
  ['setuid'],
  ['setgid', 'setuid'],
  ['setgroups'],
  ['setresuid'],
  ['seteuid'],
  ['raw'],
  ['other raw'],
  ['capset'],
  ['capabilities'],
  ['other capabilities'],
  ['bounding'],
  ['new-privileges'],
  ['filters'],
  ['landlock'],
] as const;
/** From inside its thread has to stay: docs/design/agent-thread.md. */
const CHANGES_OF_ONE_THREAD = [['filter'], ['other filter'], ['network'], ['other network']] as const;

interface Rights {
  readonly ids: readonly number[];
  readonly groups: readonly string[];
  readonly capabilities: readonly bigint[];
  readonly filters: number;
  readonly network: string;
}

function rightsOf(pid: number, tid: string): Rights {
  const field = (name: string): string => statusField(pid, name, tid);
  const numbers = (name: string): number[] => field(name).split('\t').map(Number);
  return {
    ids: [...numbers('Uid'), ...numbers('Gid')],
    groups: groupsOf(pid, tid),
    capabilities: ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb'].map((name) =>
      BigInt(`0x${field(name)}`),
    ),
    filters: Number(field('Seccomp_filters')),
    network: readFileSync(`/proc/${pid}/task/${tid}/net/dev`, 'utf8')
      .split('\n')
      .map((line) => line.split(':')[0])
      .join(),
  };
}

/** There may be none, so that the line is empty. */
function groupsOf(pid: number, tid: string): string[] {
  const status = readFileSync(`/proc/${pid}/task/${tid}/status`, 'utf8');
  return (/^Groups:[ \t]*(.*)$/m.exec(status)?.[1] ?? '').split(' ').filter(Boolean);
}

function nameOf(pid: number, tid: string): string {
  try {
    return readFileSync(`/proc/${pid}/task/${tid}/comm`, 'utf8').trim();
  } catch {
    return '';
  }
}

/** Says what a thread of ours may do that some thread of the program may not. */
function excessOf(pid: number): string[] {
  const tids = readdirSync(`/proc/${pid}/task`);
  const ours = tids.filter((tid) => nameOf(pid, tid) === OURS);
  const theirs = tids.filter((tid) => !ours.includes(tid)).map((tid) => rightsOf(pid, tid));
  assert.ok(theirs.length > 0);
  return ours.flatMap((tid) => {
    let mine: Rights;
    try {
      mine = rightsOf(pid, tid);
    } catch {
      return []; // it has ended just now
    }
    if (nameOf(pid, tid) !== OURS) return [];
    return theirs.flatMap((other) => [
      ...mine.ids.filter((id, i) => id < NOBODYS && id !== other.ids[i]).map((id) => `id ${id}`),
      ...mine.groups.filter((group) => !other.groups.includes(group)).map((group) => `group ${group}`),
      ...mine.capabilities
        .filter((set, i) => (set & ~other.capabilities[i]) !== 0n)
        .map((set) => `capabilities ${set.toString(16)}`),
      ...(mine.filters < other.filters ? ['no filter'] : []),
      ...(mine.network === other.network ? [] : ['another network']),
    ]);
  });
}

function ourThreads(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).filter((tid) => nameOf(pid, tid) === OURS);
}

/** A program that is traced, and how to talk to it. */
interface Traced {
  readonly pid: number;
  /** Waits until the program has done it. */
  readonly does: (what: string, result?: number) => Promise<void>;
  /** Kills safepoke. */
  readonly kill: () => Promise<void>;
}

interface Attached extends Traced {
  readonly running: Running;
}

async function does(target: Target, what: string, result: number): Promise<void> {
  target.say(what);
  await target.expect(new RegExp(`^did ${what.replace('other ', '')} ${result}$`));
}

async function attached(...args: string[]): Promise<Attached> {
  const target = await Target.ready(build('gives-up.c'), ...args);
  const running = await Running.attach(target.pid, '-F', 'work');
  return {
    running,
    pid: target.pid,
    does: (what, result = 0) => does(target, what, result),
    kill: async () => {
      running.child.kill('SIGKILL');
      await running.gone();
    },
  };
}

/** A shell keeps the program's standard input open when safepoke has been killed. */
async function started(t: TestContext, options: readonly string[]): Promise<Traced> {
  const script = '"$@"; echo over; exec sleep 1000';
  const safepoke = [process.execPath, main, 'run', ...options, '-F', 'work', '-o', fresh('recording'), '--'];
  const shell = await Target.ready('sh', '-c', script, 'sh', ...safepoke, build('gives-up.c'));
  const [tracer] = childrenOf(shell.pid);
  const [pid] = childrenOf(tracer);
  t.after(() => {
    process.kill(pid, 'SIGKILL');
  });
  return {
    pid,
    does: (what, result = 0) => does(shell, what, result),
    kill: async () => {
      process.kill(tracer, 'SIGKILL');
      await shell.expect(/^over$/);
    },
  };
}

function traced(t: TestContext, how: 'attach' | 'run' | '--inside'): Promise<Traced> {
  if (how === 'attach') return attached();
  return started(t, how === 'run' ? [] : [how]);
}

/** Until nothing of ours is left in the text, and no thread of ours; it never has more rights meanwhile. */
async function untilRestored(pid: number): Promise<void> {
  while (changedBytes(pid) > 0 || ourThreads(pid).length > 0) {
    assert.deepEqual(excessOf(pid), []);
    await pause(1);
  }
}

for (const how of ['attach', 'run', '--inside'] as const) {
  for (const changes of CHANGES) {
    test(`what a program gives up by ${changes.join(', ')} no thread of ours keeps (${how})`, async (t) => {
      const { pid, does, kill } = await traced(t, how);
      assert.equal(ourThreads(pid).length, 1);
      for (const change of changes) await does(change);
      assert.deepEqual(excessOf(pid), []);
      await does('nothing');
      await kill();
      await untilRestored(pid);
    });
  }
}

test('a session with a program that has given up root ends as ever', async () => {
  const { running, pid, does } = await attached();
  await does('setgid');
  await does('setuid');
  await does('nothing');
  const { summary } = await running.stop();
  assert.deepEqual([summary.calls['work'], summary.restored, summary.removed], [3, true, true]);
  assert.equal(changedBytes(pid), 0);
  assert.deepEqual(ourThreads(pid), []);
});

for (const how of ['attach', 'run'] as const) {
  for (const [change] of CHANGES_OF_ONE_THREAD) {
    test(`where ${change} is one thread’s alone, ours leaves, and the text goes back (${how})`, async (t) => {
      const { pid, does, kill } = await traced(t, how);
      await does(change);
      while (ourThreads(pid).length > 0) await pause(1);
      await does('nothing');
      await kill();
      // Nobody turns it back but the next session.
      assert.ok(changedBytes(pid) > 0);
      const summary = await attach(pid, { filters: ['give_up'] }).stop();
      assert.deepEqual([summary.restored, summary.removed], [true, true]);
      assert.equal(changedBytes(pid), 0);
      assert.deepEqual(ourThreads(pid), []);
    });
  }
}

for (const [change] of CHANGES_OF_ONE_THREAD) {
  test(`a session that our thread has left because of ${change} ends as ever`, async () => {
    const { running, pid, does } = await attached();
    await does(change);
    while (ourThreads(pid).length > 0) await pause(1);
    await does('nothing');
    const { summary } = await running.stop();
    assert.deepEqual([summary.calls['work'], summary.restored, summary.removed], [2, true, true]);
    assert.equal(changedBytes(pid), 0);
    assert.doesNotMatch(readFileSync(`/proc/${pid}/maps`, 'utf8'), /rwxp|memfd:safepoke/);
  });
}

for (const change of ['setuid', 'capset', 'capabilities', 'filters', 'landlock', 'network'] as const) {
  test(`a program that had given up by ${change} before it was attached to keeps what it has`, async () => {
    const { pid, does, kill } = await attached(change);
    assert.deepEqual(excessOf(pid), []);
    await does('nothing');
    assert.equal(ourThreads(pid).length, 1);
    await kill();
    await untilRestored(pid);
  });
}

test('whether a process may be dumped stays as it was', async () => {
  const target = await Target.ready(build('gives-up.c'));
  const session = attach(target.pid, { filters: ['work'] });
  const [agent] = ourThreads(target.pid);
  // What the kernel shows of a thread belongs to its user, or to root where the process may not be dumped.
  const { uid } = statSync(`/proc/${target.pid}/task/${agent}/mem`);
  assert.equal(String(uid), statusField(target.pid, 'Uid', agent).split('\t')[0]);
  await session.stop();
  await target.finish();
});

test('each session’s thread is another user', async () => {
  const target = await Target.ready(build('gives-up.c'));
  const users = new Set<string>();
  for (let i = 0; i < 5; i++) {
    const session = attach(target.pid, { filters: ['work'] });
    const [agent] = ourThreads(target.pid);
    users.add(statusField(target.pid, 'Uid', agent));
    await session.stop();
  }
  assert.equal(users.size, 5);
  await target.finish();
});

test('our thread can open no file, and has no descriptors of the program’s', async (t) => {
  const target = await Target.ready(build('gives-up.c'));
  const found: { thread: AgentThread; path: number }[] = [];
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its object below
  const { confine } = AgentThread.prototype;
  t.mock.method(AgentThread.prototype, 'confine', function (this: AgentThread, page: number, own: boolean) {
    const path = page + AGENT.memoryPath;
    const file = this.call(SYS.open, path, 0);
    assert.ok(file > 2);
    assert.equal(this.call(SYS.close, file), 0);
    found.push({ thread: this, path });
    confine.call(this, page, own);
  });
  const session = attach(target.pid, { filters: ['work'] });
  const [{ thread, path }] = found;
  assert.equal(thread.call(SYS.open, path, 0), -ERRNO.EACCES);
  assert.deepEqual(readdirSync(`/proc/${target.pid}/task/${thread.tid}/fd`), ['0']);
  await session.stop();
  await target.finish();
});

test('the program is told of one thread more while it is traced, and of none afterwards', async () => {
  const target = await Target.ready(build('gives-up.c'), 'single');
  const session = attach(target.pid, { filters: ['work'] });
  assert.equal(statusField(target.pid, 'Threads'), '2');
  target.say('user');
  await target.expect(new RegExp(`^did user -${ERRNO.EINVAL}$`));
  await session.stop();
  assert.equal(statusField(target.pid, 'Threads'), '1');
  target.say('user');
  await target.expect(/^did user 0$/);
  await target.finish();
});

test('a program whose locked memory has reached its limit is traced', async () => {
  const target = await Target.ready('prlimit', '--memlock=4096', build('gives-up.c'), 'locked');
  const session = attach(target.pid, { filters: ['work'] });
  assert.equal(ourThreads(target.pid).length, 1);
  assert.deepEqual(excessOf(target.pid), []);
  target.say('nothing');
  await target.expect(/^did nothing 0$/);
  const { calls, restored, removed } = await session.stop();
  assert.deepEqual([calls['work'], restored, removed], [1, true, true]);
  await target.finish();
});
