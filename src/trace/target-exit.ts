// How a target that is not our child ended. Linux 6.15 and later tell it to whoever held a pidfd; before that nobody but the
// parent knows.
import { PidFile, hasEnded, waitForThread } from '../linux/index.js';

/** How a process ended, as far as it can be known. */
export type TargetEnd =
  | { readonly kind: 'exited'; readonly status: number }
  | { readonly kind: 'killed'; readonly signal: number }
  | { readonly kind: 'unknown' };

/** Watches a process for its end. */
export class ExitWatch {
  readonly #pid: number;
  readonly #isChild: boolean;
  readonly #file: PidFile | undefined;
  #end: TargetEnd | undefined;

  constructor(pid: number, isChild: boolean) {
    this.#pid = pid;
    this.#isChild = isChild;
    this.#file = isChild ? undefined : PidFile.open(pid);
  }

  /** How it ended; undefined while it runs. A child is reaped. */
  check(): TargetEnd | undefined {
    if (this.#end !== undefined) return this.#end;
    if (this.#isChild) {
      const result = waitForThread(this.#pid, false);
      if (result.kind === 'exited') this.#end = { kind: 'exited', status: result.status };
      else if (result.kind === 'killed') this.#end = { kind: 'killed', signal: result.signal };
      else if (result.kind === 'error') this.#end = { kind: 'unknown' };
      return this.#end;
    }
    if (!hasEnded(this.#pid)) return undefined;
    const status = this.#file?.exitStatus();
    if (status === undefined) this.#end = { kind: 'unknown' };
    else if ((status & 0x7f) === 0) this.#end = { kind: 'exited', status: (status >> 8) & 0xff };
    else this.#end = { kind: 'killed', signal: status & 0x7f };
    return this.#end;
  }

  close(): void {
    this.#file?.close();
  }
}
