// From patterns to functions.
import { CannotError } from '../errors/index.js';
import {
  functionsOf,
  matchesFunction,
  nearestNames,
  parsePattern,
  type FunctionSymbol,
  type Pattern,
} from '../symbols/index.js';
import type { Module } from '../target/index.js';
import type { ElfFile } from '../elf/index.js';

const MIB = 1 << 20;
/** All of it is read, and marks are kept for its code. The largest programs that are shipped, browsers, load some 250 MiB. */
const MOST_LOADED_BYTES = 512 * MIB;
/** Names that are shown where none matches. */
const NEAREST_SHOWN = 5;

/** A module with those of its functions that were asked for. */
export interface ModuleSelection {
  readonly module: Module;
  /** Every function of the module, ascending. */
  readonly all: readonly FunctionSymbol[];
  readonly selected: readonly FunctionSymbol[];
}

/** Parses `-F` and `-N` arguments. @throws UsageError */
export function parsePatterns(texts: readonly string[] | undefined): Pattern[] {
  return (texts ?? []).map(parsePattern);
}

/**
 * A library goes by the name of its file and by the one that programs ask for: libz.so.1.2.13 is libz.so.1. An executable goes by the
 * name by which it was started as well.
 */
export function concernsModule(pattern: Pattern, module: Module): boolean {
  if (!pattern.namesModule) return module.isExecutable;
  const { soname } = module.elf();
  const names = [module.name, ...(soname === undefined ? [] : [soname]), ...module.aliases];
  return names.some((name) => pattern.matchesModule(name));
}

/** A module in whose file something is wrong that its headers did not tell. */
export interface DamagedModule {
  readonly module: Module;
  readonly error: CannotError;
}

/** Lazily parsed functions of a module; a session asks several times. */
export class ModuleFunctions {
  readonly #known = new Map<Module, readonly FunctionSymbol[]>();
  readonly #damaged: DamagedModule[] = [];

  /** Those whose files turned out to be damaged: they have no functions. */
  get damaged(): readonly DamagedModule[] {
    return this.#damaged;
  }

  of(module: Module): readonly FunctionSymbol[] {
    let functions = this.#known.get(module);
    if (functions === undefined) {
      functions = this.#read(module);
      this.#known.set(module, functions);
    }
    return functions;
  }

  #read(module: Module): readonly FunctionSymbol[] {
    try {
      const elf = module.elf();
      const functions = functionsOf(elf, module.name);
      // What follows reads these, and would end the session for one file among many.
      if (functions.length > 0) elf.readTables();
      if (functions.length > 0) checkSize(elf);
      return functions;
    } catch (error) {
      if (!(error instanceof CannotError)) throw error;
      this.#damaged.push({ module, error });
      return [];
    }
  }
}

/** Who can land where is asked of all that a file loads. @throws CannotError FILE_TOO_LARGE */
function checkSize(elf: ElfFile): void {
  const loaded = elf.loaded.reduce((sum, { fileSize }) => sum + fileSize, 0);
  if (loaded <= MOST_LOADED_BYTES) return;
  throw new CannotError('FILE_TOO_LARGE', {
    tried: `look at the code of ${elf.name}`,
    why: `it loads ${formatMib(loaded)} MiB; at most ${formatMib(MOST_LOADED_BYTES)} MiB of a file are looked at`,
    next: 'choose functions of other files with patterns such as FILE!NAME',
  });
}

const formatMib = (bytes: number): number => Math.ceil(bytes / MIB);

/**
 * The functions that the patterns select; without filters, all of the executable.
 *
 * @throws CannotError NO_MODULE, NO_SYMBOLS, NO_MATCH
 */
export function selectFunctions(
  modules: readonly Module[],
  functions: ModuleFunctions,
  filters: readonly Pattern[],
  notrace: readonly Pattern[],
): ModuleSelection[] {
  const selections: ModuleSelection[] = [];
  const looked: Module[] = [];
  for (const module of modules) {
    const wanted = filters.filter((pattern) => concernsModule(pattern, module));
    if (filters.length === 0 ? !module.isExecutable : wanted.length === 0) continue;
    looked.push(module);
    const all = functions.of(module);
    const unwanted = notrace.filter((pattern) => concernsModule(pattern, module));
    const selected = all.filter(
      (f) =>
        (filters.length === 0 || wanted.some((pattern) => matchesFunction(pattern, f))) &&
        !unwanted.some((pattern) => matchesFunction(pattern, f)),
    );
    if (selected.length > 0) selections.push({ module, all, selected });
  }
  if (selections.length === 0) {
    const damaged = functions.damaged.find(({ module }) => looked.includes(module));
    throw damaged?.error ?? nothingSelected(modules, looked, functions, filters);
  }
  return selections;
}

/** A line for each pattern that no function fits, beside others that some do: it is a misspelling, as a rule. */
export function unmatchedPatterns(
  modules: readonly Module[],
  functions: ModuleFunctions,
  patterns: readonly Pattern[],
  mayComeLater = false,
): string[] {
  return patterns.flatMap((pattern) => {
    const concerned = modules.filter((module) => concernsModule(pattern, module));
    if (concerned.length === 0)
      return mayComeLater ? [] : [`"${pattern.text}" matches nothing: the process has mapped no such module`];
    if (concerned.some((module) => functions.of(module).some((f) => matchesFunction(pattern, f)))) return [];
    const names = concerned.flatMap((module) => functions.of(module).flatMap((f) => f.names));
    const nearest = [...new Set(nearestNames(pattern.text, names))].slice(0, NEAREST_SHOWN);
    const hint = nearest.length === 0 ? '' : `; the nearest are ${nearest.join(', ')}`;
    return [`"${pattern.text}" matches no function of ${concerned.map((m) => m.name).join(', ')}${hint}`];
  });
}

function nothingSelected(
  modules: readonly Module[],
  looked: readonly Module[],
  functions: ModuleFunctions,
  filters: readonly Pattern[],
): CannotError {
  const patterns = filters.map((p) => p.text).join(' ');
  if (looked.length === 0) {
    return new CannotError('NO_MODULE', {
      tried: `find ${patterns}`,
      why: 'the process has mapped no such module',
      next: `name one of: ${modules.map((m) => m.name).join(', ')}`,
    });
  }
  const names = looked.flatMap((module) => functions.of(module).flatMap((f) => f.names));
  const where = looked.map((m) => m.name).join(', ');
  if (names.length === 0) {
    return new CannotError('NO_SYMBOLS', {
      tried: `find functions in ${where}`,
      why: 'it is stripped: no symbol of a function is left in it',
      next: "install its debug symbols or an unstripped build, or trace its libraries, as in -F 'libc.so.6!*'",
    });
  }
  const nearest = filters.flatMap((p) => nearestNames(p.text, names));
  return new CannotError('NO_MATCH', {
    tried: `find a function that matches ${patterns === '' ? 'the options' : patterns} in ${where}`,
    why: `none of its ${names.length} names does`,
    next:
      nearest.length > 0
        ? `the nearest are ${[...new Set(nearest)].slice(0, NEAREST_SHOWN).join(', ')}`
        : 'list what can be traced with `safepoke functions`',
  });
}
