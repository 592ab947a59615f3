import { basename } from 'node:path';
import { parseElf } from '../elf/index.js';
import { CannotError, checkOptionTypes } from '../errors/index.js';
import { NotRegularError, RegularFile } from '../linux/index.js';
import { demangle } from '../symbols/index.js';
import { OutsideMemory, preflight, readModules, type Module, type TargetMemory } from '../target/index.js';
import type { SiteKind } from '../x86/index.js';
import { ModuleFunctions, parsePatterns, selectFunctions, unmatchedPatterns } from './selection.js';
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
  /** A line for each pattern that no function fits. */
  readonly unmatched: readonly string[];
  readonly functions: readonly ListedFunction[];
}

const NO_SUCH_FILE = 'there is no such file';

function moduleOfFile(path: string): Module {
  let file: RegularFile;
  try {
    file = RegularFile.open(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown';
    throw new CannotError('FILE_UNREADABLE', {
      tried: `read ${path}`,
      why: error instanceof NotRegularError ? error.message : code === 'ENOENT' ? NO_SUCH_FILE : code,
      next: 'give the path of a program or shared library, or -p PID',
      cause: error,
    });
  }
  const elf = parseElf(file, path);
  return {
    path,
    name: basename(path),
    aliases: [],
    isExecutable: true,
    text: [],
    mapped: undefined,
    bias: 0n,
    elf: () => elf,
  };
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
  checkOptionTypes('listFunctions', of, { pid: 'number', file: 'string' });
  checkOptionTypes('listFunctions', { filters, notrace }, { filters: 'strings', notrace: 'strings' });
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
    const known = new ModuleFunctions();
    const selections = selectFunctions(modules, known, patterns.filters, patterns.notrace);
    const unmatched = unmatchedPatterns(modules, known, [...patterns.filters, ...patterns.notrace]);
    const plan = planSites(selections, memory, true, false);
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
    return { functions, unmatched };
  } finally {
    memory?.close();
  }
}
