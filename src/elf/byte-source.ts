/** Where the bytes of a file come from. It may be huge, and may change while it is read: who asks must be ready for fewer bytes. */
export interface ByteSource {
  /** Bytes, when it was opened. */
  readonly size: number;
  /** Fills `into` with what stands from `offset` on. Returns how many bytes there were: fewer than asked only where it ends. */
  read(into: Uint8Array, offset: number): number;
}

/** A file of which all bytes are in memory already. They are kept, not copied, and must not change. */
export class MemorySource implements ByteSource {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    // A plain array: `slice` of a Node Buffer is no copy, and changing what it gives would change the file.
    this.bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get size(): number {
    return this.bytes.length;
  }

  read(into: Uint8Array, offset: number): number {
    const piece = this.bytes.subarray(offset, offset + into.length);
    into.set(piece);
    return piece.length;
  }
}
