// What cannot be traced is refused with its reason, and goes on as if nobody had asked.
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { readMaps, readStatus } from '../linux/index.js';
import { parseElf } from '../elf/index.js';
import {
  assertCodeIsThatOfFiles,
  attachFor,
  freePort,
  safepoke,
  start,
  temporaryFolder,
  until,
  untilListening,
} from './real.test.support.js';
import { RedisClient } from './redis-client.test.support.js';

test('the functions of a Go program are refused, since its stacks move, and it runs as it would alone', async () => {
  const { status, stderr, stdout } = await safepoke(['run', '--', 'fzf', '--version']);
  assert.equal(status, 0);
  assert.match(stdout, /^\d+\.\d+\.\d+ /);
  assert.match(stderr, /nothing of the program is traced: .*go-runtime \(the Go runtime moves stacks/);
});

test('a static program without symbols is refused', async () => {
  const { status, stderr, stdout } = await safepoke(['run', '--', 'busybox', 'echo', 'not run']);
  assert.deepEqual([status, stdout], [1, '']);
  assert.match(stderr, /^safepoke: cannot find functions in busybox: it is stripped/);
});

test('a process that a debugger traces is refused, and traced once the debugger is gone', async (t) => {
  const { pid } = start(t, 'sleep', ['1000']);
  await until(() => readStatus(pid)?.get('Name') === 'sleep');
  const debuggers = [
    { command: 'strace', args: ['-qq', '-p', String(pid)] },
    { command: 'gdb', args: ['-q', '-nx', '-p', String(pid)] },
  ];
  for (const { command, args } of debuggers) {
    const tracer = start(t, command, args, { stdio: ['pipe', 'ignore', 'ignore'] });
    await until(() => readStatus(pid)?.get('TracerPid') === String(tracer.pid));
    const { status, stderr } = await safepoke([
      'attach',
      '-p',
      String(pid),
      '-F',
      'libc.so.6!*',
      '--duration',
      '10ms',
    ]);
    assert.equal(status, 1);
    assert.match(
      stderr,
      new RegExp(`^safepoke: cannot .*: process ${tracer.pid} .* traces it already; end that tracer first`),
    );
    assert.equal(readStatus(pid)?.get('TracerPid'), String(tracer.pid));
    tracer.kill(command === 'gdb' ? 'SIGKILL' : 'SIGINT');
    await until(() => readStatus(pid)?.get('TracerPid') === '0');
  }
  await attachFor(t, pid, ['libc.so.6!*'], '10ms');
  assertCodeIsThatOfFiles(pid);
});

test('a function in which a breakpoint stands is refused as changed, and its breakpoint stays', async (t) => {
  const port = await freePort();
  const { pid } = start(t, 'redis-server', [
    '--port',
    String(port),
    '--save',
    '',
    '--dir',
    temporaryFolder(t),
  ]);
  await untilListening(port);
  const path = readMaps(pid)?.find((mapping) => mapping.path.endsWith('redis-server'))?.path ?? '';
  const elf = parseElf(readFileSync('/proc/' + String(pid) + '/exe'), path);
  const symbol = elf.symbols.find(({ name }) => name === 'debugCommand');
  const [first] = readMaps(pid) ?? [];
  assert.ok(symbol !== undefined);
  const address = first.start + (elf.type === 'executable' ? 0 : symbol.addressNumber);
  const memory = openSync(`/proc/${pid}/mem`, 'r+');
  t.after(() => {
    closeSync(memory);
  });
  const original = Buffer.alloc(1);
  readSync(memory, original, 0, 1, address);
  const BREAKPOINT = Buffer.of(0xcc);
  writeSync(memory, BREAKPOINT, 0, 1, address);
  const summary = await attachFor(t, pid, ['*'], '100ms');
  assert.equal(summary.refused['changed'], 1);
  const after = Buffer.alloc(1);
  readSync(memory, after, 0, 1, address);
  assert.deepEqual(after, BREAKPOINT);
  writeSync(memory, original, 0, 1, address);
  assertCodeIsThatOfFiles(pid);
  const client = await RedisClient.connect(port);
  assert.equal(await client.ask('PING'), 'PONG');
  client.close();
});
