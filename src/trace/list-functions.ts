import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { parseElf } from '../elf/index.js';
import { CannotError } from '../errors/index.js';
import { demangle } from '../symbols/index.js';
import { OutsideMemory, preflight, readModules, type Module, type TargetMemory } from '../target/index.js';
import type { SiteKind } from '../x86/index.js';
import { ModuleFunctions, parsePatterns, selectFunctions } from './selection.js';
import { SESSION_REFUSALS, planSites } from './site-plan.js';

/** One function that can, or cannot, be traced. */
export interface ListedFunction {
  /** In the process, or in the file. */
  readonly address: bigint;
  /** Bytes. */
  readonly size: number;
  /** Base name. */
  readonly module: string;
  /** How its site would be made; undefined if it is refused. */
  readonly kind: SiteKind | undefined;
  /** `sites`: all places where it is left can be patched; `none`: it is traced by its entry only. Undefined if it is refused. */
  readonly exit: 'sites' | 'none' | undefined;
  /** Why it is refused, with a line of explanation. */
  readonly refusal: { readonly reason: string; readonly explanation: string } | undefined;
  /** Demangled where it can be. */
  readonly name: string;
  readonly symbol: string;
}

export interface FunctionListing {
  readonly functions: readonly ListedFunction[];
}

function moduleOfFile(path: string): Module {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown';
    throw new CannotError('FILE_UNREADABLE', {
      tried: `read ${path}`,
      why: code === 'ENOENT' ? 'there is no such file' : code === 'EISDIR' ? 'it is a directory' : code,
      next: 'give the path of a program or shared library, or -p PID',
      cause: error,
    });
  }
  const elf = parseElf(bytes, path);
  return { path, name: basename(path), aliases: [], isExecutable: true, text: [], bias: 0n, elf: () => elf };
}

/**
 * Lists what can be traced of a process or a file, and what cannot. Changes nothing.
 *
 * @throws CannotError of preflight, parseElf and selectFunctions; UsageError for a bad pattern
 */
export function listFunctions(
  of: { readonly pid: number } | { readonly file: string },
  filters: readonly string[] = [],
  notrace: readonly string[] = [],
): FunctionListing {
  const patterns = { filters: parsePatterns(filters), notrace: parsePatterns(notrace) };
  let memory: TargetMemory | undefined;
  let modules: readonly Module[];
  if ('pid' in of) {
    preflight(of.pid);
    memory = new OutsideMemory(of.pid);
    modules = readModules(of.pid).modules;
  } else {
    modules = [moduleOfFile(of.file)];
  }
  try {
    const selections = selectFunctions(modules, new ModuleFunctions(), patterns.filters, patterns.notrace);
    const plan = planSites(selections, memory, true);
    const functions: ListedFunction[] = [];
    for (const { function: f, module, kind, hasExits } of plan.functions) {
      functions.push({
        address: f.address + module.bias,
        size: f.size,
        module: module.name,
        kind,
        exit: hasExits ? 'sites' : 'none',
        refusal: undefined,
        name: demangle(f.name),
        symbol: f.name,
      });
    }
    for (const { function: f, module, reason } of plan.refused) {
      functions.push({
        address: f.address + module.bias,
        size: f.size,
        module: module.name,
        kind: undefined,
        exit: undefined,
        refusal: { reason, explanation: SESSION_REFUSALS[reason] },
        name: demangle(f.name),
        symbol: f.name,
      });
    }
    functions.sort((a, b) =>
      a.module < b.module ? -1 : a.module > b.module ? 1 : a.address < b.address ? -1 : 1,
    );
    return { functions };
  } finally {
    memory?.close();
  }
}
