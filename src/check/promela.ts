import type { Program } from '../model/index.js';
export function promelaOf(program: Program): string { return program.name; }
