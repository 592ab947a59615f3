export { STORE_BUFFER_ENTRIES, defaultMachine, memoryModels } from './machine.js';
export type { Machine, MemoryModel, NmiBound } from './machine.js';
export { callAndBack, scenarioNamed, scenarios, twoSites } from './scenario.js';
export type { Change, Image, Scenario, Site } from './scenario.js';
export { HEAD, TAIL, foldWord, passes } from './program.js';
export type { Argument, Cell, Instruction, Program, Where } from './program.js';
export { compile } from './compile.js';
export { CpuSemantics, StoreBufferFull } from './cpu.js';
export type { Action, Cpu, Happening, Outcome, Pending, Violation } from './cpu.js';
