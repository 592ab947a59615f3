import type { Command } from 'commander';
import type { Terminal } from '../terminal.js';
import { registerCheck } from './check.js';

/** Called by a command to set the exit status with which safepoke ends. */
export type SetStatus = (status: number) => void;

/** What each file of this folder exports: it adds its command to the program. */
export type RegisterCommand = (program: Command, terminal: Terminal, setStatus: SetStatus) => void;

const commands: readonly RegisterCommand[] = [registerCheck];

export function registerCommands(program: Command, terminal: Terminal, setStatus: SetStatus): void {
  for (const register of commands) register(program, terminal, setStatus);
}
