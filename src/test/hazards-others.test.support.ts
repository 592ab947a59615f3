// Another tracer that comes during a session: a second safepoke, or strace. It is refused or waited for; the process never notices.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { attach } from '../index.js';
import type { Hazard, Rounds } from './rounds.test.support.js';
import { Target, build, changedBytes, mapsOf, pause, safepoke, statusField } from './targets.test.support.js';

const FIB_20 = 21_891;

/** The one that is there goes on, exactly, while another is refused. */
async function secondIsRefused(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  while (rounds.next(target.pid)) {
    const session = attach(target.pid, { filters: ['fib'] });
    target.say('20');
    const other = safepoke('attach', '-p', String(target.pid), '--duration', '10ms', '-F', 'leaf');
    assert.deepEqual([other.status, other.stdout], [1, '']);
    assert.match(other.stderr, new RegExp(`another safepoke, process ${process.pid}, traces it; end that`));
    await target.expect(/^fib\(20\)=6765$/);
    const { calls, dropped, restored, removed } = await session.stop();
    assert.deepEqual([{ ...calls }, dropped, restored, removed], [{ fib: FIB_20 }, 0, true, true]);
    assert.equal(changedBytes(target.pid), 0);
  }
  await target.finish();
}

/** Has strace follow a process; resolves, when it holds it, with how to end it. */
async function straceOf(pid: number): Promise<() => Promise<unknown>> {
  const strace = spawn('strace', ['-f', '-qq', '-p', String(pid)], { stdio: 'ignore' });
  const ended = new Promise((resolve) => strace.once('exit', resolve));
  while (statusField(pid, 'TracerPid') !== String(strace.pid)) await pause(1);
  return () => {
    strace.kill('SIGINT');
    return ended;
  };
}

/** strace comes during the trace; it leaves before the end, is waited for at the end, or stays for longer than that. */
async function straceComes(rounds: Rounds): Promise<void> {
  const target = await Target.ready(build('fib.c'), '-');
  const before = mapsOf(target.pid);
  while (rounds.next(target.pid)) {
    const notes: string[] = [];
    const session = attach(target.pid, { filters: ['fib'], onNote: (line) => notes.push(line) });
    const leave = await straceOf(target.pid);
    target.say('20');
    await target.expect(/^fib\(20\)=6765$/);
    const when = ['before', 'meanwhile', 'after'][rounds.done % 3];
    if (when === 'before') await leave();
    const stopped = session.stop();
    await pause(20);
    if (when === 'meanwhile') await leave();
    const { calls, restored, removed, dropped } = await stopped;
    assert.deepEqual(
      [{ ...calls }, restored, dropped, removed],
      [{ fib: FIB_20 }, true, 0, when !== 'after'],
      when,
    );
    if (when === 'after') {
      assert.match(notes.join('\n'), /a debugger or another tracer.*the code stays mapped, unused/);
      assert.equal(changedBytes(target.pid), 0);
      await leave();
      assert.equal((await attach(target.pid, { filters: ['fib'] }).stop()).removed, true);
    }
    assert.deepEqual([mapsOf(target.pid), changedBytes(target.pid)], [before, 0]);
  }
  await target.finish();
}

export const otherHazards: readonly Hazard[] = [
  {
    name: 'a second safepoke during a session is refused, and the first counts on exactly',
    run: secondIsRefused,
  },
  { name: 'strace that comes during a session, and stays beyond its end or not', run: straceComes },
];
