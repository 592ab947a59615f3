// The demangler is a module of WebAssembly. It reads names that anybody may have chosen, so it is given a room that it cannot leave:
// of a name whose text would outgrow that room it traps, and is thrown away together with its memory.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

/** As much of the standard global as is used here; the compiler's library for Node does not declare it. */
declare const WebAssembly: {
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object, imports: object) => { readonly exports: object };
};

/** What `gecko-profiler-demangle` exports; the glue that comes with it keeps views of the memory of instances that are gone. */
interface Exports {
  readonly memory: { readonly buffer: ArrayBuffer };
  readonly __wbindgen_export_0: { grow(by: number): number; set(at: number, value: unknown): void };
  demangle_any(at: number, bytes: number): [at: number, bytes: number];
  __wbindgen_malloc(bytes: number, alignment: number): number;
  __wbindgen_free(at: number, bytes: number, alignment: number): void;
  __wbindgen_start(): void;
}

/**
 * 64 KiB each: 17 are the module's own data and stack, the others room for a name. A text that fills it takes some 10 ms
 * (measured), so this bounds the time as well.
 */
const OWN_PAGES = 17;
const MOST_PAGES = 32;
/** An instance that has grown further than a usual name makes it is not kept. */
const KEPT_PAGES = 20;
const PAGE_BYTES = 1 << 16;
/** The binary format of WebAssembly, 5.5: a header of 8 bytes, then sections; the fifth kind holds the limits of memories. */
const HEADER_BYTES = 8;
const MEMORY_SECTION = 5;
const HAS_MAXIMUM = 1;

const encoder = new TextEncoder();
const decoder = new TextDecoder();
let compiled: object | undefined;
let instance: Exports | undefined;

/**
 * The name as a person writes it, or what else the demangler makes of it; undefined if that would be longer than `longest` bytes of UTF-8, or
 * the demangler has no room for it.
 */
export function demangleBounded(name: string, longest: number): string | undefined {
  const exports = (instance ??= instantiate());
  try {
    const bytes = encoder.encode(name);
    const given = exports.__wbindgen_malloc(bytes.length, 1) >>> 0;
    new Uint8Array(exports.memory.buffer, given, bytes.length).set(bytes);
    const [at, length] = exports.demangle_any(given, bytes.length);
    const isShort = length <= longest;
    const text = isShort
      ? decoder.decode(new Uint8Array(exports.memory.buffer, at >>> 0, length))
      : undefined;
    exports.__wbindgen_free(at, length, 1);
    if (exports.memory.buffer.byteLength > KEPT_PAGES * PAGE_BYTES) instance = undefined;
    return text;
  } catch {
    // A trap leaves the memory in an unknown state.
    instance = undefined;
    return undefined;
  }
}

/** Bytes of the demangler's memory, which bounds what a name can make it use. */
export function demanglerBytes(): number {
  return instance?.memory.buffer.byteLength ?? 0;
}

function instantiate(): Exports {
  if (compiled === undefined) {
    const file = createRequire(import.meta.url).resolve('gecko-profiler-demangle/index_bg.wasm');
    compiled = new WebAssembly.Module(withBoundedMemory(readFileSync(file)));
  }
  const made: { exports?: Exports } = {};
  const glue = {
    // Called by the start function: what handles of JavaScript values are to begin with.
    __wbindgen_init_externref_table: (): void => {
      const table = made.exports?.__wbindgen_export_0;
      const first = table?.grow(4) ?? 0;
      [undefined, null, true, false].forEach((value, i) => table?.set(first + i, value));
    },
  };
  made.exports = new WebAssembly.Instance(compiled, { './index_bg.js': glue }).exports as Exports;
  made.exports.__wbindgen_start();
  return made.exports;
}

/** The same module with a maximum for its memory, which a compiler leaves open. */
function withBoundedMemory(module: Uint8Array): Uint8Array {
  for (let at = HEADER_BYTES; at < module.length;) {
    const kind = module[at];
    const [length, body] = leb128(module, at + 1);
    if (kind === MEMORY_SECTION) {
      // One memory; all numbers are below 128, so each is a byte.
      const limits = [1, HAS_MAXIMUM, OWN_PAGES, MOST_PAGES];
      const section = Uint8Array.of(MEMORY_SECTION, limits.length, ...limits);
      return Buffer.concat([module.subarray(0, at), section, module.subarray(body + length)]);
    }
    at = body + length;
  }
  throw new Error('the demangler has no memory of its own');
}

/** An unsigned number in LEB128, and where it ends. */
function leb128(bytes: Uint8Array, from: number): [value: number, end: number] {
  let value = 0;
  for (let at = from, shift = 0; ; at++, shift += 7) {
    value |= (bytes[at] & 0x7f) << shift;
    if (bytes[at] < 0x80) return [value >>> 0, at + 1];
  }
}
