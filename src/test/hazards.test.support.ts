// All hazards: what `npm test` and `npm run soak` go through.
import { clockHazards } from './hazards-clock.test.support.js';
import { contestHazards } from './hazards-contest.test.support.js';
import { deathHazards } from './hazards-deaths.test.support.js';
import { hostileHazards } from './hostile-rounds.test.support.js';
import { insideHazards } from './hazards-inside.test.support.js';
import { limitHazards } from './hazards-limits.test.support.js';
import { otherHazards } from './hazards-others.test.support.js';
import { processHazards } from './hazards-processes.test.support.js';
import { readerHazards } from './hazards-readers.test.support.js';
import { threadHazards } from './hazards-threads.test.support.js';
import { tracerHazards } from './hazards-tracers.test.support.js';
import { wayHazards } from './hazards-ways.test.support.js';
import type { Hazard } from './rounds.test.support.js';

export const hazards: readonly Hazard[] = [
  ...threadHazards,
  ...processHazards,
  ...limitHazards,
  ...tracerHazards,
  ...otherHazards,
  ...readerHazards,
  ...clockHazards,
  ...wayHazards,
  ...deathHazards,
  ...contestHazards,
  ...insideHazards,
  ...hostileHazards,
];
