import type { Command } from 'commander';
import type { Terminal } from '../terminal.js';
import { registerAttach } from './attach.js';
import { registerDoctor } from './doctor.js';
import { registerFunctions } from './functions.js';
import { registerRun } from './run.js';
import { registerExport } from './export.js';
import { registerGraph } from './graph.js';
import { registerReport } from './report.js';
import { registerCheck } from './check.js';
import { registerStress } from './stress.js';

/** Called by a command to set the exit status with which safepoke ends. */
export type SetStatus = (status: number) => void;

/** What each file of this folder exports: it adds its command to the program. */
export type RegisterCommand = (program: Command, terminal: Terminal, setStatus: SetStatus) => void;

const commands: readonly RegisterCommand[] = [
  registerRun,
  registerAttach,
  registerFunctions,
  registerGraph,
  registerReport,
  registerExport,
  registerCheck,
  registerStress,
  registerDoctor,
];

export function registerCommands(program: Command, terminal: Terminal, setStatus: SetStatus): void {
  for (const register of commands) register(program, terminal, setStatus);
}
