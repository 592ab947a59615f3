import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { readMaps } from '../linux/index.js';
import { TargetMemory } from './memory.js';

test('writing to a process that has ended is an error, reading from it gives nothing', async () => {
  const child = spawn('cat', { stdio: 'pipe' });
  const pid = child.pid ?? 0;
  await new Promise((resolve) => child.once('spawn', resolve));
  const stack = readMaps(pid)?.find((m) => m.path === '[stack]')?.start ?? 0;
  const memory = new TargetMemory(pid);
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await ended;
  assert.throws(() => memory.writeWord(stack, 1n), { code: 'MEMORY' });
  assert.equal(memory.readSome(stack, 8).length, 0);
  memory.close();
});
