// From patterns to functions.
import { CannotError } from '../errors/index.js';
import { demangle, functionsOf, matches, nearestNames, parsePattern, type FunctionSymbol, type Pattern } from '../symbols/index.js';
import type { Module } from '../target/index.js';

/** A module with those of its functions that were asked for. */
export interface ModuleSelection {
  readonly module: Module;
  /** Every function of the module, ascending. */
  readonly all: readonly FunctionSymbol[];
  readonly selected: readonly FunctionSymbol[];
}

function matchesModule(pattern: Pattern, module: Module): boolean {
  return pattern.module === undefined ? module.isExecutable : matches(pattern, module.name);
}
void matchesModule;
void demangle;
void functionsOf;
void nearestNames;
void parsePattern;
void CannotError;
