import type { Violation } from '../model/index.js';
import { StoreBufferFull } from '../model/index.js';
import { IntList } from './int-list.js';
import { StateStore } from './state-store.js';
import { META_ACTION, META_COST, META_CPU, META_VIOLATION, Transitions } from './transitions.js';

/** States between two looks at the clock and the memory. */
const REPORT_INTERVAL = 1 << 15;
const BYTES_PER_WORD = 4;
const NO_PARENT = -1;

export interface Limits {
  /** Bytes that the search may hold before it gives up with `unknown`. */
  readonly bytes: number;
  readonly onProgress?: (progress: Progress) => void;
}

export interface Progress {
  readonly states: number;
  readonly depth: number;
  readonly frontier: number;
}

/** The last step of a run that breaks the protocol: from state `state`, by `cpu`. */
export interface Breaking {
  readonly state: number;
  readonly cpu: number;
  readonly action: number;
  readonly violation: Violation;
}

export interface SearchResult {
  readonly ended: 'complete' | 'violation' | 'stuck' | 'unknown';
  readonly transitions: number;
  /** Steps of the longest shortest run, or of the violating run; steps of cost 0 are not counted. */
  readonly depth: number;
  readonly breaking?: Breaking;
  /** The state in which somebody waits for ever, nothing else being left to happen. */
  readonly stuck?: number;
  /** Why the search gave up. */
  readonly reason?: string;
}

/**
 * Breadth-first search of all that can happen, level by level, so that the first violation found is one of the
 * shortest. Steps of cost 0 stay on their level.
 */
export class Search {
  readonly store: StateStore;
  readonly parents = new IntList(NO_PARENT);
  readonly #levelOf: IntList | undefined;

  constructor(
    readonly transitions: Transitions,
    readonly symmetry: boolean,
    /** True if no step costs 0: then a state's level is settled when it is first reached. */
    readonly unitCost: boolean,
  ) {
    this.store = new StateStore(transitions.width);
    this.#levelOf = unitCost ? undefined : new IntList();
  }

  run(limits: Limits): SearchResult {
    const { transitions, store, parents, symmetry, unitCost } = this;
    const levelOf = this.#levelOf;
    const { out, pitch, width } = transitions;
    const start = transitions.initial();
    const state = start.words;
    if (symmetry) transitions.sort(state);
    let made = 0;
    let depth = 0;
    if (start.violation !== undefined)
      return {
        ended: 'violation',
        transitions: 0,
        depth,
        breaking: { state: NO_PARENT, cpu: 0, action: NO_PARENT, violation: start.violation },
      };
    store.insert(state, 0);
    parents.push(NO_PARENT);
    levelOf?.push(0);
    let level = new IntList();
    let nextLevel = new IntList();
    level.push(0);
    let breaking: (Breaking & { readonly depth: number }) | undefined;
    let untilReport = REPORT_INTERVAL;
    try {
      while (level.length > 0) {
        for (let at = 0; at < level.length; at++) {
          const number = level.items[at];
          if (levelOf !== undefined) {
            // Reached again on an earlier level, or expanded already (then it bears the mark of it).
            if (levelOf.items[number] !== depth) continue;
            levelOf.items[number] = -1 - depth;
          }
          store.read(number, state);
          const produced = transitions.expand(state, symmetry);
          made += produced;
          if (produced === 0 && !transitions.isQuiet(state))
            return { ended: 'stuck', transitions: made, depth, stuck: number };
          for (let s = 0, offset = 0; s < produced; s++, offset += pitch) {
            const violation = out[offset + width + META_VIOLATION];
            const cost = out[offset + width + META_COST];
            if (violation >= 0) {
              const found = depth + cost;
              if (breaking === undefined || found < breaking.depth)
                breaking = {
                  state: number,
                  cpu: out[offset + width + META_CPU],
                  action: out[offset + width + META_ACTION],
                  violation: transitions.violations[violation],
                  depth: found,
                };
              // On this level nothing shorter is left, unless by steps that cost nothing.
              if (unitCost || cost === 0)
                return { ended: 'violation', transitions: made, depth: breaking.depth, breaking };
              continue;
            }
            const inserted = store.insert(out, offset);
            if (inserted >= 0) {
              parents.push(number);
              levelOf?.push(depth + cost);
              (cost === 0 ? level : nextLevel).push(inserted);
            } else if (levelOf !== undefined) {
              const known = -1 - inserted;
              if (levelOf.items[known] > depth + cost) {
                levelOf.items[known] = depth + cost;
                parents.items[known] = number;
                (cost === 0 ? level : nextLevel).push(known);
              }
            }
          }
          if (--untilReport === 0) {
            untilReport = REPORT_INTERVAL;
            limits.onProgress?.({
              states: store.count,
              depth,
              frontier: level.length - at + nextLevel.length,
            });
            const bytes = store.bytes + (parents.items.length + level.items.length) * BYTES_PER_WORD;
            if (bytes > limits.bytes)
              return {
                ended: 'unknown',
                transitions: made,
                depth,
                reason: `more than ${Math.round(limits.bytes / 2 ** 20)} MiB of states`,
              };
          }
        }
        if (breaking !== undefined)
          return { ended: 'violation', transitions: made, depth: breaking.depth, breaking };
        [level, nextLevel] = [nextLevel, level];
        nextLevel.length = 0;
        if (level.length > 0) depth++;
      }
    } catch (error) {
      if (error instanceof StoreBufferFull)
        return { ended: 'unknown', transitions: made, depth, reason: error.message };
      throw error;
    }
    return { ended: 'complete', transitions: made, depth };
  }

  /** The numbers of the states on the way from the first to state `number`. */
  path(number: number): number[] {
    const path: number[] = [];
    for (let at = number; at !== NO_PARENT; at = this.parents.items[at]) path.push(at);
    return path.reverse();
  }
}
