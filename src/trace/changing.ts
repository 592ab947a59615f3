// The changes of a session, once it is known which site is to be changed in which way.
import type { Agent } from '../agent/index.js';
import type { Registers } from '../linux/index.js';
import { SYSCALL_LENGTH, makesCallAgain, type Standstill } from '../target/index.js';
import type { PatchRequest } from './patch-target.js';
import { PatchedTarget } from './patched-target.js';
import type { PreparedChanges, SiteChanges, WriteWhole } from './patch.js';
import { fromInside, fromOutside } from './reach.js';
import type { PlannedSite, SessionRefusalReason } from './site-plan.js';
import type { TextRuns } from './text-runs.js';
import { HeldWay, PageFlip, type Way, type WayName } from './ways.js';

/** All that is computed and emitted while no thread is held. */
export interface Ready {
  readonly agent: Agent;
  readonly sites: readonly PlannedSite[];
  readonly interior: Interior;
  /** For each site, in their order. */
  readonly changes: SiteChanges;
  /** What is changed one after the other. */
  readonly parts: readonly Part[];
  readonly text: TextRuns;
  readonly writeWhole: WriteWhole | undefined;
}

/** Sites that are changed together. */
interface Part {
  readonly indices: ReadonlySet<number>;
  readonly prepared: PreparedChanges;
}

/** How each site is to be changed, by index; those that are in neither are refused, as the way that is wished for cannot change them. */
export interface Choice {
  readonly flipped: ReadonlySet<number>;
  readonly held: ReadonlySet<number>;
}

/** Makes the changes of a choice, one way after the other. */
export class Changing {
  readonly #request: PatchRequest;
  readonly #ready: Ready;
  readonly #choice: Choice;
  readonly #refused = new Map<number, SessionRefusalReason>();
  readonly #ways: Partial<Record<WayName, number>> = {};
  #hasBegun = false;
  #isComplete = true;

  constructor(request: PatchRequest, ready: Ready, choice: Choice) {
    this.#request = request;
    this.#ready = ready;
    this.#choice = choice;
    ready.sites.forEach((_, i) => {
      if (!choice.flipped.has(i) && !choice.held.has(i)) this.#refused.set(i, 'needs-hold');
    });
  }

  /** Number of sites that have been changed. */
  get made(): number {
    return Object.values(this.#ways).reduce((sum, made) => sum + made, 0);
  }

  /** At least one function, and not hooks alone, is traced. */
  get hasFunction(): boolean {
    return this.#ready.sites.some(({ kind }, i) => kind !== 'hook' && !this.#refused.has(i));
  }

  /** From here on changed sites record. */
  enable(): this {
    this.#request.onEnable();
    this.#ready.agent.enable(true);
    return this;
  }

  /** Sites may be changed: threads may be in our code from now on. */
  get hasBegun(): boolean {
    return this.#hasBegun;
  }

  flip(): this {
    if (this.#choice.flipped.size === 0) return this;
    const { pid, memory } = this.#request;
    const { agent, text } = this.#ready;
    this.#apply(new PageFlip(pid, agent, memory, text), this.#choice.flipped);
    return this;
  }

  /** All threads are held, and none is within a site but those that are `impossible`. */
  write(impossible: ReadonlySet<PlannedSite>): this {
    const { sites, parts } = this.#ready;
    const { held } = this.#choice;
    const isWanted = (i: number): boolean => held.has(i) && !impossible.has(sites[i]);
    if (impossible.size > 0) {
      for (const i of held) if (!isWanted(i)) this.#refused.set(i, 'thread-inside');
    }
    const isComplete = impossible.size === 0 && held.size === sites.length;
    const name = this.#request.inside === undefined ? 'held' : 'rendezvous';
    let isGivenUp = false;
    for (const { indices, prepared } of parts) {
      const some = isComplete ? indices : new Set([...indices].filter(isWanted));
      if (isGivenUp) {
        for (const i of some) this.#refused.set(i, 'handler-busy');
        continue;
      }
      const others = new Set<number>();
      if (some.size < indices.size) {
        let inPart = 0;
        for (const i of indices) {
          if (!some.has(i)) others.add(inPart);
          inPart++;
        }
      }
      const rest = prepared.without(others);
      this.#apply(new HeldWay(name, rest), some, rest.changes);
      isGivenUp = [...this.#refused.keys()].some((i) => some.has(i) && sites[i].kind === 'hook');
    }
    return this;
  }

  /** Undefined: a way could not make some changes that another can; nothing is wrong with those that it made. */
  finish(lanes: ReadonlyMap<number, number>): PatchedTarget | undefined {
    const { agent, sites, changes, text, writeWhole } = this.#ready;
    if (!this.#isComplete && this.#request.way === undefined) return undefined;
    const functions = [...this.#refused].filter(
      ([i, why]) => why !== 'handler-busy' || sites[i].kind !== 'hook',
    );
    const refused = functions.map(([i, reason]) => ({
      function: sites[i].function,
      module: sites[i].module,
      reason,
    }));
    const made = changes.without(new Set(this.#refused.keys()));
    const patched = { sites, agent, lanes, refused, ways: this.#ways, changes: made, text, writeWhole };
    const { pid, memory, times, inside } = this.#request;
    const reach = inside === undefined ? fromOutside(pid, memory) : fromInside(inside.process);
    return new PatchedTarget(pid, memory, times, reach, patched);
  }

  /** `changes` are those of these indices, where they are at hand. */
  #apply(way: Way, indices: ReadonlySet<number>, changes = this.#ready.changes.only(indices)): void {
    if (indices.size === 0) return;
    this.#hasBegun = true;
    const { foreign, failed, busy } = way.apply(changes);
    const numbered = foreign.size + failed.size + busy.size === 0 ? [] : [...indices].sort((a, b) => a - b);
    for (const i of foreign) this.#refused.set(numbered[i], 'changed');
    for (const i of failed) this.#refused.set(numbered[i], 'needs-hold');
    for (const i of busy) this.#refused.set(numbered[i], 'handler-busy');
    if (failed.size > 0) this.#isComplete = false;
    const made = indices.size - foreign.size - failed.size - busy.size;
    this.#ways[way.name] = (this.#ways[way.name] ?? 0) + made;
  }
}

/** Finds sites by addresses. */
export class Interior {
  /** `sites` ascend by address. */
  constructor(private readonly sites: readonly PlannedSite[]) {}

  /** The site within whose displaced instructions an address lies, their first byte excepted: from there all is well. */
  siteAround(address: number): PlannedSite | undefined {
    const index = this.#firstFrom(address);
    if (index === 0) return undefined;
    const site = this.sites[index - 1];
    return address < site.address + site.displacedLength ? site : undefined;
  }

  /** The site within which a thread with these registers waits in a system call: it goes on with that instruction, or behind it. */
  siteOfCall(registers: Registers): PlannedSite | undefined {
    if (!makesCallAgain(registers)) return undefined;
    const rip = Number(registers.get('rip'));
    return this.siteAround(rip - Number(SYSCALL_LENGTH)) ?? this.siteAround(rip);
  }

  #firstFrom(address: number): number {
    let low = 0;
    let high = this.sites.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.sites[middle].address < address) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/**
 * Moves threads that stand still within sites to the copies of the instructions there. Returns the sites that cannot be changed: a thread
 * is in them that cannot be moved, or a handler will return into them (`savedInstructionPointers` of all those threads).
 */
export function leaveSites(
  hold: Standstill,
  interior: Interior,
  savedInstructionPointers: readonly number[],
): Set<PlannedSite> {
  const impossible = new Set<PlannedSite>();
  for (const thread of hold.threads) {
    const rip = Number(thread.registers.get('rip'));
    const site = interior.siteAround(rip);
    const waitsIn = interior.siteOfCall(thread.registers);
    if (waitsIn !== undefined) {
      impossible.add(waitsIn);
    } else if (site !== undefined) {
      const moved = site.movedTo(rip);
      if (moved === undefined) {
        impossible.add(site);
      } else {
        thread.registers.set('rip', moved);
        hold.writeRegisters(thread);
      }
    }
  }
  for (const rip of savedInstructionPointers) {
    const inside = interior.siteAround(rip);
    if (inside !== undefined) impossible.add(inside);
  }
  return impossible;
}
