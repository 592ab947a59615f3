import { UsageError } from '../errors/index.js';

type Token =
  | { readonly kind: 'literal'; readonly character: string }
  | { readonly kind: 'any' }
  | {
      readonly kind: 'class';
      readonly negated: boolean;
      readonly ranges: readonly (readonly [string, string])[];
    }
  | { readonly kind: 'star' };

/**
 * A shell pattern over a whole name: `*`, `?`, `[a-z]`, `[!a-z]`, and a backslash before a character that is meant
 * itself. It takes time proportional to pattern times name at worst, whatever the pattern: a pattern with many stars
 * must not hang the tracer as a regular expression would.
 */
export class Glob {
  readonly #tokens: readonly Token[];
  /** The whole pattern if it is a plain name: the common case. */
  readonly #literal: string | undefined;

  constructor(readonly text: string) {
    this.#tokens = tokenize(text);
    this.#literal = this.#tokens.every((token) => token.kind === 'literal')
      ? this.#tokens.map((token) => token.character).join('')
      : undefined;
  }

  matches(name: string): boolean {
    if (this.#literal !== undefined) return name === this.#literal;
    const tokens = this.#tokens;
    let at = 0;
    let token = 0;
    // Where to go on when a later part does not fit: let the last star take one character more.
    let star = -1;
    let starAt = 0;
    while (at < name.length) {
      if (token < tokens.length && tokens[token].kind === 'star') {
        star = token++;
        starAt = at;
      } else if (token < tokens.length && accepts(tokens[token], name[at])) {
        token++;
        at++;
      } else if (star >= 0) {
        token = star + 1;
        at = ++starAt;
      } else {
        return false;
      }
    }
    while (token < tokens.length && tokens[token].kind === 'star') token++;
    return token === tokens.length;
  }
}

function accepts(token: Token, character: string): boolean {
  if (token.kind === 'literal') return token.character === character;
  if (token.kind === 'any') return true;
  if (token.kind === 'star') return false;
  return token.ranges.some(([from, to]) => character >= from && character <= to) !== token.negated;
}

function tokenize(text: string): Token[] {
  const tokens: Token[] = [];
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '*') {
      if (tokens.at(-1)?.kind !== 'star') tokens.push({ kind: 'star' });
    } else if (character === '?') {
      tokens.push({ kind: 'any' });
    } else if (character === '[') {
      const end = text.indexOf(']', i + (text[i + 1] === '!' || text[i + 1] === '^' ? 3 : 2));
      if (end < 0)
        throw badPattern(text, "a '[' has no ']'", 'close it, or write \\[ for the character itself');
      tokens.push(characterClass(text, text.slice(i + 1, end)));
      i = end;
    } else if (character === '\\') {
      if (i + 1 === text.length)
        throw badPattern(text, 'it ends in a backslash', 'write \\\\ for the character itself');
      tokens.push({ kind: 'literal', character: text[++i] });
    } else {
      tokens.push({ kind: 'literal', character });
    }
  }
  return tokens;
}

function characterClass(text: string, inside: string): Token {
  const negated = inside.startsWith('!') || inside.startsWith('^');
  const ranges: [string, string][] = [];
  for (let i = negated ? 1 : 0; i < inside.length; i++) {
    const isRange = inside[i + 1] === '-' && i + 2 < inside.length;
    const to = isRange ? inside[i + 2] : inside[i];
    if (inside[i] > to)
      throw badPattern(text, `the range ${inside[i]}-${to} is empty`, 'write its lower end first');
    ranges.push([inside[i], to]);
    if (isRange) i += 2;
  }
  return { kind: 'class', negated, ranges };
}

/** The error for a pattern that cannot be understood. */
export function badPattern(text: string, why: string, next: string, cause?: unknown): UsageError {
  return new UsageError('bad-pattern', { tried: `use the pattern '${text}'`, why, next, cause });
}
