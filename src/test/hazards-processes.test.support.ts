// Children of every kind, programs that become others, libraries that come and go.
import assert from 'node:assert/strict';
import { isSafepokeError, attach } from '../index.js';
import { throwing } from './exceptions.test.support.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import {
  Running,
  Target,
  assertCounted,
  build,
  changedBytes,
  isTraced,
  pause,
  runTraced,
} from './targets.test.support.js';

const BUFFER = 1 << 18;
/** Text is whole again within a second of safepoke's death; a machine that others use gets longer. */
const WHOLE_MS = 10_000;
/** Programs that it becomes while it is followed, at most. */
const BECOMES = 3;
/** safepoke is killed within so much of the time that it took to follow into the one before, and some more. */
const FOLLOW_PART = 1.3;
const FOLLOW_MS = 100;

/** Makes children while safepoke comes and goes: fork, vfork, posix_spawn and clone must each find their memory as it should be. */
async function spawning(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('spawns.c'));
  while (rounds.next(target.pid)) {
    target.say('10');
    let isDone = false;
    const done = target.expect(/^done 0$/).then(() => (isDone = true));
    const over = (): boolean => isDone;
    while (!over()) {
      const session = attach(target.pid, {
        bufferBytes: BUFFER,
        filters: ['work', 'step', 'deeper', 'shares'],
      });
      await pause(rounds.done % 7);
      const { restored, removed } = await session.stop();
      assert.deepEqual({ restored, removed }, { restored: true, removed: true });
    }
    await done;
    assert.equal(changedBytes(target.pid), 0);
  }
  await target.finish();
}

/** Becomes another program at any moment of an attach or of a detach: an error perhaps, but never a broken program. */
async function becoming(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('processes.c'), 'wait');
  while (rounds.next(target.pid)) {
    target.say('10');
    await target.expect(/^did 10$/);
    const before = rounds.done % 2 === 0;
    if (before) target.say('exec');
    try {
      const session = attach(target.pid, { bufferBytes: BUFFER });
      if (!before) target.say('exec');
      await pause(rounds.done % 5);
      const { ended } = await session.stop();
      assert.match(ended, /^(stopped|exec)$/);
    } catch (error) {
      if (!isSafepokeError(error)) throw error;
    }
    while (!/^ready$/.test(await target.line()));
  }
  target.say('10');
  await target.expect(/^did 10$/);
  assert.equal(changedBytes(target.pid), 0);
  await target.finish();
}

/** The same, with safepoke going on in each program, until it is killed: at any moment of an attach, a detach or what is between them. */
async function followed(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('processes.c'), 'wait');
  const works = async (): Promise<void> => {
    target.say('10');
    await target.expect(/^did 10$/);
  };
  while (rounds.next(target.pid)) {
    await works();
    const filters = ['-F', 'step', '-F', 'work', '--buffer', '256K'];
    const running = await Running.attach(target.pid, '--follow', ...filters);
    let followMs = 0;
    for (let programs = rounds.done % (BECOMES + 1); programs > 0; programs--) {
      const since = performance.now();
      target.say('exec');
      await target.expect(/^ready$/);
      while (!isTraced(target.pid)) await pause(1);
      followMs = performance.now() - since;
      await works();
    }
    target.say('exec');
    await pause(Math.random() * (followMs * FOLLOW_PART + FOLLOW_MS));
    rounds.count('deaths in a program that was being traced', isTraced(target.pid) ? 1 : 0);
    running.child.kill('SIGKILL');
    await running.gone();
    await target.expect(/^ready$/);
    const died = performance.now();
    while (changedBytes(target.pid) > 0) {
      assert.ok(performance.now() - died < WHOLE_MS, 'the text is still changed');
      await pause(1);
    }
    await works();
    const session = attach(target.pid, { bufferBytes: BUFFER });
    const { restored, removed } = await session.stop();
    assert.deepEqual([restored, removed, changedBytes(target.pid)], [true, true, 0]);
  }
  await works();
  await target.finish();
}

/** Loads and unloads a library whose functions are traced, at any moment. */
async function loading(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('loads.c'), build('plugin.c', '-shared', '-fPIC'));
  const say = async (line: string): Promise<void> => {
    target.say(line);
    await target.expect(/^fine$/);
  };
  while (rounds.next(target.pid)) {
    for (const meanwhile of [
      ['work 10', 'call 10'],
      ['call 5', 'unload'],
      ['unload', 'load', 'work 10'],
      ['unload', 'storm 5', 'load'],
    ]) {
      await say('load');
      const session = attach(target.pid, { bufferBytes: BUFFER, filters: ['own', 'plugin*!*'] });
      for (const line of meanwhile) await say(line);
      const { restored, removed, calls } = await session.stop();
      assert.deepEqual([restored, removed], [true, true], meanwhile.join());
      assert.ok((calls['own'] ?? 0) >= meanwhile.length);
      if (meanwhile[0] === 'work 10') assert.equal(calls['plugin_step'], 20);
      if (meanwhile.at(-1) !== 'unload') await say('unload');
      assert.equal(changedBytes(target.pid), 0);
    }
    target.say('storm 100');
    for (let i = 0; i < 3; i++) {
      const session = attach(target.pid, { bufferBytes: BUFFER, filters: ['own', 'load', 'unload'] });
      const { restored, removed } = await session.stop();
      assert.deepEqual([restored, removed], [true, true]);
    }
    await target.expect(/^fine$/);
  }
  await target.finish();
}

/** Control that leaves functions without returning: each program checks itself and counts. */
async function leaving(rounds: Rounds): Promise<void> {
  const cases = ['jump', 'heap', 'heap-left', 'stack', 'stack-left', 'inner', 'overflow'];
  while (rounds.next()) {
    const programs: [string, ...string[]][] = [
      [build('jumps.c'), rounds.done % 2 === 0 ? 'main' : 'thread', cases[rounds.done % cases.length]],
      [build('throws.cc', '-w')],
      [build('unwind.c', '-fexceptions')],
      [build('signals.c'), '40', 'an'],
    ];
    const [program, ...args] = programs[rounds.done % programs.length];
    const traced = runTraced([], program, ...args);
    assert.equal(traced.status, 0, `${args.join(' ')} ${traced.stdout} ${traced.stderr}`);
    if (!args.includes('overflow')) assertCounted(traced);
    await pause(0);
  }
}

export const processHazards: readonly Hazard[] = [
  {
    name: 'fork, vfork, posix_spawn and clone with shared memory while safepoke comes and goes: children unharmed',
    run: spawning,
  },
  { name: 'a target that executes another program at any moment of attach and detach', run: becoming },
  {
    name: 'a target that executes one program after another, followed until safepoke is killed: each runs on with its own code',
    run: followed,
  },
  { name: 'libraries that are loaded and unloaded while their functions are traced', run: loading },
  { name: 'longjmp, coroutines, exceptions, stack overflow, cancellation, backtraces', run: leaving },
  {
    name: 'exceptions without a pause while safepoke comes, goes, and is killed: each is caught',
    run: throwing,
  },
];
