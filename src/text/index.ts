export { concat, escape, isPlain, join, json, lines, marked, painted, plain, text } from './text.js';
export { padEnd, padStart } from './text.js';
export { editDistance } from './edit-distance.js';
export { byName, countName } from './by-name.js';
export type { Text } from './text.js';
