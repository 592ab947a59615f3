/** The glue of the wasm module; the package's own entry imports the wasm file in a way that only bundlers understand. */
declare module 'gecko-profiler-demangle/index_bg.js' {
  export function __wbg_set_wasm(exports: Record<string, unknown>): void;
  /** The demangled name, or the name itself if no demangler knows it. */
  export function demangle_any(name: string): string;
}
