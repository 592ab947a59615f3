/**
 * One record: an event of one thread, as the recorder writes it into the ring and as it stands in a recording.
 * Little endian, 16 bytes, aligned to 16:
 *
 *      0       4       8               12              16
 *      +-------+-------+---------------+---------------+
 *      |     tsc (u64) |   what (u32)  |   slot (u32)  |
 *      +-------+-------+---------------+---------------+
 *                        31        4 3 0
 *                       +-----------+---+
 *                what = | function  |kind|
 *                       +-----------+---+
 *
 * `tsc`   the time stamp counter when the event happened.
 * `what`  index of the function and kind of the event. The recorder stores it last: as no kind is 0, an all-zero
 *         `what` is a record that is not written yet.
 * `slot`  address of the stack slot that holds the function's return address, divided by 8, its low 32 bits: it tells slots apart
 *         within 32 GiB. With the function it identifies the call. For LOST: how many records were lost, at most 2^32 - 1.
 *
 * The emitted recorder takes every offset and constant from here, and so does everything that reads records.
 */
export const RECORD_BYTES = 16;
export const RECORD_TSC_OFFSET = 0;
export const RECORD_WHAT_OFFSET = 8;
export const RECORD_SLOT_OFFSET = 12;

/** `what` = (function index << KIND_BITS) | kind. */
export const KIND_BITS = 4;
export const KIND_MASK = (1 << KIND_BITS) - 1;
/** What is left for the function's index: 28 bits. */
export const MAX_FUNCTION_INDEX = 0xffff_ffff >>> KIND_BITS;
/**
 * The function index of a LOST record whose records were taken and not kept; 0: they were dropped. Recordings tell of them by a
 * message, of which readers make such a record.
 */
export const LOST_NOT_KEPT = 1;
/** A LOST record counts no further than this. */
export const MAX_LOST = 0xffff_ffff;

/** The shift that makes a slot of an address: slots are aligned to 8 bytes. */
export const SLOT_SHIFT = 3;

/** A call begins; an EXIT or TAIL with the same function and slot ends it. */
export const KIND_ENTRY = 1;
/** A call returned. */
export const KIND_EXIT = 2;
/** Version 1 only: a call ended without returning, by longjmp or an exception. Its `tsc` is an upper bound of when that was. */
export const KIND_UNWOUND = 3;
/** `slot` records were dropped here, for the ring was full. The function index is 0. */
export const KIND_LOST = 4;
/** A call whose end is not recorded: of a function that is traced by its entry only. */
export const KIND_LEAF = 5;
/** A call ended by a jump to another function, whose call, if it is traced, begins with the same slot. */
export const KIND_TAIL = 6;
/** In the ring only: the function index stands for the place that recorded, which tells function and kind. */
export const KIND_PLACE = 7;
/** No recorder writes it; it stands for what makes no sense. */
export const KIND_NONE = 15;

export type RecordKind =
  | typeof KIND_ENTRY
  | typeof KIND_EXIT
  | typeof KIND_UNWOUND
  | typeof KIND_LOST
  | typeof KIND_LEAF
  | typeof KIND_TAIL
  | typeof KIND_PLACE
  | typeof KIND_NONE;

/** The same layout in units of 32-bit words, for readers that view records as a `Uint32Array`. */
export const RECORD_WORDS = RECORD_BYTES / 4;
export const TSC_LOW_WORD = RECORD_TSC_OFFSET / 4;
export const TSC_HIGH_WORD = RECORD_TSC_OFFSET / 4 + 1;
export const WHAT_WORD = RECORD_WHAT_OFFSET / 4;
export const SLOT_WORD = RECORD_SLOT_OFFSET / 4;

/** Writes one record; for tests and for sources that are not the emitted recorder (`tsc` as a bigint is slow). */
export function writeRecord(
  view: DataView,
  offset: number,
  record: { tsc: bigint; kind: RecordKind; functionIndex: number; slot: number },
): void {
  view.setBigUint64(offset + RECORD_TSC_OFFSET, record.tsc, true);
  view.setUint32(offset + RECORD_SLOT_OFFSET, record.slot, true);
  view.setUint32(
    offset + RECORD_WHAT_OFFSET,
    ((record.functionIndex << KIND_BITS) | record.kind) >>> 0,
    true,
  );
}
