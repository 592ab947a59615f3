export { CALL_REFUSED } from './inside-memory.js';
export { InsideProcess, type ProtocolCounts } from './inside-process.js';
export { UNCOUNTED_HANDLER } from './rendezvous.js';
