// Journals that a process has written itself.
import assert from 'node:assert/strict';
import { TargetMemory } from '../target/index.js';
import { AGENT } from './layout.js';
import { encodeJournal, readAgentPage, readJournal, type Journal } from './journal.js';

const SHARED = 0x10_0000;
const AT = SHARED + AGENT.size;
const BYTES = 1 << 16;
const SITES = 50;
export const TEXT_BYTES = 1 << 20;
/** Many times what it takes. */
const READ_MS = 2000;
const ODD = [0n, 1n, 2n ** 31n, 2n ** 32n, 2n ** 47n - 1n, 2n ** 47n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

/** Memory that begins with an agent's page, a journal behind it. */
export class FakeMemory extends TargetMemory {
  readonly bytes = new Uint8Array(BYTES);
  readonly view = new DataView(this.bytes.buffer);
  /** Bytes that were asked for. */
  asked = 0;

  constructor(journal: Uint8Array) {
    super(process.pid);
    this.bytes.set(journal, AT - SHARED);
    this.view.setBigUint64(AGENT.journal, BigInt(AT), true);
  }

  readSome(address: number, length: number): Uint8Array {
    this.asked += length;
    const from = Math.min(Math.max(0, address - SHARED), BYTES);
    return address < SHARED ? new Uint8Array() : this.bytes.slice(from, from + length);
  }

  write(): void {
    throw new Error('reading writes nothing');
  }

  changeCode(): void {
    throw new Error('reading writes nothing');
  }

  close(): void {
    // There is nothing to close.
  }
}

export function honestJournal(): Uint8Array {
  const places = {
    control: 4096,
  };
  const texts = [0, 1].map((i) => ({ start: 0x40_0000 + i * 8192, length: 4096, offset: 0, inode: 7 }));
  const ranges = [{ address: SHARED, length: 1 << 20, isCode: false }];
  const addresses = Float64Array.from({ length: SITES }, (_, i) => 0x40_0000 + i * 16);
  return encodeJournal({ ...places, texts, ranges }, addresses, new Uint8Array(SITES * 5).fill(0x90));
}

export function read(memory: FakeMemory): Journal | undefined {
  return readJournal(memory, SHARED, [SHARED + BYTES], { textBytes: TEXT_BYTES });
}

/** So many journals of which words are odd: none makes us read, keep or try more than the text has room for. @throws AssertionError */
export function fuzzJournals(rounds: number, seed: number): void {
  let state = seed >>> 0;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const honest = honestJournal();
  for (let round = 0; round < rounds; round++) {
    const memory = new FakeMemory(honest);
    for (let n = random(6); n > 0; n--) {
      const at = random(4) === 0 ? random(AGENT.size / 8) * 8 : AT - SHARED + random(honest.length / 8) * 8;
      const value = random(3) === 0 ? BigInt(random(2 ** 31)) : ODD[random(ODD.length)];
      memory.view.setBigUint64(at, value, true);
    }
    const since = performance.now();
    readAgentPage(memory, SHARED);
    const journal = read(memory);
    const what = `seed ${seed}, round ${round}`;
    assert.ok(performance.now() - since < READ_MS, what);
    assert.ok(memory.asked < 64 << 20, `${what}: ${memory.asked} bytes`);
    if (journal === undefined) continue;
    const { addresses, originals } = journal.sites;
    assert.ok(addresses.length <= TEXT_BYTES / 5 && originals.length === addresses.length * 5, what);
    assert.ok(
      addresses.every((address, i) => i === 0 || address >= addresses[i - 1] + 5),
      what,
    );
    assert.ok(
      [...journal.ranges].every(({ address, length }) => length > 0 && address + length <= 2 ** 47),
      what,
    );
    assert.ok(journal.texts.length <= addresses.length, what);
  }
}
