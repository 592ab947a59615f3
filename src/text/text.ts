/**
 * Text that may go to a terminal or into a format of lines. Names of symbols, threads, files, arguments and what a peer answers are
 * others' to choose: with control characters in them they set a terminal's title, clear it, forge lines, or turn the order of what is read.
 *
 * So what writes text takes `Text`, which is a string to everybody but the compiler: no plain string is one. It is made of literals and numbers by
 * the tag `text`, and of strings by `plain`, which escapes them. Who forgets that does not get past the compiler. What machines read is
 * made by `json`.
 */
declare const isText: unique symbol;
export type Text = string & { readonly [isText]: true };

/**
 * What does not stand for itself: controls (C0, DEL, C1), format characters (bidi, zero width), separators of lines and
 * paragraphs, halves of surrogate pairs, and all else that Unicode says has no shape.
 */
const UNSAFE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
/** Nearly all names are of these alone, and looking for those is much faster. */
const HARMLESS = /^[\x20-\x7e]*$/;
const SHORT: ReadonlyMap<string, string> = new Map([
  ['\n', '\\n'],
  ['\r', '\\r'],
  ['\t', '\\t'],
]);
const ELLIPSIS = '…';

/** True if `plain` would leave the string as it is. */
export function isPlain(value: string): boolean {
  return HARMLESS.test(value) || value.search(UNSAFE) < 0;
}

/** One character as text that shows it: `\n`, `\x1b`, `\u{202e}`. */
export function escape(character: string): string {
  const short = SHORT.get(character);
  if (short !== undefined) return short;
  const code = character.codePointAt(0) ?? 0;
  const digits = code.toString(16);
  return code < 0x100 ? `\\x${digits.padStart(2, '0')}` : `\\u{${digits}}`;
}

/**
 * Any string as one line that shows what is in it. `longest` is how many of its characters are shown at most; a longer one ends in an
 * ellipsis.
 */
export function plain(value: string, longest = Number.POSITIVE_INFINITY): Text {
  const shown = value.length <= longest ? value : value.slice(0, longest) + ELLIPSIS;
  return (HARMLESS.test(shown) ? shown : shown.replace(UNSAFE, escape)) as Text;
}

/** A string of our own in several lines, such as a table: each is `plain`. */
export function lines(value: string): Text {
  return value
    .split('\n')
    .map((line) => plain(line))
    .join('\n') as Text;
}

/** As picocolors writes them: one or two digits. */
const COLOUR = /(\x1b\[\d{1,2}m|\n)/;

/** What somebody has coloured whose values are plain already: of escape sequences only colours are left, and line ends. */
export function painted(value: string): Text {
  return value
    .split(COLOUR)
    .map((part, i) => (i % 2 === 1 ? part : plain(part)))
    .join('') as Text;
}

/** Literals stand for themselves; values are `Text` or numbers, as the compiler sees to. */
export function text(literals: TemplateStringsArray, ...values: readonly (Text | number | bigint)[]): Text {
  let made = literals[0];
  for (let i = 0; i < values.length; i++) made += `${values[i]}${literals[i + 1]}`;
  return made as Text;
}

export function join(parts: readonly Text[], separator: Text): Text {
  return parts.join(separator) as Text;
}

export function concat(parts: readonly Text[]): Text {
  return parts.join('') as Text;
}

export function padEnd(value: Text, columns: number): Text {
  return value.padEnd(columns) as Text;
}

export function padStart(value: Text, columns: number): Text {
  return value.padStart(columns) as Text;
}

/** A text that `mark` puts colours around. */
export function marked(mark: (text: string) => string, value: Text): Text {
  return mark(value) as Text;
}

/** JSON that means the value exactly, and that a terminal may show all the same: what is unsafe there is written as `\uXXXX`. */
export function json(value: unknown, indent?: number): Text {
  const made = JSON.stringify(value, undefined, indent);
  return (HARMLESS.test(made) ? made : made.replace(JSON_UNSAFE, jsonEscape)) as Text;
}

/** Line ends of `indent` stay; in strings JSON itself has escaped those. */
const JSON_UNSAFE = /(?!\n)[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;

function jsonEscape(character: string): string {
  let made = '';
  for (let i = 0; i < character.length; i++)
    made += `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`;
  return made;
}
