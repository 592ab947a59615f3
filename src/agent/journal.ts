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
/** No honest journal has more: a forged one must not make us work, or allocate, without bound. */
const MAX_RANGES = 4096;
const MAX_SITES = 1 << 21;
const MAX_TEXTS = 4096;
/** User space ends here (TASK_SIZE_MAX, arch/x86/include/asm/page_64_types.h). */
const END_OF_MEMORY = 2 ** 47;

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

/** Sites in ascending order of address. A process may say that it has millions: each takes a few bytes. */
export interface JournalSites {
  readonly addresses: Float64Array;
  /** Five bytes of each. */
  readonly originals: Uint8Array;
}

export interface Journal {
  readonly control: number;
  readonly ranges: readonly JournalRange[];
  readonly sites: JournalSites;
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

/** What the kernel shows of a process: no journal of it tells of more. */
export interface JournalBounds {
  /** Bytes of executable mappings of files. */
  readonly textBytes: number;
}

/**
 * Reads the journal of the agent whose page is at `shared`; undefined if there is none that we understand, or that can be true. Children have
 * no such page. It stands in memory of the process, which may have written it: nothing in it is more than a hint, and all of it is bounded.
 * `ends`: where mappings of shared regions end. What is private lies behind, and tells a child of a fork, whose parent's session is over,
 * where it is.
 */
export function readJournal(
  memory: TargetMemory,
  shared: number | undefined,
  ends: readonly number[],
  { textBytes }: JournalBounds,
): Journal | undefined {
  const own = ends
    .map((end) => end + CONTROL.size)
    .filter((data) => memory.readWord(data + DATA.magic) === AGENT_MAGIC)
    .map((data) => memory.readWord(data + DATA.journal) ?? 0n);
  const told = shared === undefined ? undefined : memory.readWord(shared + AGENT.journal);
  const address = Number(told || own.find((at) => at !== 0n) || 0n);
  if (address <= 0 || address >= END_OF_MEMORY) return undefined;
  const head = memory.readSome(address, JOURNAL.size);
  if (head.length < JOURNAL.size) return undefined;
  const view = new DataView(head.buffer, head.byteOffset);
  const get = (offset: number): number => Number(view.getBigUint64(offset, true));
  if (view.getBigUint64(JOURNAL.magic, true) !== JOURNAL_MAGIC) return undefined;
  const rangeCount = get(JOURNAL.rangeCount);
  const siteCount = get(JOURNAL.siteCount);
  const textCount = get(JOURNAL.textCount);
  const control = get(JOURNAL.control);
  const mostSites = Math.min(MAX_SITES, textBytes / ORIGINAL_LENGTH);
  if (rangeCount > MAX_RANGES || siteCount > mostSites || textCount > Math.min(siteCount, MAX_TEXTS))
    return undefined;
  if (control >= END_OF_MEMORY) return undefined;
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
  const sites = readSites(rest, restView, rangeCount * RANGE_SIZE, siteCount);
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
  return sites === undefined || !areApart(texts) || ranges.some((range) => !isPlace(range))
    ? undefined
    : { control, ranges, sites, texts };
}

/** Undefined if they do not ascend, or lie where no memory can be. */
function readSites(
  bytes: Uint8Array,
  view: DataView,
  first: number,
  count: number,
): JournalSites | undefined {
  const addresses = new Float64Array(count);
  const originals = new Uint8Array(count * ORIGINAL_LENGTH);
  let end = 0;
  for (let i = 0; i < count; i++) {
    const at = first + i * SITE_SIZE;
    const address = view.getUint32(at, true) + view.getUint32(at + 4, true) * TWO_TO_32;
    if (address < end || address >= END_OF_MEMORY) return undefined;
    end = address + ORIGINAL_LENGTH;
    addresses[i] = address;
    for (let k = 0; k < ORIGINAL_LENGTH; k++)
      originals[i * ORIGINAL_LENGTH + k] = bytes[at + ORIGINAL_OFFSET + k];
  }
  return { addresses, originals };
}

const isPlace = ({ address, length }: { readonly address: number; readonly length: number }): boolean =>
  length > 0 && address + length <= END_OF_MEMORY;

/** Mappings never overlap: what is said of one is not said of it twice. */
function areApart(texts: readonly FileText[]): boolean {
  const ascending = [...texts].sort((a, b) => a.start - b.start);
  return ascending.every((text, i) => {
    const before = ascending.at(i - 1);
    if (!isPlace({ address: text.start, length: text.length })) return false;
    return i === 0 || before === undefined || before.start + before.length <= text.start;
  });
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
