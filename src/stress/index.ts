export { allCases, caseNamed, caseNames, verdictOf, type StressCase } from './cases.js';
export { runCase, withVerdict, type StressResult, type StressSettings } from './stress.js';
export { crashCount, isBroken, tableHeading, tableRow } from './table.js';
export { MAX_THREADS } from './layout.js';
