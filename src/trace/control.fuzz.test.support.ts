// What may come over a session's socket, both ways: bytes, JSON of any shape, honest messages with a part of them changed, in any pieces.
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { isSafepokeError } from '../errors/index.js';
import {
  MAX_MESSAGE_BYTES,
  MessageReader,
  MessageRoom,
  parseReply,
  parseRequest,
} from './control-message.js';

const PID = 4711;

/** As a session of this version answers. */
export const HONEST_REPLY = {
  matchedOn: 1,
  matchedOff: 0,
  status: {
    pid: PID,
    on: 2,
    off: 1,
    refused: 0,
    records: 8964,
    dropped: 0,
    threads: 1,
    ways: { held: 7, 'page-flip': 2 },
    switched: 3,
    switch_us: 20,
    held_us: 6100,
    lent_us: 90,
    inside: { waits: 3, longest_wait_us: 214, helper_writes: 11, written_by: 'proc-self-mem' },
  },
};
const HONEST_REFUSAL = { usage: true, tried: 'read a pattern', why: 'it is none', next: 'give one' };
const HONEST_REQUEST = { on: ['a*'], off: ['libc.so.6!m?lloc', '/^x/i'] };

const odd = fc.oneof(
  fc.jsonValue(),
  fc.constantFrom<unknown>(null, -1, 1e308, 1.5, '', '\u001b]0;x\u0007', '__proto__', [], {}, [
    [[[[[[[[0]]]]]]]],
  ]),
);

/** Paths of all that an object has. */
function pathsOf(value: unknown, path: readonly string[] = []): (readonly string[])[] {
  if (typeof value !== 'object' || value === null) return [path];
  return [path, ...Object.entries(value).flatMap(([name, part]) => pathsOf(part, [...path, name]))];
}

function changed(value: unknown, path: readonly string[], by: unknown): unknown {
  const [name, ...rest] = path;
  if (path.length === 0) return by;
  if (typeof value !== 'object' || value === null) return value;
  const [part] = Object.entries(value).flatMap(([own, one]) => (own === name ? [one as unknown] : []));
  return Object.assign(Array.isArray(value) ? [...(value as unknown[])] : { ...value }, {
    [name]: changed(part, rest, by),
  });
}

const changedMessage = fc
  .constantFrom<unknown>(HONEST_REPLY, HONEST_REFUSAL, HONEST_REQUEST)
  .chain((message) =>
    fc.tuple(fc.constantFrom(...pathsOf(message)), odd).map(([path, by]) => changed(message, path, by)),
  );

const encoded = (value: unknown): Uint8Array => Buffer.from(JSON.stringify(value));
const message: fc.Arbitrary<Uint8Array> = fc.oneof(
  fc.uint8Array({ maxLength: 200 }),
  odd.map(encoded),
  changedMessage.map(encoded),
  fc.tuple(changedMessage.map(encoded), fc.nat(), fc.nat(255)).map(([bytes, at, by]) => {
    const copy = Uint8Array.from(bytes);
    copy[at % copy.length] = by;
    return copy;
  }),
  fc
    .tuple(fc.constantFrom('[', '{"a":', '"\\"', '[{},'), fc.nat(5000))
    .map(([text, n]) => Buffer.from(text.repeat(n))),
);

const isPlain = (text: string): boolean => !/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(text);

function checkMessage(bytes: Uint8Array): void {
  try {
    const { on, off } = parseRequest(bytes);
    assert.ok([...on, ...off].every((pattern) => typeof pattern === 'string'));
  } catch (error) {
    assert.ok(isSafepokeError(error), String(error));
  }
  const reply = parseReply(bytes, PID);
  if (reply === undefined) return;
  if ('status' in reply) {
    // Nothing is kept but what is known.
    assert.deepEqual(Object.keys(reply.status).sort(), Object.keys(HONEST_REPLY.status).sort());
    const { pid, ways, inside, ...counts } = reply.status;
    assert.equal(pid, PID);
    const numbers: unknown[] = [
      ...Object.values(counts),
      ...Object.values(ways),
      reply.matchedOn,
      reply.matchedOff,
    ];
    assert.ok(numbers.every((n) => typeof n === 'number' && n >= 0 && n <= Number.MAX_SAFE_INTEGER));
    assert.ok(Object.keys(ways).every(isPlain));
    const by: readonly unknown[] = ['mprotect', 'proc-self-mem'];
    assert.ok(inside === null || by.includes(inside.written_by));
  } else {
    assert.ok([reply.tried, reply.why, reply.next].every(isPlain));
  }
}

/** However a message is cut it is the same, and its room comes back. */
function checkPieces(bytes: Uint8Array, cuts: readonly number[]): void {
  const room = new MessageRoom();
  const reader = new MessageReader(room);
  const line = Buffer.concat([bytes.filter((byte) => byte !== 0x0a), Buffer.from('\n')]);
  const places = [0, ...cuts.map((cut) => cut % line.length), line.length].sort((a, b) => a - b);
  let whole: Uint8Array | 'too-long' | undefined;
  for (let i = 1; i < places.length; i++)
    whole = reader.add(line.subarray(places[i - 1], places[i])) ?? whole;
  assert.ok(whole instanceof Uint8Array);
  assert.deepEqual(Buffer.from(whole), line.subarray(0, -1));
  reader.close();
  assert.equal(room.left, MAX_MESSAGE_BYTES);
}

/** Reads `rounds` messages as a session and as one who asks. Throws what fast-check tells of one that is taken wrongly. */
export function fuzzControl(rounds: number, seed: number): void {
  fc.assert(fc.property(message, checkMessage), { numRuns: rounds, seed });
  fc.assert(fc.property(message, fc.array(fc.nat(), { maxLength: 20 }), checkPieces), {
    numRuns: rounds,
    seed,
  });
}
