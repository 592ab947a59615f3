// Children of every kind, programs that become others, libraries that come and go.
import assert from 'node:assert/strict';
import { isSafepokeError, attach } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Target, assertCounted, build, changedBytes, pause, runTraced } from './targets.test.support.js';

const BUFFER = 1 << 18;

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
  { name: 'libraries that are loaded and unloaded while their functions are traced', run: loading },
  { name: 'longjmp, coroutines, exceptions, stack overflow, cancellation, backtraces', run: leaving },
];
