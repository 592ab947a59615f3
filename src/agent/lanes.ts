// What the data region holds when a session begins.
import {
  AGENT_MAGIC,
  DATA,
  HEADER,
  LANE,
  NO_THREAD_POINTER,
  SHARED,
  entryLimit,
  type AgentGeometry,
} from './layout.js';

const TWO_TO_32 = 2 ** 32;

/** Where the regions lie in the process. */
export interface DataPlaces {
  readonly data: number;
  readonly shared: number;
}

/** Address of a lane. */
export function laneAddress({ data }: DataPlaces, geometry: AgentGeometry, lane: number): number {
  return data + geometry.laneTable + lane * LANE.size;
}

/** A lane that belongs to nobody; it may use `limit` bytes of its ring. */
export function encodeLane(
  places: DataPlaces,
  geometry: AgentGeometry,
  lane: number,
  limit: number,
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(LANE.size);
  const view = new DataView(bytes.buffer);
  // Numbers, as there are a thousand lanes.
  const put = (offset: number, value: number): void => {
    view.setUint32(offset, value % TWO_TO_32, true);
    view.setUint32(offset + 4, Math.floor(value / TWO_TO_32), true);
  };
  put(LANE.threadPointer, Number(NO_THREAD_POINTER));
  put(LANE.tidPointer, laneAddress(places, geometry, lane) + LANE.tid);
  put(LANE.header, places.shared + SHARED.headers + lane * HEADER.size);
  put(LANE.ring, places.shared + geometry.rings + lane * geometry.ringBytes);
  put(LANE.ringMask, geometry.ringBytes - 1);
  put(LANE.ringLimit, limit);
  put(LANE.entryLimit, entryLimit(limit));
  put(LANE.markTable, places.data + geometry.markTables + lane * geometry.markStride);
  return bytes;
}

/** The queue of free lanes: all but lane 0. */
export function encodeQueue(geometry: AgentGeometry): Uint8Array {
  const queue = new Uint32Array(geometry.queueMask + 1);
  for (let lane = 1; lane < geometry.lanes; lane++) queue[lane - 1] = lane * LANE.size;
  return new Uint8Array(queue.buffer);
}

/** The header. `tidOffset`, `mayAskTid`: as `DATA` has them. */
export function encodeDataHeader(
  places: DataPlaces,
  geometry: AgentGeometry,
  { tidOffset, mayAskTid }: { readonly tidOffset: number; readonly mayAskTid: boolean },
): Uint8Array {
  const header = new Uint8Array(DATA.size);
  const view = new DataView(header.buffer);
  const put = (offset: number, value: number | bigint): void => {
    view.setBigUint64(offset, BigInt(value), true);
  };
  put(DATA.queuePush, geometry.lanes - 1);
  put(DATA.lanesEnd, laneAddress(places, geometry, geometry.lanes));
  put(DATA.tidOffset, tidOffset);
  put(DATA.mayAskTid, mayAskTid ? 1 : 0);
  put(DATA.magic, AGENT_MAGIC);
  return header;
}
