import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import * as glue from 'gecko-profiler-demangle/index_bg.js';

/** Longer names are given as they are: a damaged file must not keep the demangler busy. */
const LONGEST_DEMANGLED = 16 * 1024;
/** C++ (Itanium ABI) and Rust's legacy scheme; Rust's v0 scheme. */
const MANGLED = /^_(?:Z|R[A-Z])/;
/** What compilers append to a name when they split, specialise or copy a function, or a linker to tell locals apart. */
const SUFFIX = /(?:\.(?:cold|part|constprop|isra|lto_priv|llvm|localalias)(?:\.\d+)*)+$/;

/** As much of the standard global as is used here; the compiler's library for Node does not declare it. */
declare const WebAssembly: {
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object, imports: object) => { exports: Record<string, unknown> };
};

const cache = new Map<string, string>();
let loaded = false;

/** True if `name` is of a mangling scheme that `demangle` knows. */
export function isMangled(name: string): boolean {
  return MANGLED.test(name);
}

/**
 * A C++ or Rust name as a person writes it; any other name unchanged. A compiler's suffix stays in sight:
 * `foo(int) [.constprop.0]`. Cached.
 */
export function demangle(name: string): string {
  if (!isMangled(name) || name.length > LONGEST_DEMANGLED) return name;
  let demangled = cache.get(name);
  if (demangled === undefined) {
    demangled = demangleAnew(name);
    cache.set(name, demangled);
  }
  return demangled;
}

function demangleAnew(name: string): string {
  const suffix = SUFFIX.exec(name)?.[0] ?? '';
  const mangled = suffix === '' ? name : name.slice(0, -suffix.length);
  if (!loaded) load();
  try {
    const demangled = glue.demangle_any(mangled);
    // A name that it cannot read comes back as it is or, as on systems that prefix all names, without its underscore.
    if (demangled === mangled || demangled === mangled.slice(1)) return name;
    return suffix === '' ? demangled : `${demangled} [${suffix}]`;
  } catch {
    // A trap inside wasm leaves its memory in an unknown state: start afresh for the next name.
    loaded = false;
    return name;
  }
}

function load(): void {
  const file = createRequire(import.meta.url).resolve('gecko-profiler-demangle/index_bg.wasm');
  const module = new WebAssembly.Module(readFileSync(file));
  const instance = new WebAssembly.Instance(module, { './index_bg.js': glue });
  glue.__wbg_set_wasm(instance.exports);
  (instance.exports.__wbindgen_start as () => void)();
  loaded = true;
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
