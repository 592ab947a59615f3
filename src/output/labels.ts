import type { TraceInfo } from '../recording/index.js';
import { plain, type Text } from '../text/index.js';

/**
 * Text repeats a function's name for each of its calls: a longer one is cut there, so that a record of 16 bytes cannot make lines of a
 * megabyte. JSON has names whole.
 */
export const LONGEST_NAME = 4096;

/** Names of functions as text shows them. Each is made once. */
export class FunctionLabels {
  readonly #info: TraceInfo;
  readonly #labels: Text[] = [];

  constructor(info: TraceInfo) {
    this.#info = info;
  }

  of(functionIndex: number): Text {
    // Functions are told of in order, but need not be called in order: an array with holes would become slow.
    if (functionIndex >= this.#labels.length) {
      const { length } = this.#info.functions;
      // An index that no message told of may be so large that an array would fill memory.
      if (functionIndex >= length) return plain(this.#info.functionAt(functionIndex).name, LONGEST_NAME);
      for (let i = this.#labels.length; i < length; i++)
        this.#labels.push(plain(this.#info.functionAt(i).name, LONGEST_NAME));
    }
    return this.#labels[functionIndex];
  }
}
