export { attachTo, runProgram, signalTarget, type Recorded } from './attach.js';
export { DEFAULT_BUFFER_BYTES, type TraceOptions } from './options.js';
export { Session } from './session.js';
export { SESSION_REFUSALS, type RefusedFunction, type SessionRefusalReason } from './site-plan.js';
export type { SessionEnd, SessionSummary } from './summary.js';
