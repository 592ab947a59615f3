import type { Machine, Program, Scenario, Violation } from '../model/index.js';
import { compile } from '../model/index.js';
import type { Protocol } from '../protocol/index.js';
import { findLasso } from './liveness.js';
import { Search } from './search.js';
import type { Limits, SearchResult } from './search.js';
import type { Trace } from './trace.js';
import { retrace } from './trace.js';
import { Transitions } from './transitions.js';

/**
 * `safe`: no violation in the whole state space within the bounds. `unsafe`: a shortest counterexample is there.
 * `livelock`: a run in which somebody waits for ever. `unknown`: the search gave up, for the reason given.
 */
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
  /** Distinct states that the search reached, under its reductions. */
  readonly states: number;
  readonly transitions: number;
  /** Steps of the counterexample; of the longest shortest run if there is none. */
  readonly depth: number;
  readonly ms: number;
  readonly reason?: string;
  readonly violation?: Violation;
  readonly trace?: Trace;
  /** What the trace's numbers mean. */
  readonly program: Program;
}

const DEFAULT_BYTES = 1.5 * 2 ** 30;

/**
 * Searches every interleaving of a protocol on the model machine. Deterministic: the same arguments, the same result,
 * but for `ms`.
 */
export function check(
  protocol: Protocol,
  machine: Machine,
  scenario: Scenario,
  options: CheckOptions = {},
): CheckResult {
  const began = performance.now();
  const program = compile(protocol, machine, scenario);
  const fuse = options.partialOrder ?? true;
  // A synchronisation and a fair cycle know the CPUs by number.
  const symmetry = (options.symmetry ?? true) && !program.live && !scenario.storm;
  const search = new Search(new Transitions(program, fuse), symmetry, fuse);
  const result = search.run({ bytes: DEFAULT_BYTES, ...options.limits });
  const found = conclude(search, result, scenario);
  return {
    protocol: protocol.name,
    without: protocol.without ?? [],
    memory: machine.memory,
    scenario: scenario.name,
    overlap: machine.overlap,
    cpus: machine.cpus,
    nmis: machine.nmis,
    states: search.store.count,
    transitions: result.transitions,
    depth: result.depth,
    ...found,
    ms: performance.now() - began,
    program,
    ...(result.reason === undefined ? {} : { reason: result.reason }),
  };
}

function conclude(
  search: Search,
  result: SearchResult,
  scenario: Scenario,
): Pick<CheckResult, 'verdict' | 'violation' | 'trace'> & { depth?: number } {
  switch (result.ended) {
    case 'violation': {
      const { breaking } = result;
      const trace = retrace(search, breaking === undefined ? [] : search.path(breaking.state), breaking);
      const violation = trace.violation ?? breaking?.violation;
      return { verdict: 'unsafe', trace, ...(violation === undefined ? {} : { violation }) };
    }
    case 'stuck': {
      const path = search.path(result.stuck ?? 0);
      const { transitions } = search;
      const state = new Int32Array(transitions.width);
      search.store.read(path[path.length - 1], state);
      const waiting = [...Array(transitions.program.machine.cpus).keys()].filter((c) =>
        transitions.isBusy(state, c),
      );
      return { verdict: 'livelock', trace: { ...retrace(search, path), waiting } };
    }
    case 'unknown':
      return { verdict: 'unknown' };
    case 'complete': {
      const lasso = scenario.storm ? findLasso(search) : undefined;
      if (lasso === undefined) return { verdict: 'safe' };
      const trace = retrace(search, [...lasso.prefix, ...lasso.cycle]);
      return {
        verdict: 'livelock',
        depth: trace.steps.length,
        trace: { ...trace, lasso: lasso.prefix.length - 1, waiting: [lasso.cpu] },
      };
    }
  }
}
