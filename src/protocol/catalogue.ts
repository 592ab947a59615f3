import { int3, int3Help, int3HelpLate, int3NoRefs, int3Skip } from './int3.js';
import { nmi2008 } from './nmi-2008.js';
import { nmiGated } from './nmi-gated.js';
import { nmiNoStorm, nmiNoStormNaive } from './nmi-no-storm.js';
import { nmiOneWord } from './nmi-one-word.js';
import { nmiSpan } from './nmi-span.js';
import type { Protocol } from './protocol.js';
import { unprotected } from './unprotected.js';

/** Every protocol, in the order of their history. */
export const protocols: readonly Protocol[] = [
  unprotected,
  nmi2008,
  nmiOneWord,
  nmiSpan,
  nmiGated,
  nmiNoStorm,
  nmiNoStormNaive,
  int3,
  int3Skip,
  int3NoRefs,
  int3Help,
  int3HelpLate,
];

export function protocolNamed(name: string): Protocol | undefined {
  return protocols.find((p) => p.name === name);
}
