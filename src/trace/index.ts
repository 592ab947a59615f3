export { attachTo, runProgram, type Recorded } from './attach.js';
export { DEFAULT_BUFFER_BYTES, type TraceOptions } from './options.js';
export { Session } from './session.js';
export { SESSION_REFUSALS, type RefusedFunction, type SessionRefusalReason } from './site-plan.js';
export type { SessionEnd, SessionStatus, SessionSummary } from './summary.js';
export type { WayName } from './ways.js';
export { listFunctions, type FunctionListing, type ListedFunction } from './list-functions.js';
export { examineMachine, type Finding } from './doctor.js';
export {
  ControlServer,
  NO_RUNTIME_FOLDER,
  control,
  type ControlAnswer,
  type ControlOptions,
  type ControlRequest,
} from './control.js';
export { whenLoaded } from './when-loaded.js';
export type { TargetEnd } from './target-exit.js';
