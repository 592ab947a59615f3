import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { readStatus, SYS } from '../linux/index.js';
import { Hold } from './hold.js';
import { OutsideMemory } from './memory.js';
import { preflight } from './preflight.js';
import { RemoteCalls, borrowCode } from './remote-calls.js';
import { findProgram, killStopped, spawnStopped } from './spawn.js';
import { HoldTimes } from './stops.js';

async function withSleeper(body: (pid: number, child: ChildProcess) => void | Promise<void>): Promise<void> {
  const child = spawn('/bin/sleep', ['60']);
  await once(child, 'spawn');
  // Its start-up is over when it sleeps in the kernel.
  while (!(readStatus(child.pid ?? 0)?.get('State') ?? '').startsWith('S')) await setTimeout(5);
  try {
    await body(child.pid ?? 0, child);
  } finally {
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
}

test('a held process stands still, and goes on as if nothing had been when released', async () => {
  await withSleeper((pid) => {
    for (let i = 0; i < 20; i++) {
      const times = new HoldTimes();
      const hold = Hold.all(pid, times);
      assert.match(readStatus(pid)?.get('State') ?? '', /^t/);
      assert.equal(readStatus(pid)?.get('TracerPid'), String(process.pid));
      hold.release();
      assert.equal(readStatus(pid)?.get('TracerPid'), '0');
      assert.doesNotMatch(readStatus(pid)?.get('State') ?? '', /^t/);
      assert.ok(times.longestUs > 0);
    }
  });
});

test('a thread that has yet to make a call for a tracer that was killed makes none for another before that', async () => {
  await withSleeper((pid) => {
    const memory = new OutsideMemory(pid);
    const borrowed = borrowCode(pid, memory);
    const hold = Hold.all(pid, new HoldTimes());
    const [thread] = hold.threads;
    const before = thread.registers.copy();
    const lent = before.copy().set('rip', borrowed.syscall);
    try {
      assert.throws(
        () =>
          new RemoteCalls(pid, { ...thread, registers: lent }, memory, borrowed).run((call) =>
            call(SYS.getpid),
          ),
        /killed/,
      );
      const calls = new RemoteCalls(pid, thread, memory, borrowed);
      assert.equal(
        calls.run((call) => call(SYS.getpid)),
        pid,
      );
    } finally {
      hold.release();
      memory.close();
    }
  });
});

test('a remote system call gives its result, and leaves registers, mask and stack as they were', async () => {
  await withSleeper((pid) => {
    const memory = new OutsideMemory(pid);
    const hold = Hold.all(pid, new HoldTimes());
    try {
      const [thread] = hold.threads;
      const before = thread.registers.copy();
      const maskBefore = readStatus(pid)?.get('SigBlk');
      const below = memory.read(Number(before.get('rsp')) - 512, 512);
      const calls = new RemoteCalls(pid, hold.callableThread(), memory, borrowCode(pid, memory));
      const result = calls.run((call, string) => {
        string('some text');
        return call(SYS.getpid);
      });
      assert.equal(result, pid);
      hold.release();
      const again = Hold.all(pid, new HoldTimes());
      assert.equal(readStatus(pid)?.get('SigBlk'), maskBefore);
      assert.equal(again.threads[0].registers.get('rip'), before.get('rip'));
      assert.equal(again.threads[0].registers.get('rsp'), before.get('rsp'));
      assert.deepEqual(memory.read(Number(before.get('rsp')) - 512, 512), below);
      again.release();
    } finally {
      hold.release();
      memory.close();
    }
  });
});

test('a program that is started stopped stands at its entry point, and none of it has run', () => {
  const path = findProgram('true');
  const { pid } = spawnStopped(path, [path], (child) => new OutsideMemory(child));
  assert.match(readStatus(pid)?.get('State') ?? '', /^t/);
  killStopped(pid);
  assert.equal(readStatus(pid), undefined);
});

test('a file that is no program is refused by name, and nothing is left of the attempt', () => {
  assert.throws(() => findProgram('no-such-program-anywhere'), { code: 'NO_PROGRAM' });
  assert.throws(() => spawnStopped('/etc/passwd', ['/etc/passwd'], (child) => new OutsideMemory(child)), {
    code: 'NOT_STARTED',
  });
});

test('processes that cannot be traced are told apart before anything is done to them', () => {
  assert.throws(() => preflight(2 ** 22 + 1), { code: 'NO_PROCESS' });
  assert.throws(() => preflight(process.pid), { code: 'SELF' });
});
