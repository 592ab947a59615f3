import { setFlagsFromString } from 'node:v8';
import { withoutVersion } from '../elf/index.js';
import { demangle, isMangled, withoutArguments } from './demangle.js';
import type { FunctionSymbol } from './function-symbol.js';
import { badPattern, Glob } from './glob.js';

/** Longer names are rare, and a hostile one makes a common expression such as /a.*b/ take time with the square of its length. */
const LONG_NAME = 1024;

/** A parsed `-F` argument. */
export interface Pattern {
  /** As the user wrote it. */
  readonly text: string;
  /** True if the pattern names a module; one that does not means the executable to those who trace. */
  readonly namesModule: boolean;
  /** True if functions of the module with this base name can match. */
  matchesModule(module: string): boolean;
  /** True if this one string matches; see `matches` for the forms of a function's name. */
  matchesName(name: string): boolean;
}

/**
 * `call*`, `get?`, `[a-z]x` (glob, over the whole name) or `/^call/i` (regular expression, anywhere in the name), each
 * optionally after `MODULE!`, MODULE a glob over the module's base name: `libc.so.6!malloc`, `*!SSL_*`. Throws
 * `UsageError` (`bad-pattern`) for anything else.
 */
export function parsePattern(text: string): Pattern {
  const split = moduleEnd(text);
  const moduleText = split < 0 ? undefined : text.slice(0, split);
  const nameText = text.slice(split + 1);
  if (nameText === '' || moduleText === '') {
    throw badPattern(
      text,
      moduleText === '' ? 'it has no module before the !' : 'it has no function name',
      "write 'NAME', 'MODULE!NAME' or '/EXPRESSION/'",
    );
  }
  const moduleGlob = moduleText === undefined ? undefined : new Glob(moduleText);
  return {
    text,
    namesModule: moduleGlob !== undefined,
    matchesModule: (module) => moduleGlob?.matches(module) ?? true,
    matchesName: nameText.startsWith('/') ? expression(text, nameText) : globMatcher(nameText),
  };
}

/** True if the pattern selects the function: its module, and any of its names in any form, mangled or not, with its version or without. */
export function matches(pattern: Pattern, candidate: FunctionSymbol): boolean {
  return pattern.matchesModule(candidate.module) && matchesFunction(pattern, candidate);
}

/** The same, for a function of a module that is known to match. */
export function matchesFunction(pattern: Pattern, candidate: Pick<FunctionSymbol, 'names'>): boolean {
  return candidate.names.some((name) => matchesForms(pattern, name));
}

function matchesForms(pattern: Pattern, name: string): boolean {
  if (pattern.matchesName(name)) return true;
  const plain = withoutVersion(name);
  if (plain !== name && matchesForms(pattern, plain)) return true;
  if (!isMangled(name)) return false;
  const demangled = demangle(name);
  if (demangled === name) return false;
  if (pattern.matchesName(demangled)) return true;
  const short = withoutArguments(demangled);
  return short !== demangled && pattern.matchesName(short);
}

/** Index of the `!` that ends the module: not the one of a negated class, an `operator!`, or a regular expression. */
function moduleEnd(text: string): number {
  if (text.startsWith('/')) return -1;
  for (let at = text.indexOf('!'); at >= 0; at = text.indexOf('!', at + 1)) {
    const before = text.slice(0, at);
    if (!before.endsWith('[') && !before.endsWith('operator')) return at;
  }
  return -1;
}

function globMatcher(text: string): (name: string) => boolean {
  const glob = new Glob(text);
  return (name) => glob.matches(name);
}

function expression(text: string, quoted: string): (name: string) => boolean {
  const end = quoted.lastIndexOf('/');
  const flags = quoted.slice(end + 1);
  if (end === 0) throw badPattern(text, 'the regular expression has no closing /', 'write /EXPRESSION/');
  if (end === 1) throw badPattern(text, 'the regular expression is empty', "write '*' to select everything");
  if (flags !== '' && flags !== 'i') {
    throw badPattern(text, `the flag '${flags}' is unknown`, 'the only flag is i, which ignores case');
  }
  const source = quoted.slice(1, end);
  let regex: RegExp;
  try {
    regex = boundedExpression(source, flags);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw badPattern(text, why, 'correct the regular expression', error);
  }
  const linear = linearExpression(source, flags);
  return (name) => {
    if (name.length <= LONG_NAME) return regex.test(name);
    return linear === undefined ? regex.test(name.slice(0, LONG_NAME)) : linear.test(name);
  };
}

/**
 * The target chooses the names that the user's expression is tried on, and JavaScript's engine tries every way to match. After some thousand
 * ways V8 goes on with an engine that follows all of them at the same time, if it knows all of the expression. Throws SyntaxError.
 */
function boundedExpression(source: string, flags: string): RegExp {
  setFlagsFromString('--enable-experimental-regexp-engine-on-excessive-backtracks');
  return new RegExp(source, flags);
}

/**
 * The same expression for V8's other engine alone, which is much slower on short names, and takes time with the length of the name. Undefined:
 * it does not know all of the expression (`(?!...)`, `\\1`, the flag i).
 */
function linearExpression(source: string, flags: string): RegExp | undefined {
  setFlagsFromString('--enable-experimental-regexp-engine');
  try {
    return new RegExp(source, `${flags}l`);
  } catch {
    return undefined;
  }
}
