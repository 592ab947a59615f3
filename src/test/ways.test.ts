// How code is changed: which way is taken, which is refused, and what may not be disturbed by it.
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { AgentThread, type WholeSite } from '../agent/index.js';
import { attach, control, isSafepokeError } from '../index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { childrenOf } from './sandboxed.test.support.js';
import { ONE_NOP, Running, Target, build, changedBytes, pause, safepoke } from './targets.test.support.js';

const FUNCTIONS = ['step', 'mix', 'handle'];
const BUFFER = 1 << 20;

function maps(pid: number): string {
  return readFileSync(`/proc/${pid}/maps`, 'latin1');
}

/** The program's text as mappings of its file: addresses, permissions and offsets, neighbours that belong together taken as one. */
function textOf(pid: number): string[] {
  const texts: { start: number; end: number; shift: number; what: string }[] = [];
  for (const line of maps(pid).split('\n')) {
    const found = /^(\w+)-(\w+) (r[w-]xp) (\w+) (\S+ \d+) +(\S*flips\S*)$/.exec(line);
    if (found === null) continue;
    const [start, end, offset] = [found[1], found[2], found[4]].map((digits) => parseInt(digits, 16));
    const what = `${found[3]} ${found[5]} ${found[6]}`;
    const last = texts.at(-1);
    if (last?.end === start && last.shift === start - offset && last.what === what) last.end = end;
    else texts.push({ start, end, shift: start - offset, what });
  }
  return texts.map(({ start, end, shift, what }) => `${start}-${end} ${shift} ${what}`);
}

/** The code of the error that attaching ends with. */
function refusal(pid: number, options: Parameters<typeof attach>[1]): string {
  try {
    void attach(pid, options).stop();
  } catch (error) {
    if (isSafepokeError(error)) return error.code;
    throw error;
  }
  return 'attached';
}

test('sites of one instruction are flipped without being asked for it, and the memory map is afterwards what it was', async () => {
  const target = await Target.ready(build('flips.c', ...ONE_NOP), '4');
  const before = maps(target.pid);
  const text = textOf(target.pid);
  assert.equal(text.length, 1);
  for (const readOnlyText of [true, false]) {
    target.say('run');
    const options = { filters: FUNCTIONS, exits: 'none' as const, bufferBytes: BUFFER, readOnlyText };
    const session = attach(target.pid, options);
    // Meanwhile the pages are still the file's, executable, each at its offset, and all with the same rights.
    const meanwhile = text.map((line) => (readOnlyText ? line : line.replace(' r-xp ', ' rwxp ')));
    assert.deepEqual(textOf(target.pid), meanwhile);
    await pause(50);
    target.say('quiet');
    await target.expect(/wrong=0/);
    const { ways, records, restored, removed } = await session.stop();
    assert.deepEqual(
      { ways, restored, removed },
      { ways: { 'page-flip': 3 }, restored: true, removed: true },
    );
    assert.ok(records > 0);
    assert.equal(maps(target.pid), before);
    assert.equal(changedBytes(target.pid), 0);
  }
  await target.finish();
});

test('a site of several instructions is changed in a hold, or refused where page flips are the only way', async () => {
  const target = await Target.ready(build('flips.c', '-O0'), '4');
  const session = attach(target.pid, { filters: FUNCTIONS, exits: 'none' as const, bufferBytes: BUFFER });
  assert.deepEqual((await session.stop()).ways, { held: 3 });
  assert.equal(
    refusal(target.pid, { filters: FUNCTIONS, exits: 'none' as const, way: 'page-flip' }),
    'NEEDS_HOLD',
  );
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

test('a function into whose first instructions a handler will return is left alone, and its neighbours are traced exactly', async () => {
  const target = await Target.ready(build('within.c'));
  const sum = (n: number): number => (24 * n * (n + 1)) / 2 + 10 * n;
  for (const calls of [1, 1000]) {
    const session = attach(target.pid, { filters: ['step_*', 'probe'], bufferBytes: BUFFER });
    assert.deepEqual(
      session.refused.map(({ function: f, reason }) => [f.name, reason]),
      [['probe', 'thread-inside']],
    );
    target.say(String(calls));
    await target.expect(new RegExp(`^sum=${sum(calls)}$`));
    // It returns into what was left alone, while its neighbours are changed.
    if (calls > 1) {
      target.say('');
      await target.expect(/^probe=42$/);
    }
    const { calls: counts, refused } = await session.stop();
    const steps = ['step_a', 'step_b', 'step_c', 'step_d'];
    assert.deepEqual({ ...counts }, Object.fromEntries(steps.map((name) => [name, calls])));
    assert.deepEqual({ ...refused }, { 'thread-inside': 1 });
    if (calls === 1) assert.equal(changedBytes(target.pid), 0);
  }
  await target.finish();
});

test('page flips alone change exits of one instruction as well; a function that is left by others is traced by its entry', async () => {
  const target = await Target.ready(build('flips.c', ...ONE_NOP), '4');
  target.say('run');
  const session = attach(target.pid, { filters: FUNCTIONS, way: 'page-flip', bufferBytes: BUFFER });
  await pause(50);
  target.say('quiet');
  await target.expect(/wrong=0/);
  const { patched, entry_only: entryOnly, ways, held_us: held, restored } = await session.stop();
  assert.equal(patched, 3);
  // Of each function with exits at least two sites: where it begins, and where it is left.
  assert.ok((ways['page-flip'] ?? 0) >= 2 * (3 - entryOnly) + entryOnly);
  assert.deepEqual({ held, restored }, { held: 0, restored: true });
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

test('a page that somebody has changed is not flipped: what stands there would be lost', async () => {
  const target = await Target.ready(build('flips.c', ...ONE_NOP), '4');
  const file = openSync(`/proc/${target.pid}/mem`, 'r+');
  const text = maps(target.pid)
    .split('\n')
    .find((line) => / r[w-]xp /.test(line) && line.includes('flips'));
  assert.ok(text !== undefined);
  const start = parseInt(text, 16);
  const end = parseInt(text.split('-')[1], 16);
  const ways = async (): Promise<object> =>
    (await attach(target.pid, { filters: FUNCTIONS, exits: 'none' as const, bufferBytes: BUFFER }).stop())
      .ways;
  // Behind the functions: the pages are the process's own from now on, and nobody knows whose.
  const lastOf = (page: number): number => page + 4095;
  const last = new Uint8Array(1);
  for (let page = start; page < end; page += 4096) {
    readSync(file, last, 0, 1, lastOf(page));
    assert.equal(last[0], 0);
    writeSync(file, Uint8Array.of(1), 0, 1, lastOf(page));
  }
  assert.deepEqual(await ways(), { held: 3 });
  assert.equal(
    refusal(target.pid, { filters: FUNCTIONS, exits: 'none' as const, way: 'page-flip' }),
    'NEEDS_HOLD',
  );
  for (let page = start; page < end; page += 4096) {
    readSync(file, last, 0, 1, lastOf(page));
    assert.equal(last[0], 1);
    writeSync(file, Uint8Array.of(0), 0, 1, lastOf(page));
  }
  // With the file's bytes they are nobody's any more.
  assert.deepEqual(await ways(), { 'page-flip': 3 });
  closeSync(file);
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
});

for (const [protection, why] of [
  ['locked', 'its pages would come back unlocked'],
  ['sealed', 'the kernel forbids it'],
] as const) {
  test(`text that is ${protection} is not flipped, since ${why}; in a hold it is changed and changed back`, async () => {
    const target = new Target(build('flips.c', ...ONE_NOP), '4', protection);
    // Linux has mseal(2) since 6.10; without it nothing is sealed, and page flips it is.
    const isProtected = (await target.expect(/^ready/)) === `ready, ${protection}`;
    const session = attach(target.pid, { filters: FUNCTIONS, exits: 'none' as const, bufferBytes: BUFFER });
    target.say('run');
    await pause(20);
    target.say('quiet');
    await target.expect(/wrong=0/);
    const { ways, restored } = await session.stop();
    assert.deepEqual(
      { ways, restored },
      { ways: { [isProtected ? 'held' : 'page-flip']: 3 }, restored: true },
    );
    assert.equal(changedBytes(target.pid), 0);
    await target.finish();
  });
}

/** The program that a safepoke of the test's has started, once it can be talked to about it. */
async function targetOf(running: Running): Promise<number> {
  for (;;) {
    const [pid] = childrenOf(running.child.pid ?? 0);
    try {
      if (pid > 0) await control(pid, { on: [], off: [] });
      if (pid > 0) return pid;
    } catch (error) {
      if (!isSafepokeError(error) || running.child.exitCode !== null) throw error;
    }
    await pause(20);
  }
}

test('a program started under trace with page flips is never held, however often its functions are switched', async () => {
  const running = Running.run(['--way', 'page-flip', '-F', 'mix'], build('busy.c', ...ONE_NOP), '2');
  const pid = await targetOf(running);
  for (let i = 0; i < 20; i++) {
    assert.equal((await control(pid, { on: [], off: ['mix'] })).matchedOff, 1);
    assert.equal((await control(pid, { on: ['mix'], off: [] })).matchedOn, 1);
  }
  const { status } = await control(pid, { on: [], off: [] });
  assert.deepEqual({ on: status.on, off: status.off, held: status.held_us }, { on: 1, off: 0, held: 0 });
  running.child.stdin.end();
  const { summary, stderr } = await running.ended();
  assert.equal(summary.exit_status, 0, stderr);
  assert.deepEqual({ held: summary.held_us, switched: summary.switched }, { held: 0, switched: 40 });
  // Where it begins, and where it returns.
  assert.equal(summary.ways['page-flip'], 2);
});

test('who talks to a session that is not there, or about functions that it does not trace, is told so', async () => {
  const target = await Target.ready(build('flips.c', ...ONE_NOP), '2');
  const none = safepoke('control', '-p', String(target.pid), '--off', 'mix');
  assert.equal(none.status, 1);
  assert.match(none.stderr, /no safepoke of yours traces it/);
  const running = await Running.attach(target.pid, '-F', 'mix');
  while (safepoke('control', '-p', String(target.pid)).status !== 0) await pause(20);
  const unknown = safepoke('control', '-p', String(target.pid), '--off', 'nothing*');
  assert.equal(unknown.status, 2);
  assert.match(unknown.stderr, /traces no function that matches/);
  const off = safepoke('control', '-p', String(target.pid), '--off', 'm*', '--status');
  assert.deepEqual(
    { status: off.status, found: /functions +0 on, 1 off/.test(off.stdout) },
    { status: 0, found: true },
  );
  await running.stop();
  await target.finish();
});

test('a site across the end of a page is changed by one system call of the process itself, as a kill between two pages would break it', async (t) => {
  const target = await Target.ready(build('across.c', '-O2'));
  const memory = openSync(`/proc/${target.pid}/mem`, 'r');
  const bytesAt = (address: number): Uint8Array => {
    const bytes = new Uint8Array(SITE_LENGTH);
    readSync(memory, bytes, 0, bytes.length, address);
    return bytes;
  };
  let written = 0;
  // eslint-disable-next-line @typescript-eslint/unbound-method -- called with its object below
  const { writeWhole } = AgentThread.prototype;
  t.mock.method(AgentThread.prototype, 'writeWhole', function (this: AgentThread, sites: WholeSite[]) {
    writeWhole.call(this, sites);
    for (const { address, bytes } of sites) assert.deepEqual(bytesAt(address), bytes);
    written += sites.length;
  });
  const ROUNDS = 10;
  for (let round = 0; round < ROUNDS; round++) {
    const session = attach(target.pid, { filters: ['across_*'], way: 'held', bufferBytes: BUFFER });
    target.say('go on');
    await target.expect(/^fine$/);
    const summary = await session.stop();
    assert.deepEqual([summary.patched, summary.restored, summary.removed], [4, true, true]);
    assert.equal(changedBytes(target.pid), 0);
    const entries = Object.values(summary.calls);
    assert.ok(entries.length === 4 && entries.every((n) => n > 0));
  }
  assert.equal(written, 4 * ROUNDS);
  closeSync(memory);
  await target.finish();
});
