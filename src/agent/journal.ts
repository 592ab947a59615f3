// The journal: what was changed in a target and how to undo it, kept in the target itself. It is complete before the first
// site is changed, so that a later session can put everything back if this one is killed.
//
//   header   journal magic, where the agent's regions are
//   ranges   {address, length, is code} of each mapping
//   sites    {address, original bytes}
//   texts    {address, length, offset, inode} of each mapping of text that is writable for the time being
//
// It is found through the agent's page, at the start of the shared region, which /proc/PID/maps shows by name. That page also lists
// the mappings, for a session that was killed before there was a journal.
import type { TargetMemory } from '../target/index.js';
import type { FileText } from './open-text.js';
import { AGENT, AGENT_MAGIC, CONTROL, DATA, MAPPED_MAX } from './layout.js';

/** "journal5" read as a little-endian number: changes with the layout. */
const JOURNAL_MAGIC = 0x356c_616e_7275_6f6an;

/** Offsets in the header. All u64. */
const JOURNAL = {
  magic: 0,
  control: 8,
  rangeCount: 16,
  siteCount: 24,
  textCount: 32,
  size: 40,
} as const;

const RANGE_SIZE = 24;
const SITE_SIZE = 16;
const TEXT_SIZE = 32;
const ORIGINAL_OFFSET = 8;
const ORIGINAL_LENGTH = 5;
const TWO_TO_32 = 2 ** 32;
/** No honest journal has more: a damaged one must not make us allocate without bound. */
const MAX_RANGES = 4096;
const MAX_SITES = 1 << 24;

/** How the kernel shows the shared region in /proc/PID/maps. */
export const SHARED_NAME = 'safepoke';
/** The same of rings, where the agent's pages lie apart from them. */
export const RINGS_NAME = 'safepoke-rings';
export const RINGS_PATH = `/memfd:${RINGS_NAME} (deleted)`;
export const SHARED_PATH = `/memfd:${SHARED_NAME} (deleted)`;
/** The same for code. */
export const CODE_NAME = 'safepoke-code';
export const CODE_PATH = `/memfd:${CODE_NAME} (deleted)`;

export interface JournalRange {
  readonly address: number;
  readonly length: number;
  readonly isCode: boolean;
}

export interface JournalSite {
  readonly address: number;
  readonly original: Uint8Array;
}

export interface Journal {
  readonly control: number;
  readonly ranges: readonly JournalRange[];
  readonly sites: readonly JournalSite[];
  readonly texts: readonly FileText[];
}

/** Bytes that a journal takes at most: no more mappings have text than sites. */
export function journalBytes(ranges: number, sites: number, texts = sites): number {
  return JOURNAL.size + ranges * RANGE_SIZE + sites * SITE_SIZE + texts * TEXT_SIZE;
}

/** `addresses` ascend; `originals` has the five bytes of each, one site's behind the other's. */
export function encodeJournal(
  journal: Omit<Journal, 'sites'>,
  addresses: Float64Array,
  originals: Uint8Array,
): Uint8Array {
  const bytes = new Uint8Array(journalBytes(journal.ranges.length, addresses.length, journal.texts.length));
  const view = new DataView(bytes.buffer);
  const put = (offset: number, value: number | bigint): void => {
    view.setBigUint64(offset, BigInt(value), true);
  };
  put(JOURNAL.magic, JOURNAL_MAGIC);
  put(JOURNAL.control, journal.control);
  put(JOURNAL.rangeCount, journal.ranges.length);
  put(JOURNAL.siteCount, addresses.length);
  put(JOURNAL.textCount, journal.texts.length);
  let at: number = JOURNAL.size;
  for (const { address, length, isCode } of journal.ranges) {
    put(at, address);
    put(at + 8, length);
    put(at + 16, isCode ? 1 : 0);
    at += RANGE_SIZE;
  }
  for (let i = 0; i < addresses.length; i++) {
    view.setUint32(at, addresses[i] % TWO_TO_32, true);
    view.setUint32(at + 4, Math.floor(addresses[i] / TWO_TO_32), true);
    for (let k = 0; k < ORIGINAL_LENGTH; k++)
      bytes[at + ORIGINAL_OFFSET + k] = originals[i * ORIGINAL_LENGTH + k];
    at += SITE_SIZE;
  }
  for (const { start, length, offset, inode } of journal.texts) {
    [start, length, offset, inode].forEach((word, i) => {
      put(at + 8 * i, word);
    });
    at += TEXT_SIZE;
  }
  return bytes;
}

/**
 * Reads the journal of the agent whose shared region is mapped at `shared`; undefined if there is none that we understand. `ends`: where
 * mappings of shared regions end. What is private lies behind, and tells a child of a fork, whose parent's session is over, where it is.
 */
export function readJournal(
  memory: TargetMemory,
  shared: number,
  ends: readonly number[],
): Journal | undefined {
  const own = ends
    .map((end) => end + CONTROL.size)
    .filter((data) => memory.readWord(data + DATA.magic) === AGENT_MAGIC)
    .map((data) => memory.readWord(data + DATA.journal) ?? 0n);
  const address = Number(memory.readWord(shared + AGENT.journal) || own.find((at) => at !== 0n) || 0n);
  const head = memory.readSome(address, JOURNAL.size);
  if (address === 0 || head.length < JOURNAL.size) return undefined;
  const view = new DataView(head.buffer, head.byteOffset);
  const get = (offset: number): number => Number(view.getBigUint64(offset, true));
  if (view.getBigUint64(JOURNAL.magic, true) !== JOURNAL_MAGIC) return undefined;
  const rangeCount = get(JOURNAL.rangeCount);
  const siteCount = get(JOURNAL.siteCount);
  const textCount = get(JOURNAL.textCount);
  if (rangeCount > MAX_RANGES || siteCount > MAX_SITES || textCount > siteCount) return undefined;
  const length = journalBytes(rangeCount, siteCount, textCount) - JOURNAL.size;
  const rest = memory.readSome(address + JOURNAL.size, length);
  if (rest.length < length) return undefined;
  const restView = new DataView(rest.buffer, rest.byteOffset);
  const restGet = (offset: number): number => Number(restView.getBigUint64(offset, true));
  const ranges = Array.from({ length: rangeCount }, (_, i) => ({
    address: restGet(i * RANGE_SIZE),
    length: restGet(i * RANGE_SIZE + 8),
    isCode: restGet(i * RANGE_SIZE + 16) !== 0,
  }));
  const sites = Array.from({ length: siteCount }, (_, i) => {
    const at = rangeCount * RANGE_SIZE + i * SITE_SIZE;
    const original = rest.slice(at + ORIGINAL_OFFSET, at + ORIGINAL_OFFSET + ORIGINAL_LENGTH);
    return { address: restGet(at), original };
  });
  const firstText = rangeCount * RANGE_SIZE + siteCount * SITE_SIZE;
  const texts = Array.from({ length: textCount }, (_, i) => {
    const at = firstText + i * TEXT_SIZE;
    return {
      start: restGet(at),
      length: restGet(at + 8),
      offset: restGet(at + 16),
      inode: restGet(at + 24),
    };
  });
  return {
    control: get(JOURNAL.control),
    ranges,
    sites,
    texts,
  };
}

/** What an agent's page says of the session that made it. */
export interface AgentPage {
  readonly tracerPid: number;
  readonly tracerStart: bigint;
  /** Its mappings, as far as it got. */
  readonly mapped: readonly { readonly address: number; readonly length: number }[];
  /** It had come as far as writing a journal: sites may have been changed. */
  readonly hasJournal: boolean;
}

/** Reads the agent's page at the start of the shared region; undefined if there is no sense in it. */
export function readAgentPage(memory: TargetMemory, shared: number): AgentPage | undefined {
  const page = memory.readSome(shared, AGENT.size);
  if (page.length < AGENT.size) return undefined;
  const words = new BigUint64Array(page.slice().buffer);
  const count = Number(words[AGENT.mappedCount / 8]);
  if (count > MAPPED_MAX) return undefined;
  return {
    tracerPid: Number(words[AGENT.tracerPid / 8]),
    tracerStart: words[AGENT.tracerStart / 8],
    mapped: Array.from({ length: count }, (_, i) => ({
      address: Number(words[AGENT.mapped / 8 + i * 2]),
      length: Number(words[AGENT.mapped / 8 + i * 2 + 1]),
    })),
    hasJournal: words[AGENT.journal / 8] !== 0n,
  };
}
