// redis-server, and clients that know what every reply must be.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import type { TestContext } from 'node:test';
import { freePort, start, temporaryFolder, untilListening } from './real.test.support.js';

/** One connection, one request in the air at a time. */
export class RedisClient {
  readonly #socket: Socket;
  #received = Buffer.alloc(0);

  private constructor(socket: Socket) {
    this.#socket = socket;
  }

  static async connect(port: number): Promise<RedisClient> {
    const socket = connect(port, '127.0.0.1');
    await once(socket, 'connect');
    return new RedisClient(socket);
  }

  /** Sends one command; returns its reply: a bulk string's content, or the line behind its type. */
  async ask(...words: string[]): Promise<string> {
    const request = words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('');
    this.#socket.write(`*${words.length}\r\n${request}`);
    const line = await this.#line();
    if (!line.startsWith('$')) return line.slice(1);
    const length = Number(line.slice(1));
    if (length < 0) return '(nil)';
    await this.#have(length + 2);
    const body = this.#received.subarray(0, length).toString();
    this.#received = this.#received.subarray(length + 2);
    return body;
  }

  close(): void {
    this.#socket.destroy();
  }

  async #line(): Promise<string> {
    for (;;) {
      const end = this.#received.indexOf('\r\n');
      if (end >= 0) {
        const line = this.#received.subarray(0, end).toString();
        this.#received = this.#received.subarray(end + 2);
        return line;
      }
      await this.#have(this.#received.length + 1);
    }
  }

  async #have(length: number): Promise<void> {
    while (this.#received.length < length) {
      const [piece] = (await once(this.#socket, 'data')) as [Buffer];
      this.#received = Buffer.concat([this.#received, piece]);
    }
  }
}

/** Sets, reads, counts and deletes until told to stop; every reply must be right. Returns how many there were. */
export async function checkReplies(port: number, name: string, goOn: () => boolean): Promise<number> {
  const client = await RedisClient.connect(port);
  let replies = 0;
  try {
    for (let i = 1; goOn(); i++) {
      const key = `${name}:${i % 100}`;
      const value = `value ${i} `.repeat(1 + (i % 40));
      assert.equal(await client.ask('SET', key, value), 'OK');
      assert.equal(await client.ask('GET', key), value);
      assert.equal(await client.ask('INCR', `${name}:count`), String(i));
      assert.equal(
        await client.ask('EVAL', 'return redis.call("STRLEN", KEYS[1])', '1', key),
        String(value.length),
      );
      assert.match(await client.ask('INCR', key), /^ERR value is not an integer/);
      replies += 5;
    }
    return replies;
  } finally {
    client.close();
  }
}

/** The command of a server that keeps nothing, with threads for its clients. */
export function redisCommand(port: number, folder: string): readonly string[] {
  return [
    ...['redis-server', '--port', String(port), '--bind', '127.0.0.1', '--save', '', '--dir', folder],
    ...['--io-threads', '2', '--io-threads-do-reads', 'yes'],
  ];
}

export async function startRedis(t: TestContext): Promise<{ pid: number; port: number; folder: string }> {
  const port = await freePort();
  const folder = temporaryFolder(t);
  const [command, ...args] = redisCommand(port, folder);
  const { pid } = start(t, command, args);
  await untilListening(port);
  return { pid, port, folder };
}

/** Has clients at work, checked ones and redis-benchmark, while `work` goes on. */
export async function underLoad(t: TestContext, port: number, work: () => Promise<void>): Promise<void> {
  const load = start(t, 'redis-benchmark', [
    ...['-p', String(port), '-q', '-l', '-P', '4', '-c', '20'],
    ...['-t', 'set,get,lpush,lpop,sadd,zadd,lrange_100'],
  ]);
  let isOver = false;
  const clients = ['a', 'b', 'c'].map((name) => checkReplies(port, name, () => !isOver));
  try {
    await Promise.race([work(), ...clients.map((client) => client.then(() => undefined))]);
  } finally {
    isOver = true;
  }
  for (const replies of await Promise.all(clients)) assert.ok(replies > 0);
  assert.equal(load.exitCode, null, 'redis-benchmark ended: a reply must have been wrong');
  load.kill();
}
