// A client of redis that knows what every reply must be.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';

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
