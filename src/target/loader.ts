// What the dynamic loader of a process has loaded, as it tells debuggers: struct r_debug and its list of struct link_map (link.h,
// the same in glibc and musl). The executable's DT_DEBUG entry leads to it once the loader has filled that in.
import type { TargetMemory } from './memory.js';
import type { Module } from './modules.js';

const PT_DYNAMIC = 2;
const PT_INTERP = 3;
/** System V gABI, "Dynamic Section". */
const DT_NULL = 0n;
const DT_DEBUG = 21n;
const DYNAMIC_ENTRY_BYTES = 16;
/** struct r_debug: version, r_map, r_brk, r_state. */
const R_MAP = 8;
const R_STATE = 24;
const RT_CONSISTENT = 0n;
/** struct link_map: l_addr, l_name, l_ld, l_next. */
const L_NEXT = 24;
const LINK_MAP_BYTES = 32;
/** A list that is damaged, or is being changed, must not keep us for ever. */
const MAX_LOADED = 1 << 16;

export class Loader {
  readonly #memory: TargetMemory;
  readonly #debugEntry: number;

  private constructor(memory: TargetMemory, debugEntry: number) {
    this.#memory = memory;
    this.#debugEntry = debugEntry;
  }

  /** Undefined where nothing is loaded dynamically: the program is static. */
  static of(memory: TargetMemory, executable: Module): Loader | undefined {
    const { segments } = executable.elf();
    if (!segments.some(({ type }) => type === PT_INTERP)) return undefined;
    const dynamic = segments.find(({ type }) => type === PT_DYNAMIC);
    if (dynamic === undefined) return undefined;
    const start = Number(dynamic.address + executable.bias);
    for (let at = start; ; at += DYNAMIC_ENTRY_BYTES) {
      const tag = memory.readWord(at);
      if (tag === undefined || tag === DT_NULL) return undefined;
      if (tag === DT_DEBUG) return new Loader(memory, at + DYNAMIC_ENTRY_BYTES / 2);
    }
  }

  /** Identities of what is loaded, in their order; undefined while the loader is at work, or has not begun. */
  loaded(): readonly bigint[] | undefined {
    const debug = Number(this.#memory.readWord(this.#debugEntry) ?? 0n);
    if (debug === 0) return undefined;
    const state = (this.#memory.readWord(debug + R_STATE) ?? -1n) & 0xffff_ffffn;
    if (state !== RT_CONSISTENT) return undefined;
    const found: bigint[] = [];
    let at = Number(this.#memory.readWord(debug + R_MAP) ?? 0n);
    while (at !== 0) {
      const bytes = this.#memory.readSome(at, LINK_MAP_BYTES);
      if (bytes.length < LINK_MAP_BYTES || found.length === MAX_LOADED) return undefined;
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      found.push(view.getBigUint64(0, true));
      at = Number(view.getBigUint64(L_NEXT, true));
    }
    return found.length === 0 ? undefined : found;
  }
}
