// Ways to change code that threads may be executing at that moment. Each makes a set of changes and says which it left alone; none
// leaves a site half changed, whoever looks at it and whatever ends in between.
import type { Agent } from '../agent/index.js';
import { MREMAP, SYS, faultPoint, readMaps } from '../linux/index.js';
import type { TargetMemory } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import type { PreparedChanges, SiteChanges } from './patch.js';
import type { TextRun, TextRuns } from './text-runs.js';

/**
 * - `held`: all threads are held and moved out of the sites, and the bytes are written. For every site
 * - `page-flip`: a changed copy of the pages takes the place of the pages, in one system call of the agent's thread. No thread is held,
 *   nothing traps, no signal is sent, and whoever shares the memory sees it: threads with all signals masked, vfork children. For sites
 *   that are one instruction, as a thread may be anywhere
 * - `rendezvous`: from inside only. All threads stand in a signal handler of ours and are moved out of the sites, and the bytes are
 *   written by the protocol, with which other signal handlers help. For every site
 */
export type WayName = 'held' | 'page-flip' | 'rendezvous';

/** What a way did not change. */
export interface LeftAlone {
  /** Indices of sites where other bytes than the expected ones stood. */
  readonly foreign: ReadonlySet<number>;
  /** Indices of sites that this way could not change now; they are as they were. */
  readonly failed: ReadonlySet<number>;
  /** Indices of sites that a signal handler kept from being changed; they are as they were. */
  readonly busy: ReadonlySet<number>;
}

/** One way, ready to be used. */
export interface Way {
  readonly name: WayName;
  /** @throws CannotError MEMORY; some changes may have been made then */
  apply(changes: SiteChanges): LeftAlone;
}

const NONE: ReadonlySet<number> = new Set();

/** Writes the bytes of sites. All threads are held, or stand in a rendezvous, outside of the sites. */
export class HeldWay implements Way {
  readonly name: WayName;
  /** What was computed before threads were held. */
  readonly #prepared: PreparedChanges;

  constructor(name: 'held' | 'rendezvous', prepared: PreparedChanges) {
    this.name = name;
    this.#prepared = prepared;
  }

  apply(changes: SiteChanges): LeftAlone {
    const prepared = this.#prepared.others(changes);
    try {
      return { foreign: prepared.apply(), failed: NONE, busy: prepared.left };
    } catch (error) {
      this.#prepared.others(changes.reversed()).apply();
      throw error;
    }
  }
}

const MREMAP_ONTO = MREMAP.mayMove | MREMAP.fixed;
const MREMAP_COPY_ONTO = MREMAP_ONTO | MREMAP.dontUnmap;

/** A run of text with a place for its copy. */
interface Copy {
  readonly run: TextRun;
  readonly at: number;
}

/** Read-copy-update of text pages, done by the agent's thread. */
export class PageFlip implements Way {
  readonly name = 'page-flip';
  readonly #pid: number;
  readonly #agent: Agent;
  readonly #memory: TargetMemory;
  readonly #runs: TextRuns;

  /** `runs` are those that the agent's thread can turn back: the way back is there before the way forth is gone. */
  constructor(pid: number, agent: Agent, memory: TargetMemory, runs: TextRuns) {
    this.#pid = pid;
    this.#agent = agent;
    this.#memory = memory;
    this.#runs = runs;
  }

  /** The runs with the indices of the changes in them; the changes that are in none come last, without a run. */
  static #sort(
    runs: TextRuns,
    { addresses }: SiteChanges,
  ): { readonly sorted: ReadonlyMap<TextRun, number[]>; readonly others: number[] } {
    const sorted = new Map<TextRun, number[]>();
    const others: number[] = [];
    let next = 0;
    addresses.forEach((address, i) => {
      while (next < runs.length && runs[next].start + runs[next].length <= address) next++;
      const run = runs.at(next);
      if (run === undefined || address < run.start || address + SITE_LENGTH > run.start + run.length) {
        others.push(i);
      } else {
        const inRun = sorted.get(run);
        if (inRun === undefined) sorted.set(run, [i]);
        else inRun.push(i);
      }
    });
    return { sorted, others };
  }

  /** Indices of the changes that lie on pages which can be flipped. */
  reaches(changes: SiteChanges): ReadonlySet<number> {
    const { others } = PageFlip.#sort(this.#runs, changes);
    const all = new Set(changes.addresses.keys());
    for (const i of others) all.delete(i);
    return all;
  }

  apply(changes: SiteChanges): LeftAlone {
    const { sorted, others } = PageFlip.#sort(this.#runs, changes);
    const foreign = new Set<number>();
    const failed = new Set(others);
    const fail = (run: TextRun): void => {
      for (const i of sorted.get(run) ?? []) failed.add(i);
    };
    const runs = [...sorted.keys()];
    const copies = this.#copy(runs);
    for (const run of runs) if (!copies.some((copy) => copy.run === run)) fail(run);
    const ready = copies.filter((copy) => {
      const indices = sorted.get(copy.run) ?? [];
      if (this.#change(copy, changes, indices, foreign)) return true;
      fail(copy.run);
      return false;
    });
    // From here on the place is not ours to free as a whole: where a copy moves away, the program may map something.
    this.#agent.forgetReserved();
    const results = this.#move(ready);
    const unused = copies.filter((copy) => !ready.includes(copy));
    // What was copied away and is other than it was is moved back; a page of the file that is as it was need not be.
    const back = this.#move(unused.filter(({ run, at }) => !this.#equals(at, run.pristine)));
    const movedBack = new Set([...back].filter(([, result]) => result >= 0).map(([copy]) => copy));
    for (const copy of copies) {
      if ((results.get(copy) ?? -1) >= 0 || movedBack.has(copy)) continue;
      if (ready.includes(copy)) fail(copy.run);
      this.#agent.thread?.call(SYS.munmap, copy.at, copy.run.length);
    }
    return { foreign, failed, busy: NONE };
  }

  /**
   * Copies runs of text, as mappings of the same file, into a place reserved for them. The pages themselves go there; where they were
   * the kernel puts the file's again, which they are.
   */
  #copy(runs: readonly TextRun[]): Copy[] {
    const { thread } = this.#agent;
    const total = runs.reduce((sum, { length }) => sum + length, 0);
    if (thread === undefined || total === 0) return [];
    const place = this.#agent.reserve(total);
    if (place === undefined) return [];
    let at = place;
    const all = runs.map((run) => {
      const copy = { run, at };
      at += run.length;
      return copy;
    });
    faultPoint();
    const results = thread.calls(
      all.map(({ run, at }) => [SYS.mremap, run.start, run.length, run.length, MREMAP_COPY_ONTO, at]),
    );
    const copies = all.filter((_, i) => results[i] >= 0);
    if (copies.length < all.length) this.#giveBack(all.filter((_, i) => results[i] < 0));
    return copies;
  }

  /** Frees places that got no copy, where they are still ours: a move that fails may have made room already. */
  #giveBack(places: readonly Copy[]): void {
    const maps = readMaps(this.#pid) ?? [];
    for (const { run, at } of places) {
      const mapping = maps.find(({ start, end }) => start <= at && at + run.length <= end);
      if (mapping?.path === '' && mapping.permissions === '---p')
        this.#agent.thread?.call(SYS.munmap, at, run.length);
    }
  }

  /** Makes changes in a copy. False: the pages were not what they should be, or could not be written. */
  #change(
    { run, at }: Copy,
    changes: SiteChanges,
    indices: readonly number[],
    foreign: Set<number>,
  ): boolean {
    if (!this.#equals(at, run.pristine)) return false;
    const bytes = run.pristine.slice();
    for (const i of indices) {
      const offset = changes.addresses[i] - run.start;
      const from = i * SITE_LENGTH;
      const isExpected = changes.expected
        .subarray(from, from + SITE_LENGTH)
        .every((byte, k) => byte === run.pristine[offset + k]);
      if (isExpected) bytes.set(changes.wanted.subarray(from, from + SITE_LENGTH), offset);
      else foreign.add(i);
    }
    this.#memory.write(at, bytes);
    return true;
  }

  #equals(at: number, bytes: Uint8Array): boolean {
    return Buffer.compare(this.#memory.readSome(at, bytes.length), bytes) === 0;
  }

  /** Moves copies onto their text. Returns what the kernel said of each. */
  #move(copies: readonly Copy[]): ReadonlyMap<Copy, number> {
    const { thread } = this.#agent;
    if (thread === undefined || copies.length === 0) return new Map();
    faultPoint();
    const results = thread.calls(
      copies.map(({ run, at }) => [SYS.mremap, at, run.length, run.length, MREMAP_ONTO, run.start]),
    );
    return new Map(copies.map((copy, i) => [copy, results[i]]));
  }
}
