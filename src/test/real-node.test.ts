// A node process at work: code that V8 makes calls C++ which calls it back, and collections of garbage walk the stacks.
import assert from 'node:assert/strict';
import { Agent, get } from 'node:http';
import { test } from 'node:test';
import {
  assertCodeIsThatOfFiles,
  attachFor,
  codeMappings,
  freePort,
  start,
  untilListening,
} from './real.test.support.js';

const SERVER = `
  const { createHash } = require('node:crypto');
  require('node:http').createServer((request, response) => {
    const garbage = Array.from({ length: 2000 }, (_, i) => ({ i, text: request.url + i }));
    const digest = createHash('sha256').update(request.url).digest('hex');
    response.end(JSON.stringify({ digest, length: garbage.length, last: garbage.at(-1).text }));
  }).listen(Number(process.argv[1]), '127.0.0.1');
`;

function ask(agent: Agent, port: number, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    get({ agent, port, path, host: '127.0.0.1' }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => (body += text));
      response.on('end', () => {
        resolve(body);
      });
    }).on('error', reject);
  });
}

test('a node server answers rightly while its event loop and its libc, and then all of its functions, are traced', async (t) => {
  const port = await freePort();
  const { pid } = start(t, process.execPath, ['-e', SERVER, String(port)]);
  await untilListening(port);
  const agent = new Agent({ keepAlive: true, maxSockets: 2 });
  const expected = await Promise.all(['/a', '/b', '/c'].map((path) => ask(agent, port, path)));
  const before = codeMappings(pid).filter((line) => line.includes('/'));
  let isOver = false;
  const client = (async (): Promise<void> => {
    for (let i = 0; !isOver; i = (i + 1) % 3) {
      assert.equal(await ask(agent, port, ['/a', '/b', '/c'][i]), expected[i]);
    }
  })();
  const work = async (): Promise<void> => {
    for (const filters of [['uv_*', 'node::*', 'libc.so.6!*'], ['*']]) {
      const summary = await attachFor(t, pid, filters, '200ms');
      if (filters.includes('uv_*')) assert.ok(Object.keys(summary.calls).length > 10);
      assertCodeIsThatOfFiles(pid);
      // V8 maps code of its own as it goes on; what is of files must be as it was.
      assert.deepEqual(
        codeMappings(pid).filter((line) => line.includes('/')),
        before,
      );
    }
  };
  try {
    await Promise.race([work(), client]);
  } finally {
    isOver = true;
  }
  await client;
  agent.destroy();
});
