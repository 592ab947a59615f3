// Breakpoints of the kernel (uprobes: perf probe, bpftrace) that come to a function while it is traced. The kernel writes an int3 over the
// first byte of our jump, executes the first instruction of the *file* elsewhere, and goes on behind it; when the probe goes it puts the
// file's first byte back. So under such a breakpoint the rest of our jump must become the rest of the original, and soon: the kernel
// asks nobody, and tells nobody.
import { isSafepokeError } from '../errors/index.js';
import type { Standstill, TargetMemory } from '../target/index.js';
import { SITE_LENGTH } from '../x86/index.js';
import { isUnderBreakpoint, restoreUnderBreakpoint, type SiteChanges } from './patch.js';

/** Sites that are looked at in one go: one system call reads them all. */
const LOOKED_AT_ONCE = 256;
/** A debugger may hold the threads, whose breakpoint it is then. */
const PAUSE_MS = 1000;

export class KernelBreakpoints {
  readonly #memory: TargetMemory;
  readonly #changes: SiteChanges;
  readonly #standAll: () => Standstill;
  readonly #isOurs: (address: number) => boolean;
  #next = 0;
  #notBefore = 0;

  /** `changes` are those that were made; `isOurs` tells whether an address is in code that they lead to. */
  constructor(
    memory: TargetMemory,
    changes: SiteChanges,
    standAll: () => Standstill,
    isOurs: (address: number) => boolean,
  ) {
    this.#memory = memory;
    this.#changes = changes;
    this.#standAll = standAll;
    this.#isOurs = isOurs;
  }

  /**
   * Looks at some sites, the next time at those behind them. Where a breakpoint stands on our jump the original code is put under it,
   * with all threads held: so that it is known that no debugger has set it, which would put our jump's first byte back. Returns on
   * how many sites that was so.
   */
  giveWay(): number {
    const now = performance.now();
    const found = now < this.#notBefore ? [] : this.#look();
    if (found.length === 0) return 0;
    let hold: Standstill | undefined;
    try {
      hold = this.#standAll();
      const given = found.filter((i) =>
        restoreUnderBreakpoint(
          this.#memory,
          this.#changes.addresses[i],
          this.#changes.expectedOf(i),
          this.#isOurs,
        ),
      );
      return given.length;
    } catch (error) {
      if (!isSafepokeError(error)) throw error;
      this.#notBefore = now + PAUSE_MS;
      return 0;
    } finally {
      hold?.release();
    }
  }

  /** Indices of the sites with a breakpoint on our jump among those whose turn it is. */
  #look(): number[] {
    const { addresses } = this.#changes;
    if (this.#next >= addresses.length) this.#next = 0;
    const first = this.#next;
    const some = addresses.subarray(first, first + LOOKED_AT_ONCE);
    this.#next += some.length;
    const ranges = [...some].map((address) => ({ address, length: SITE_LENGTH }));
    const bytes = this.#memory.readMany(ranges);
    const indices = [...bytes.keys()].filter((i) =>
      isUnderBreakpoint(bytes[i], this.#changes.wantedOf(first + i)),
    );
    return indices.map((i) => first + i);
  }
}
