// Functions of a session, switched on and off while it runs.
import { matchesFunction, type Pattern } from '../symbols/index.js';
import type { PatchedTarget } from './patched-target.js';
import { concernsModule, parsePatterns } from './selection.js';
import type { PlannedSite } from './site-plan.js';

export class Switches {
  readonly #target: PatchedTarget;
  /** Indices of sites that can be switched: of entries that were changed. */
  readonly #indices: readonly number[];
  readonly #off = new Set<number>();
  /** Functions switched so far. */
  count = 0;
  /** How long the last switch took. */
  lastUs = 0;

  constructor(target: PatchedTarget) {
    this.#target = target;
    const refused = new Set(target.refused.map((r) => r.function));
    this.#indices = [...target.sites.keys()].filter(
      (i) => target.sites[i].isEntry && !refused.has(target.sites[i].owner.function),
    );
  }

  /** Functions that are off. */
  get off(): number {
    return this.#off.size;
  }

  /** Returns how many functions match. @throws UsageError */
  switch(texts: readonly string[], on: boolean): number {
    const patterns = parsePatterns(texts);
    const matching = this.#indices.filter((i) => matches(patterns, this.#target.sites[i]));
    const changing = matching.filter((i) => this.#off.has(i) === on);
    const since = performance.now();
    this.#target.switch(changing, on);
    this.lastUs = (performance.now() - since) * 1000;
    for (const i of changing) {
      if (on) this.#off.delete(i);
      else this.#off.add(i);
    }
    this.count += changing.length;
    return matching.length;
  }
}

function matches(patterns: readonly Pattern[], { owner: { function: f, module } }: PlannedSite): boolean {
  // A pattern without a module means whatever the session traces.
  return patterns.some(
    (pattern) => (!pattern.namesModule || concernsModule(pattern, module)) && matchesFunction(pattern, f),
  );
}
