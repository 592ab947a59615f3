// Debian's nginx: a master that forks workers; a worker is traced while a client checks every reply.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startNginx, underLoad, workersOf } from './nginx.test.support.js';
import { assertCodeIsThatOfFiles, attachFor, codeMappings, isRunning, until } from './real.test.support.js';

for (const filters of [['*'], ['libc.so.6!*'], ['*!*']]) {
  test(`every reply of nginx is right while a worker is traced with ${filters.join()}`, async (t) => {
    const { pid, port } = await startNginx(t);
    await underLoad(port, true, async () => {
      for (const worker of workersOf(pid).slice(0, filters.includes('*') ? 2 : 1)) {
        const before = codeMappings(worker);
        const summary = await attachFor(t, worker, filters, '300ms');
        assert.ok(summary.patched > 400, `${summary.patched} functions`);
        assert.deepEqual(codeMappings(worker), before);
        assertCodeIsThatOfFiles(worker);
      }
    });
  });
}

test('nginx reloads while its master is traced: new workers serve, old ones end', async (t) => {
  const { pid, port } = await startNginx(t);
  const [worker, other] = workersOf(pid);
  let isTraced = true;
  const before = codeMappings(pid);
  const master = attachFor(t, pid, ['*'], '3s').finally(() => (isTraced = false));
  await until(() => codeMappings(pid).length > before.length);
  // A worker that is to end closes idle connections, as a request may just be on its way: no connection is kept here.
  await underLoad(port, false, async () => {
    while (isTraced) {
      process.kill(pid, 'SIGHUP');
      await until(() => !isRunning(worker) && !isRunning(other) && workersOf(pid).length === 2);
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    const summary = await master;
    assert.ok((summary.calls['ngx_spawn_process'] ?? 0) > 0, 'no worker was started while traced');
  });
  assertCodeIsThatOfFiles(pid);
  assert.deepEqual(codeMappings(pid), before);
});
