export {
  Agent,
  AGENT_CALLS,
  sharedLast,
  type AgentOptions,
  type KnownThread,
  type ResidentThread,
} from './agent.js';
export {
  CODE_PATH,
  RINGS_PATH,
  SHARED_NAME,
  SHARED_PATH,
  readAgentPage,
  readJournal,
  type Journal,
} from './journal.js';
export {
  OPEN_TEXT_CALLS,
  openParts,
  rangesBetween,
  readOnlyText,
  shuttingCalls,
  type OpeningText,
  type TextRange,
} from './open-text.js';
export { CONFINEMENT_CALLS } from './confinement.js';
export type { Witness, WitnessedText } from './text-table.js';
export { NOTHING_GIVEN_UP, rightsToGiveUp, type GivenUp } from './rights.js';
export {
  AGENT_THREAD_FLAGS_APART,
  AgentThread,
  FURTHER_ACTION,
  agentThreadListing,
  isAgentLost,
  type AgentAction,
  type WholeSite,
} from './agent-thread.js';
export { AGENT, HEADER, LANE, LANE_STATE, planGeometry } from './layout.js';
export { RingBudget } from './ring-budget.js';
export type { Cluster, CodeRegion, StubSite } from './stubs.js';
