/**
 * The part of safepoke that needs no Linux and no Node: protocols, the model machine, the checker. It runs in a browser.
 */
export * from './protocol/index.js';
export * from './model/index.js';
export * from './check/index.js';
