import type { Machine, Scenario, Violation } from '../model/index.js';
import { compile } from '../model/index.js';
import type { Protocol } from '../protocol/index.js';
import { Search } from './search.js';
import type { Limits, SearchResult } from './search.js';
import { Transitions } from './transitions.js';

export type Verdict = 'safe' | 'unsafe' | 'livelock' | 'unknown';

/** How the search goes about it. Verdicts and lengths of shortest violations do not depend on it: a test says so. */
export interface CheckOptions {
  /** Make steps that nobody else can tell the time of together with the step before (default true). */
  readonly partialOrder?: boolean;
  /** Take CPUs that do the same for interchangeable (default true). */
  readonly symmetry?: boolean;
  readonly limits?: Partial<Limits>;
}

export interface CheckResult {
  readonly protocol: string;
  readonly without: readonly string[];
  readonly memory: Machine['memory'];
  readonly scenario: string;
  readonly overlap: Machine['overlap'];
  readonly cpus: number;
  readonly nmis: Machine['nmis'];
  readonly verdict: Verdict;
  readonly states: number;
  readonly transitions: number;
  readonly depth: number;
  readonly ms: number;
  readonly violation?: Violation;
  readonly search: SearchResult;
}

const DEFAULT_BYTES = 1.5 * 2 ** 30;

export function check(
  protocol: Protocol,
  machine: Machine,
  scenario: Scenario,
  options: CheckOptions = {},
): CheckResult {
  const began = performance.now();
  const program = compile(protocol, machine, scenario);
  const fuse = options.partialOrder ?? true;
  const symmetry = (options.symmetry ?? true) && !program.live && !scenario.storm;
  const transitions = new Transitions(program, fuse);
  const search = new Search(transitions, symmetry, fuse);
  const result = search.run({ bytes: DEFAULT_BYTES, ...options.limits });
  const verdicts = { complete: 'safe', violation: 'unsafe', stuck: 'livelock', unknown: 'unknown' } as const;
  return {
    protocol: protocol.name,
    without: protocol.without ?? [],
    memory: machine.memory,
    scenario: scenario.name,
    overlap: machine.overlap,
    cpus: machine.cpus,
    nmis: machine.nmis,
    verdict: verdicts[result.ended],
    states: search.store.count,
    transitions: result.transitions,
    depth: result.depth,
    ms: performance.now() - began,
    search: result,
    ...(result.breaking === undefined ? {} : { violation: result.breaking.violation }),
  };
}
