// The changes of a session, once it is known which site is to be changed in which way.
import type { Agent } from '../agent/index.js';
import type { Registers } from '../linux/index.js';
import { SYSCALL_LENGTH, makesCallAgain, type Standstill } from '../target/index.js';
import type { PatchRequest } from './patch-target.js';
import { PatchedTarget } from './patched-target.js';
import type { PreparedChanges, SiteChanges, WriteWhole } from './patch.js';
import { fromInside, fromOutside } from './reach.js';
import type { PlannedFunction, PlannedSite, RefusedFunction, SessionRefusalReason } from './site-plan.js';
import type { TextRuns } from './text-runs.js';
import { HeldWay, PageFlip, type Way, type WayName } from './ways.js';

/** All that is computed and emitted while no thread is held. */
export interface Ready {
  readonly agent: Agent;
  readonly functions: readonly PlannedFunction[];
  readonly sites: readonly PlannedSite[];
  readonly interior: Interior;
  /** For each site, in their order. */
  readonly changes: SiteChanges;
  readonly prepared: PreparedChanges;
  readonly text: TextRuns;
  readonly writeWhole: WriteWhole | undefined;
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

  /** At least one function is traced. */
  get hasFunction(): boolean {
    return this.#ready.sites.some(({ isEntry }, i) => isEntry && !this.#refused.has(i));
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
    const { sites, prepared } = this.#ready;
    const { held } = this.#choice;
    // Of a function whose entry stays as it is no end is recorded either.
    const unwanted = new Set([...impossible].filter((site) => site.isEntry).map(({ owner }) => owner));
    const isWanted = (i: number): boolean =>
      held.has(i) && !impossible.has(sites[i]) && !unwanted.has(sites[i].owner);
    const isComplete = impossible.size === 0 && held.size === sites.length;
    const some = isComplete ? held : new Set([...held].filter(isWanted));
    if (impossible.size > 0) for (const i of held) if (!some.has(i)) this.#refused.set(i, 'thread-inside');
    const others = isComplete ? new Set<number>() : new Set([...sites.keys()].filter((i) => !some.has(i)));
    const rest = prepared.without(others);
    const name = this.#request.inside === undefined ? 'held' : 'rendezvous';
    this.#apply(new HeldWay(name, rest), some, rest.changes);
    return this;
  }

  /** Undefined: a way could not make some changes that another can; nothing is wrong with those that it made. */
  finish(lanes: ReadonlyMap<number, number>): PatchedTarget | undefined {
    const { agent, functions, sites, changes, text, writeWhole } = this.#ready;
    if (!this.#isComplete && this.#request.way === undefined) return undefined;
    const refused: RefusedFunction[] = [];
    // A function is traced by its entry only if one of the places where it is left is not a site.
    const withoutExits = new Set(functions.filter(({ hasExits }) => !hasExits));
    for (const [i, reason] of this.#refused) {
      const { owner, isEntry } = sites[i];
      if (isEntry) refused.push({ function: owner.function, module: owner.module, reason });
      else withoutExits.add(owner);
    }
    const made = changes.without(new Set(this.#refused.keys()));
    const patched = {
      functions,
      sites,
      agent,
      lanes,
      refused,
      withoutExits,
      ways: this.#ways,
      changes: made,
      text,
      writeWhole,
    };
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
