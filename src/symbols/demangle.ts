import { withoutVersion } from '../elf/index.js';
import { demangleBounded } from './demangler.js';

/**
 * A name is demangled if neither it nor its text is longer, in bytes of UTF-8; else it is shown as it stands in the file. Substitutions and back
 * references let a name of a few hundred bytes stand for any number of gigabytes.
 */
export const LONGEST_DEMANGLED = 8 * 1024;
/** Each name that has no room costs some 10 ms: a file with more of them is one that was made for that. */
const MANY_OVERLONG = 100;
/** From then on only names with at most so many references are demangled: three of them at each of few levels make no text long. */
const FEW_REFERENCES = 8;
/** References to what the name has said before: `S_`, `S1A_`, `T_`, `T0_` (Itanium), `B_`, `B1a_` (Rust). */
const REFERENCE = /[STB][0-9A-Za-z]{0,4}_/g;
/** Names that are looked at more than once are in here; when it is full, it begins anew. */
const CACHE_CHARACTERS = 64 << 20;
/** C++ (Itanium ABI) and Rust's legacy scheme; Rust's v0 scheme. */
const MANGLED = /^_(?:Z|R[A-Z])/;
/** What compilers append to a name when they split, specialise or copy a function, or a linker to tell locals apart. */
const SUFFIX = /(?:\.(?:cold|part|constprop|isra|lto_priv|llvm|localalias)(?:\.\d+)*)+$/;

const cache = new Map<string, string>();
let cached = 0;
let overlong = 0;

/** True if `name` is of a mangling scheme that `demangle` knows. */
export function isMangled(name: string): boolean {
  return MANGLED.test(name);
}

/**
 * A C++ or Rust name as a person writes it; any other name unchanged. A compiler's suffix stays in sight:
 * `foo(int) [.constprop.0]`. At most `LONGEST_DEMANGLED` bytes, and the suffix; a name of more is given as it is. Cached.
 */
export function demangle(name: string): string {
  if (!isMangled(name) || name.length > LONGEST_DEMANGLED) return name;
  let demangled = cache.get(name);
  if (demangled === undefined) {
    demangled = demangleAnew(name);
    cached += name.length + demangled.length;
    if (cached > CACHE_CHARACTERS) {
      cache.clear();
      cached = name.length + demangled.length;
    }
    cache.set(name, demangled);
  }
  return demangled;
}

function demangleAnew(name: string): string {
  const plain = withoutVersion(name);
  if (plain !== name) return demangleAnew(plain) + name.slice(plain.length);
  const suffix = SUFFIX.exec(name)?.[0] ?? '';
  const mangled = suffix === '' ? name : name.slice(0, -suffix.length);
  if (overlong >= MANY_OVERLONG && hasManyReferences(mangled)) return name;
  const demangled = demangleBounded(mangled, LONGEST_DEMANGLED);
  if (demangled === undefined) {
    overlong++;
    return name;
  }
  // A name that it cannot read comes back as it is or, as on systems that prefix all names, without its underscore.
  if (demangled === mangled || demangled === mangled.slice(1)) return name;
  return suffix === '' ? demangled : `${demangled} [${suffix}]`;
}

function hasManyReferences(name: string): boolean {
  return (name.match(REFERENCE)?.length ?? 0) > FEW_REFERENCES;
}

const TRAILING_QUALIFIERS = /(?: const| volatile| &&?| noexcept| \[[^\]]*\])+$/;

/** A demangled name without its argument list: `foo::bar<int>(int) const` becomes `foo::bar<int>`. */
export function withoutArguments(demangled: string): string {
  const text = demangled.replace(TRAILING_QUALIFIERS, '');
  if (!text.endsWith(')')) return demangled;
  let depth = 0;
  let open = text.length - 1;
  for (; open >= 0; open--) {
    if (text[open] === ')') depth++;
    else if (text[open] === '(' && --depth === 0) break;
  }
  // `operator()` itself has no argument list here, and `(anonymous namespace)` is none.
  if (open <= 0 || text.endsWith('operator', open) || text.endsWith('::', open)) return demangled;
  return text.slice(0, open);
}
