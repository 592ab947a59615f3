import type { RecordedFunction, RecordingHeader, RecordingMessage } from './file-layout.js';

/** The JSON is not what the format promises; the reader adds where that was. */
export class BadJson extends Error {}

type JsonObject = Readonly<Record<string, unknown>>;
/** Fields of messages that have a form: what is looked up in an object that others made is named here. */
type Field =
  | 'pid'
  | 'startTime'
  | 'startTsc'
  | 'kind'
  | 'first'
  | 'lane'
  | 'tid'
  | 'name'
  | 'tsc'
  | 'ns'
  | 'records'
  | 'demangled'
  | 'module'
  | 'address';

/** Objects and lists of a message: each takes some 50 bytes of memory and need have but two in the file. */
const MAX_VALUES = 1 << 22;
/** Shorter messages cannot have many. */
const SHORT_JSON = 1 << 20;

const MAX_LANE = 0xffff_ffff;
/** Far beyond any processor; with it, and at least 1, times stay finite whatever the ticks. */
const MAX_TSC_HZ = 1e12;
/** Bounds what a damaged file can make us convert to a bigint: 2^64 has 20 digits. */
const DECIMAL = /^[0-9]{1,20}$/;
const ADDRESS = /^0x[0-9a-f]{1,16}$/i;

export function parseHeader(text: string): RecordingHeader {
  const json = parseObject(text, 'header');
  const mode = json['mode'];
  if (mode !== 'calls' && mode !== 'entries') throw new BadJson('the header has no known "mode"');
  const tscHz = json['tscHz'];
  if (typeof tscHz !== 'number' || !(tscHz >= 1 && tscHz <= MAX_TSC_HZ))
    throw new BadJson('the header has no sensible "tscHz"');
  const filters = json['filters'];
  const minDurationNs = json['minDurationNs'];
  const maxDepth = json['maxDepth'];
  return {
    pid: integer(json, 'pid'),
    command: strings(json['command'], 'command'),
    startTime: string(json, 'startTime'),
    mode,
    tscHz,
    startTsc: matching(json, 'startTsc', DECIMAL),
    ...(filters === undefined ? {} : { filters: strings(filters, 'filters') }),
    ...(typeof minDurationNs === 'number' && minDurationNs >= 0 ? { minDurationNs } : {}),
    ...(typeof maxDepth === 'number' && maxDepth >= 0 ? { maxDepth } : {}),
  };
}

/** Undefined for a kind that this version does not know: later versions may add some. */
export function parseMessage(text: string): RecordingMessage | undefined {
  const json = parseObject(text, 'message');
  const kind = string(json, 'kind');
  switch (kind) {
    case 'functions': {
      const items = json['items'];
      if (!Array.isArray(items)) throw new BadJson('"items" is not a list');
      return { kind, first: integer(json, 'first'), items: items.map(parseFunction) };
    }
    case 'thread':
      return {
        kind,
        lane: integer(json, 'lane'),
        tid: integer(json, 'tid'),
        name: string(json, 'name'),
        ...stackOf(json['stack']),
      };
    case 'thread-end':
      return { kind, lane: integer(json, 'lane') };
    case 'clock':
      return { kind, tsc: matching(json, 'tsc', DECIMAL), ns: matching(json, 'ns', DECIMAL) };
    case 'lost':
      return {
        kind,
        lane: integer(json, 'lane'),
        records: integer(json, 'records', Number.MAX_SAFE_INTEGER),
        ...(json['notKept'] === true ? { notKept: true } : {}),
      };
    case 'end': {
      const summary = json['summary'];
      if (!isObject(summary)) throw new BadJson('"summary" is not an object');
      return { kind, summary };
    }
    default:
      return undefined;
  }
}

/** Where the thread's own stack lies; nothing, unless that is told as it must be. */
function stackOf(value: unknown): { readonly stack?: readonly string[] } {
  if (!Array.isArray(value) || value.length !== 2) return {};
  const ends = value.filter((item): item is string => typeof item === 'string' && ADDRESS.test(item));
  return ends.length === 2 ? { stack: ends } : {};
}

function parseFunction(item: unknown): RecordedFunction {
  if (!isObject(item)) throw new BadJson('a function is not an object');
  return {
    name: string(item, 'name'),
    ...(item['demangled'] === undefined ? {} : { demangled: string(item, 'demangled') }),
    module: string(item, 'module'),
    address: matching(item, 'address', ADDRESS),
  };
}

/** Commas and brackets, those within strings too: at least as many as there are values. */
function countValues(text: string): number {
  let count = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === COMMA || code === BRACKET || code === BRACE) count++;
  }
  return count;
}

const COMMA = 0x2c;
const BRACKET = 0x5b;
const BRACE = 0x7b;

function parseObject(text: string, what: string): JsonObject {
  if (text.length > SHORT_JSON && countValues(text) > MAX_VALUES)
    throw new BadJson(`the ${what} has more than ${MAX_VALUES} values`);
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new BadJson(`the ${what} is not JSON`);
  }
  if (!isObject(json)) throw new BadJson(`the ${what} is not a JSON object`);
  return json;
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function integer(json: JsonObject, field: Field, max = MAX_LANE): number {
  const value = json[field];
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > max)
    throw new BadJson(`"${field}" is not a number from 0 to ${max}`);
  return value;
}

function string(json: JsonObject, field: Field): string {
  const value = json[field];
  if (typeof value !== 'string') throw new BadJson(`"${field}" is not a string`);
  return value;
}

function matching(json: JsonObject, field: Field, pattern: RegExp): string {
  const value = string(json, field);
  if (!pattern.test(value)) throw new BadJson(`"${field}" does not read ${pattern.source}`);
  return value;
}

function strings(value: unknown, field: string): readonly string[] {
  if (!Array.isArray(value) || !value.every((item): item is string => typeof item === 'string'))
    throw new BadJson(`"${field}" is not a list of strings`);
  return value;
}
