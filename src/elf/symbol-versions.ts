// Versions of dynamic symbols: a library may define a name more than once, for programs that were linked at different times. gABI extensions of
// GNU: "Symbol Versioning", Linux Standard Base Core, 10.7.
import * as abi from './abi.js';
import type { ElfBytes } from './elf-bytes.js';
import type { StringTable } from './string-table.js';

/** Where the tables are in the file. */
export interface VersionTables {
  readonly symbolsOffset: number;
  readonly definitionsOffset: number;
  readonly definitionCount: number;
  readonly strings: StringTable;
}

/** More than any library has: libc has some fifty. */
const MOST_VERSIONS = 4096;
/** No name of a version that a person wrote is longer. */
const LONGEST_VERSION = 256;
/** Number of symbols whose versions are read at once. */
const AT_ONCE = 65_536;

/** Only programs that were linked with that version get such a symbol; to others the name means another. */
const HIDDEN = 0x8000;

/** A name without the `@VERSION` or `@@VERSION` behind it. */
export function withoutVersion(name: string): string {
  const version = name.indexOf('@', 1);
  return version < 0 ? name : name.slice(0, version);
}

/** The versions of the symbols of a table which are not the one that new programs get. */
export class SymbolVersions {
  readonly #names = new Map<number, string>();
  #view: DataView | undefined;
  #first = 0;

  constructor(
    private readonly file: ElfBytes,
    private readonly tables: VersionTables,
    private readonly count: number,
  ) {
    file.requireRange('the versions of symbols', tables.symbolsOffset, count, abi.VERSYM_SIZE);
    const what = 'the versions that it defines';
    if (tables.definitionCount > MOST_VERSIONS)
      file.damaged(`it defines more than ${MOST_VERSIONS} versions`);
    let at = tables.definitionsOffset;
    for (let left = tables.definitionCount; left > 0; left--) {
      const definition = file.table(what, at, 1, abi.VERDEF_SIZE, 1);
      const index = definition.getUint16(abi.VERDEF.index, true);
      const names = at + definition.getUint32(abi.VERDEF.names, true);
      const name = file.table(what, names, 1, abi.VERDAUX_SIZE, 1).getUint32(abi.VERDAUX.name, true);
      this.#names.set(index, tables.strings.at(name, LONGEST_VERSION));
      const next = definition.getUint32(abi.VERDEF.next, true);
      if (next === 0) break;
      at += next;
    }
  }

  /** The version of a hidden symbol; undefined of any other. Symbols are asked for in their order as a rule. */
  hiddenAt(index: number): string | undefined {
    if (index >= this.count) return undefined;
    let view = this.#view;
    if (view === undefined || index < this.#first || index >= this.#first + AT_ONCE) {
      this.#first = index - (index % AT_ONCE);
      const count = Math.min(AT_ONCE, this.count - this.#first);
      const offset = this.tables.symbolsOffset + this.#first * abi.VERSYM_SIZE;
      view = this.file.table('the versions of symbols', offset, count, abi.VERSYM_SIZE, AT_ONCE);
      this.#view = view;
    }
    const version = view.getUint16((index - this.#first) * abi.VERSYM_SIZE, true);
    return (version & HIDDEN) === 0 ? undefined : this.#names.get(version & ~HIDDEN);
  }
}
