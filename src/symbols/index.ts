export type { FunctionKind, FunctionSymbol } from './function-symbol.js';
export { functionsOf, functionAt } from './functions.js';
export { demangle, isMangled, withoutArguments } from './demangle.js';
export { parsePattern, matches, matchesFunction } from './pattern.js';
export type { Pattern } from './pattern.js';
export { nearestNames } from './nearest-names.js';
