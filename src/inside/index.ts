export { CALL_REFUSED } from './inside-memory.js';
export type { Following } from './following.js';
export { InsideProcess, type ProtocolCounts, type WrittenBy } from './inside-process.js';
export { isBlock } from './layout.js';
export { UNCOUNTED_HANDLER } from './rendezvous.js';
