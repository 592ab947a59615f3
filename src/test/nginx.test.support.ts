// nginx, and clients that know what every reply must be.
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { freePort, start, temporaryFolder, until, untilListening } from './real.test.support.js';

const WORKERS = 2;

const FILES = 20;

function contents(i: number): string {
  return `file ${i}: `.repeat(1 + i * 700);
}

function configuration(folder: string, port: number, daemon: 'on' | 'off'): string {
  return `
daemon ${daemon};
worker_processes ${WORKERS};
pid ${folder}/pid;
error_log ${folder}/errors;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path ${folder}/body; proxy_temp_path ${folder}/proxy; fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi; scgi_temp_path ${folder}/scgi;
  server {
    listen 127.0.0.1:${port};
    root ${folder}/files;
    location = /status { return 418 "teapot"; }
    location /again/ { proxy_pass http://127.0.0.1:${port}/; }
    location ~ ^/zip { gzip on; gzip_types *; rewrite ^/zip(/.*)$ $1 break; }
  }
}
`;
}

/** Files to serve, and the command of a master that serves them. */
export async function prepareNginx(
  t: TestContext,
  daemon: 'on' | 'off' = 'off',
): Promise<{ command: readonly string[]; port: number; folder: string }> {
  const folder = temporaryFolder(t);
  const port = await freePort();
  // Workers of a master that root started run as nobody.
  chmodSync(folder, 0o755);
  mkdirSync(join(folder, 'files'));
  for (let i = 0; i < FILES; i++) writeFileSync(join(folder, 'files', String(i)), contents(i));
  writeFileSync(join(folder, 'conf'), configuration(folder, port, daemon));
  return {
    command: ['/usr/sbin/nginx', '-c', join(folder, 'conf'), '-e', join(folder, 'errors')],
    port,
    folder,
  };
}

export async function startNginx(t: TestContext): Promise<{ pid: number; port: number }> {
  const { command, port } = await prepareNginx(t);
  const { pid } = start(t, command[0], command.slice(1));
  // Killed masters leave their workers behind.
  t.after(() => {
    for (const worker of workersOf(pid)) process.kill(worker, 'SIGKILL');
  });
  await untilListening(port);
  // The master listens before its workers have looked up their user, for which they load libraries.
  await until(() => workersOf(pid).length === WORKERS && workersOf(pid).every(isWaitingForEvents));
  return { pid, port };
}

/** System call numbers of x86-64. */
const EPOLL_WAIT = '232';

function isWaitingForEvents(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/syscall`, 'utf8').startsWith(`${EPOLL_WAIT} `);
  } catch {
    return false;
  }
}

export function workersOf(master: number): number[] {
  try {
    return readFileSync(`/proc/${master}/task/${master}/children`, 'utf8')
      .trim()
      .split(/\s+/)
      .filter(Boolean)
      .map(Number);
  } catch {
    return [];
  }
}

function get(agent: Agent, port: number, path: string): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    request({ agent, port, path, host: '127.0.0.1' }, (response) => {
      let body = '';
      response.setEncoding('utf8').on('data', (text: string) => (body += text));
      response.on('end', () => {
        resolve({ status: response.statusCode ?? 0, body });
      });
      response.on('error', reject);
    })
      .on('error', reject)
      .end();
  });
}

/** Asks for files, their proxied copies and made-up replies until told to stop; every one must be right. */
async function checkReplies(port: number, keepAlive: boolean, goOn: () => boolean): Promise<number> {
  let replies = 0;
  const agent = new Agent({ keepAlive, maxSockets: 4 });
  for (let i = 0; goOn(); i = (i + 1) % FILES) {
    // Every few requests over a connection of its own, so that both workers get some.
    const over = i % 5 === 0 ? new Agent() : agent;
    for (const path of [`/${i}`, `/again/${i}`]) {
      assert.deepEqual(await get(over, port, path), { status: 200, body: contents(i) });
    }
    assert.deepEqual(await get(over, port, '/status'), { status: 418, body: 'teapot' });
    assert.equal((await get(over, port, '/none')).status, 404);
    replies += 4;
  }
  agent.destroy();
  return replies;
}

export async function underLoad(port: number, keepAlive: boolean, work: () => Promise<void>): Promise<void> {
  let isOver = false;
  const clients = [1, 2, 3].map(() => checkReplies(port, keepAlive, () => !isOver));
  try {
    await Promise.race([work(), ...clients.map((client) => client.then(() => undefined))]);
  } finally {
    isOver = true;
  }
  for (const replies of await Promise.all(clients)) assert.ok(replies > 0);
}
