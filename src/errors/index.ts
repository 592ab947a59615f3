export { SafepokeError, UsageError, CannotError, isSafepokeError } from './safepoke-error.js';
export type { ErrorDetails } from './safepoke-error.js';
export { checkOptionTypes } from './check-options.js';
export type { OptionType } from './check-options.js';
