import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { CannotError } from '../errors/index.js';
import { readMaps } from '../linux/index.js';
import { OutsideMemory } from './memory.js';

test('the memory of a process that has ended reads as nothing, and writing to it is an error', async () => {
  const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
  const pid = child.pid ?? 0;
  const memory = new OutsideMemory(pid);
  const stack = readMaps(pid)?.find(({ path }) => path === '[stack]');
  assert.ok(stack !== undefined);
  const address = stack.end - 8;
  const former = memory.readWord(address);
  assert.ok(former !== undefined);
  memory.writeWord(address, former);
  child.kill('SIGKILL');
  await once(child, 'exit');
  assert.equal(memory.readWord(address), undefined);
  assert.throws(
    () => {
      memory.writeWord(address, 1n);
    },
    (error) => error instanceof CannotError && error.code === 'MEMORY',
  );
  memory.close();
});
