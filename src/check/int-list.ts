const INITIAL_ITEMS = 1024;

/** A list of 32-bit numbers that grows; `items` is replaced when it does, so hold it for no longer than a step. */
export class IntList {
  items: Int32Array;
  length = 0;

  /** `fill` is what items hold that were reserved but not set. */
  constructor(readonly fill = 0) {
    this.items = new Int32Array(INITIAL_ITEMS).fill(fill);
  }

  push(value: number): void {
    this.reserve(this.length + 1);
    this.items[this.length++] = value;
  }

  /** Makes room for `length` items. */
  reserve(length: number): void {
    if (length <= this.items.length) return;
    const grown = new Int32Array(Math.max(length, this.items.length * 2));
    if (this.fill !== 0) grown.fill(this.fill, this.items.length);
    grown.set(this.items);
    this.items = grown;
  }
}
