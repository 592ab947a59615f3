import type { SiteCandidate } from './sites.js';

/** What the stub runs in place of the displaced instructions, ending in a jump back (or in what never comes back). */
export interface RelocatedCode {
  readonly bytes: Uint8Array;
  /**
   * For each displaced instruction, where its copy begins in `bytes`: a thread stopped at `address + originalOffset`
   * goes on at `stubAddress + newOffset`. Ascending; the first is at offset 0 of both.
   */
  readonly boundaries: readonly { readonly originalOffset: number; readonly newOffset: number }[];
}

/**
 * The code for one stub. `stubAddress` is where `bytes` will lie in the process, within 2 GiB of all that the
 * instructions refer to (`CannotError` otherwise); `loadBias` is what the process adds to addresses of the file.
 */
export declare function relocateSite(
  candidate: SiteCandidate,
  stubAddress: bigint,
  loadBias: bigint,
): RelocatedCode;
