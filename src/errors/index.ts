export { SafepokeError, UsageError, CannotError, isSafepokeError } from './safepoke-error.js';
export type { ErrorDetails } from './safepoke-error.js';
