// What goes over a session's socket: one request, one reply, each a line of JSON. Nothing that comes from the other side is believed
// before it has been looked at here: its length, its depth, its fields.
import { CannotError, UsageError, isSafepokeError } from '../errors/index.js';
import { plain } from '../text/index.js';
import type { SessionStatus } from './summary.js';

/** Most bytes of a message. A server has no more for all that come at the same time. */
export const MAX_MESSAGE_BYTES = 1 << 20;
/** How deep objects and lists lie in each other; an honest message has three. */
const MAX_DEPTH = 8;
/** Of a request: patterns of each kind, and characters of one. */
const MAX_PATTERNS = 1024;
const MAX_PATTERN_LENGTH = 4096;
/** Of a reply: characters of a reason, ways in which code is changed. */
const MAX_TEXT_LENGTH = 4096;
const MAX_WAYS = 16;

const NEWLINE = 0x0a;
const FIRST_ROOM = 4096;

/** What to do: functions to switch on, then those to switch off. */
export interface ControlRequest {
  readonly on: readonly string[];
  readonly off: readonly string[];
}

/** What was done, and how things are now. */
export interface ControlAnswer {
  /** Functions that the patterns matched. */
  readonly matchedOn: number;
  readonly matchedOff: number;
  readonly status: SessionStatus;
}

/** Why there is no answer. */
export interface ControlRefusal {
  /** The request was wrong. */
  readonly usage: boolean;
  readonly tried: string;
  readonly why: string;
  readonly next: string;
}

export type ControlReply = ControlAnswer | ControlRefusal;

/** Bytes that may be kept of messages that are not whole yet. */
export class MessageRoom {
  left = MAX_MESSAGE_BYTES;
}

/** Puts a message together. Memory is that of the bytes, in however many pieces they come. */
export class MessageReader {
  readonly #room: MessageRoom;
  #bytes = new Uint8Array(FIRST_ROOM);
  #length = 0;

  constructor(room = new MessageRoom()) {
    this.#room = room;
  }

  /** The message, without its line end, once it is whole; `too-long`: there is no room for more. */
  add(piece: Uint8Array): Uint8Array | 'too-long' | undefined {
    const end = piece.indexOf(NEWLINE);
    const part = end < 0 ? piece : piece.subarray(0, end);
    if (part.length > this.#room.left) return 'too-long';
    const length = this.#length + part.length;
    if (length > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(length, this.#bytes.length * 2));
      larger.set(this.#bytes.subarray(0, this.#length));
      this.#bytes = larger;
    }
    this.#bytes.set(part, this.#length);
    this.#length = length;
    this.#room.left -= part.length;
    return end < 0 ? undefined : this.#bytes.subarray(0, length);
  }

  /** Gives the room back. */
  close(): void {
    this.#room.left += this.#length;
    this.#length = 0;
  }
}

/** @throws UsageError BAD_REQUEST */
export function parseRequest(bytes: Uint8Array): ControlRequest {
  const request = fieldsOf(parseJson(bytes));
  // One that asks for more than this version knows is refused: it would not get what it wants.
  const isKnown =
    request !== undefined && [...request.keys()].every((name) => name === 'on' || name === 'off');
  const on = request?.get('on');
  const off = request?.get('off');
  if (isKnown && arePatterns(on) && arePatterns(off)) return { on, off };
  throw new UsageError('BAD_REQUEST', {
    tried: 'read a request',
    why: `it is not {"on": [...], "off": [...]} with at most ${MAX_PATTERNS} patterns of ${MAX_PATTERN_LENGTH} characters each`,
    next: 'use `safepoke control` of the same version',
  });
}

/** The bytes to send. @throws UsageError BAD_REQUEST */
export function encodeRequest({ on, off }: ControlRequest): Uint8Array {
  return encode(parseRequest(Buffer.from(JSON.stringify({ on, off }))));
}

/** The reply of a session that traces process `pid`; undefined if it is none. Of unknown fields nothing is kept. */
export function parseReply(bytes: Uint8Array, pid: number): ControlReply | undefined {
  const reply = fieldsOf(parseJson(bytes));
  if (reply === undefined) return undefined;
  return reply.has('status') ? answerOf(reply, pid) : refusalOf(reply);
}

export function encodeReply(reply: ControlReply): Uint8Array {
  return encode(reply);
}

/** Why a request could not be met, whatever was thrown: no request ends a session. */
export function refusalFor(error: unknown): ControlRefusal {
  const known = isSafepokeError(error)
    ? error
    : new CannotError('CONTROL', {
        tried: 'do what was asked',
        why: error instanceof Error ? error.message : String(error),
        next: 'see whether the process still runs',
      });
  const { tried, why, next } = known.details;
  const short = (text: string): string => text.slice(0, MAX_TEXT_LENGTH);
  return { usage: known instanceof UsageError, tried: short(tried), why: short(why), next: short(next) };
}

function encode(message: object): Uint8Array {
  return Buffer.from(`${JSON.stringify(message)}\n`);
}

/** Undefined: no JSON, or too deep. */
function parseJson(bytes: Uint8Array): unknown {
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return isShallow(text) ? JSON.parse(text) : undefined;
  } catch {
    return undefined;
  }
}

/** Looked at before anything is built of the text, in one pass. Brackets within strings do not count. */
function isShallow(text: string): boolean {
  let depth = 0;
  let isString = false;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (isString) {
      if (character === '\\') i++;
      else if (character === '"') isString = false;
    } else if (character === '"') {
      isString = true;
    } else if (character === '[' || character === '{') {
      if (++depth > MAX_DEPTH) return false;
    } else if (character === ']' || character === '}') {
      depth--;
    }
  }
  return true;
}

/** An object's own fields. */
function fieldsOf(value: unknown): ReadonlyMap<string, unknown> | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
  return new Map(Object.entries(value));
}

function arePatterns(value: unknown): value is readonly string[] {
  return (
    Array.isArray(value) &&
    value.length <= MAX_PATTERNS &&
    value.every((item) => typeof item === 'string' && item.length <= MAX_PATTERN_LENGTH)
  );
}

function refusalOf(reply: ReadonlyMap<string, unknown>): ControlRefusal | undefined {
  const usage = reply.get('usage');
  const [tried, why, next] = ['tried', 'why', 'next'].map((name) => textOf(reply.get(name)));
  if (typeof usage !== 'boolean' || tried === undefined || why === undefined || next === undefined)
    return undefined;
  return { usage, tried, why, next };
}

/** As it may be shown: what another process says is to move no cursor and end no line. */
function textOf(value: unknown): string | undefined {
  if (typeof value !== 'string' || value.length > MAX_TEXT_LENGTH) return undefined;
  return plain(value);
}

function answerOf(reply: ReadonlyMap<string, unknown>, pid: number): ControlAnswer | undefined {
  const status = fieldsOf(reply.get('status'));
  const numbers = numbersOf(reply, ['matchedOn', 'matchedOff']);
  if (status === undefined || numbers === undefined || status.get('pid') !== pid) return undefined;
  const first = numbersOf(status, ['on', 'off', 'refused', 'records', 'dropped', 'threads']);
  const last = numbersOf(status, ['switched', 'switch_us', 'held_us', 'lent_us']);
  const ways = waysOf(status.get('ways'));
  const inside = insideOf(status.get('inside'));
  if (first === undefined || last === undefined || ways === undefined || inside === undefined)
    return undefined;
  return { ...numbers, status: { pid, ...first, ways, ...last, inside } };
}

/** Fields that are numbers of things, or times. */
function numbersOf<Name extends string>(
  fields: ReadonlyMap<string, unknown>,
  names: readonly Name[],
): Record<Name, number> | undefined {
  const entries = names.map((name) => [name, fields.get(name)] as const);
  return entries.every(([, value]) => isNumber(value))
    ? (Object.fromEntries(entries) as Record<Name, number>)
    : undefined;
}

function isNumber(value: unknown): value is number {
  return typeof value === 'number' && value >= 0 && value <= Number.MAX_SAFE_INTEGER;
}

function waysOf(value: unknown): Readonly<Record<string, number>> | undefined {
  const ways = fieldsOf(value);
  if (ways === undefined || ways.size > MAX_WAYS) return undefined;
  const isWay = ([name, sites]: readonly [string, unknown]): boolean =>
    /^[a-z][a-z-]{0,31}$/.test(name) && isNumber(sites);
  return [...ways].every(isWay) ? (Object.fromEntries(ways) as Record<string, number>) : undefined;
}

function insideOf(value: unknown): SessionStatus['inside'] | undefined {
  if (value === null) return null;
  const inside = fieldsOf(value);
  if (inside === undefined) return undefined;
  const counts = numbersOf(inside, ['waits', 'longest_wait_us', 'helper_writes']);
  const by = inside.get('written_by');
  if (counts === undefined || (by !== 'proc-self-mem' && by !== 'mprotect')) return undefined;
  return { ...counts, written_by: by };
}
