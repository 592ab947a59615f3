export { InsideProcess, type ProtocolCounts } from './inside-process.js';
