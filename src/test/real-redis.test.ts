// Debian's redis-server: a busy event loop with helper threads, a fork for each snapshot, and jemalloc.
import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  assertCodeIsThatOfFiles,
  attachFor,
  codeMappings,
  finish,
  totalCalls,
  until,
} from './real.test.support.js';
import { RedisClient, startRedis, underLoad } from './redis-client.test.support.js';

test('redis-server answers rightly while all its functions are traced, again and again', async (t) => {
  const { pid, port } = await startRedis(t);
  const before = codeMappings(pid);
  await underLoad(t, port, async () => {
    for (let round = 0; round < 3; round++) {
      const summary = await attachFor(t, pid, ['*'], '700ms');
      assert.ok(summary.patched > 2500, `${summary.patched} functions`);
      assert.ok(totalCalls(summary) > 10_000);
      assert.ok(
        Object.hasOwn(summary.calls, 'processCommand') && Object.hasOwn(summary.calls, 'readQueryFromClient'),
      );
      assert.deepEqual(codeMappings(pid), before);
      assertCodeIsThatOfFiles(pid);
    }
  });
});

test('redis-server answers rightly while all of its C library is traced', async (t) => {
  const { pid, port } = await startRedis(t);
  const before = codeMappings(pid);
  await underLoad(t, port, async () => {
    const summary = await attachFor(t, pid, ['libc.so.6!*', 'ld-linux-x86-64.so.2!*'], '700ms');
    assert.ok((summary.calls['epoll_wait'] ?? 0) > 0);
  });
  assert.deepEqual(codeMappings(pid), before);
  assertCodeIsThatOfFiles(pid);
});

test('a snapshot that redis-server takes while traced can be loaded', async (t) => {
  const { pid, port, folder } = await startRedis(t);
  const client = await RedisClient.connect(port);
  t.after(() => {
    client.close();
  });
  for (let i = 0; i < 2000; i++) await client.ask('SET', `key${i}`, `value ${i}`);
  let isTraced = true;
  const traced = attachFor(t, pid, ['*'], '1s').finally(() => (isTraced = false));
  const saved = async (): Promise<boolean> =>
    (await client.ask('INFO', 'persistence')).includes('rdb_bgsave_in_progress:0');
  while (isTraced) {
    assert.match(await client.ask('BGSAVE'), /^Background saving started/);
    await until(saved);
  }
  const info = await client.ask('INFO', 'persistence');
  assert.match(info, /rdb_last_bgsave_status:ok/);
  const summary = await traced;
  assert.ok((summary.calls['rdbSaveBackground'] ?? 0) > 0, 'no snapshot was taken while traced');
  const dump = join(folder, 'dump.rdb');
  assert.ok(statSync(dump).size > 2000);
  const checked = await finish('redis-check-rdb', [dump]);
  assert.equal(checked.status, 0, checked.stdout);
  assert.match(checked.stdout, /2000 keys read/);
  assertCodeIsThatOfFiles(pid);
});
