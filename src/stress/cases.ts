import { check } from '../check/index.js';
import type { Verdict } from '../check/index.js';
import { callAndBack, scenarioNamed, twoSites } from '../model/index.js';
import type { Machine } from '../model/index.js';
import {
  int3,
  int3Help,
  int3HelpLate,
  int3Skip,
  nmi2008,
  nmiGated,
  nmiNoStorm,
  nmiNoStormNaive,
  nmiOneWord,
  nmiSpan,
  protocols,
  unprotected,
  withoutSteps,
} from '../protocol/index.js';
import type { Protocol } from '../protocol/index.js';
import type { Patching, TextWriting } from './listing.js';

/** A way to change code that is put under stress. */
export interface StressCase {
  readonly name: string;
  /** Steps that are left out. */
  readonly without: readonly string[];
  readonly protocol: Protocol;
  readonly writing: TextWriting;
  readonly patching: Patching;
  /** `protocol`: the definition's own writes; `held`: safepoke holds all threads by ptrace; `nobody`: nothing is changed. */
  readonly changedBy: 'protocol' | 'held' | 'nobody';
}

/** The patcher stops the other threads if the definition says nothing of what they do meanwhile. */
function patchingOf(protocol: Protocol): Patching {
  return protocol.thread === undefined ? 'stopped' : 'running';
}

/** A protocol, as written or with steps left out. Throws `UnknownStep`. */
export function protocolCase(protocol: Protocol, without: readonly string[] = []): StressCase {
  return {
    name: protocol.name,
    without,
    protocol: withoutSteps(protocol, without),
    writing: 'memory-file',
    patching: patchingOf(protocol),
    changedBy: 'protocol',
  };
}

/** Nothing changes: what a pass takes on this machine anyway. */
const noChanges: StressCase = {
  ...protocolCase(unprotected),
  name: 'no-changes',
  patching: 'outside',
  changedBy: 'nobody',
};
/** A changed copy of the pages takes their place, under running threads. */
const pageFlip: StressCase = {
  ...protocolCase(unprotected),
  name: 'page-flip',
  patching: 'running',
  writing: 'page-flip',
};
const held: StressCase = {
  ...protocolCase(unprotected),
  name: 'held',
  patching: 'outside',
  changedBy: 'held',
};

const SPAN_BY_MPROTECT = 'nmi-span-mprotect';

/** `nmi-span` where text must be made writable before it is written: a plain store to text that is not ends the process. */
function spanByMprotect(without: readonly string[] = []): StressCase {
  return { ...protocolCase(nmiSpan, without), name: SPAN_BY_MPROTECT, writing: 'mprotect' };
}

/** Ways to change code that are no protocols of src/protocol, or protocols in other surroundings. */
const otherWays: readonly StressCase[] = [noChanges, spanByMprotect(), pageFlip, held];

/** Every name that `stressCases` takes. */
export function caseNames(): readonly string[] {
  return [...protocols.map((p) => p.name), ...otherWays.map((w) => w.name)];
}

/** The case of that name, or undefined. Throws `UnknownStep` for steps that it does not have. */
export function caseNamed(name: string, without: readonly string[]): StressCase | undefined {
  const protocol = protocols.find((p) => p.name === name);
  if (protocol !== undefined) return protocolCase(protocol, without);
  const way = otherWays.find((w) => w.name === name);
  if (way === undefined || without.length === 0) return way;
  if (name === SPAN_BY_MPROTECT) return spanByMprotect(without);
  withoutSteps({ ...way.protocol, name, steps: [] }, without);
  return way;
}

function withEachStepLeftOut(protocol: Protocol): readonly StressCase[] {
  return [protocolCase(protocol), ...protocol.steps.map((s) => protocolCase(protocol, [s.name]))];
}

/** Everything, in the order of its history. */
export const allCases: readonly StressCase[] = [
  noChanges,
  protocolCase(unprotected),
  ...withEachStepLeftOut(nmi2008),
  ...withEachStepLeftOut(nmiOneWord),
  protocolCase(nmiSpan),
  spanByMprotect(),
  spanByMprotect(['shared-unlock']),
  protocolCase(nmiGated),
  ...withEachStepLeftOut(nmiNoStorm),
  protocolCase(nmiNoStormNaive),
  ...withEachStepLeftOut(int3),
  protocolCase(int3Skip),
  ...withEachStepLeftOut(int3Help),
  protocolCase(int3HelpLate),
  pageFlip,
  held,
];

/**
 * What the checker says of a case on a machine like this one: total store order, NMIs that overlap, one on each CPU. Undefined for
 * what is not checked there.
 */
export function verdictOf({ protocol, changedBy, writing }: StressCase): Verdict | undefined {
  if (changedBy !== 'protocol' || writing === 'page-flip') return undefined;
  const live = protocol.thread !== undefined;
  const machines: readonly Machine[] = live
    ? [
        { cpus: 3, nmis: 0, memory: 'tso', overlap: 'any' },
        { cpus: 2, nmis: 1, memory: 'tso', overlap: 'any' },
      ]
    : [{ cpus: 3, nmis: 1, memory: 'tso', overlap: 'any' }];
  const scenarios =
    writing === 'mprotect'
      ? [scenarioNamed('locked-spans'), scenarioNamed('locked-and-back')]
      : [twoSites, callAndBack, ...(live ? [scenarioNamed('call-to-call')] : [])];
  for (const machine of machines)
    for (const scenario of scenarios) {
      const { verdict } = check(protocol, machine, scenario);
      if (verdict !== 'safe') return verdict;
    }
  return 'safe';
}
