// A recorder and stubs in our own process, over lanes of our own, and a way to call a stub with any registers.
import { MAP, PROT, SYS, mapOwn, placeOwnCode, systemCall, type OwnMapping } from '../linux/index.js';
import {
  KIND_BITS,
  KIND_LOST,
  KIND_MASK,
  KIND_PLACE,
  RECORD_BYTES,
  RECORD_SLOT_OFFSET,
  RECORD_TSC_OFFSET,
  RECORD_WHAT_OFFSET,
} from '../recording/index.js';
import { assemble, emitSite, type DisplacedCode, type Recording } from '../x86/index.js';
import { encodeDataHeader, encodeLane, encodeQueue, laneAddress, type DataPlaces } from './lanes.js';
import { CONTROL, HEADER, LANE, SHARED, planGeometry, type AgentGeometry } from './layout.js';
import { emitRegion, regionBytes, type CodeRegion, type StubSite } from './stubs.js';

/** In the order in which the driver keeps them; the flags come last. */
export const REGISTERS = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;
const FLAGS_AT = REGISTERS.length * 8;
/** Arithmetic flags and the direction flag: Intel SDM, vol. 1, 3.4.3. */
export const FLAGS = 0xcd5n;
const FILE_BYTES = FLAGS_AT + 8;

/**
 * rdi: registers to load, rsi: where to; the registers as they are then take their place. The file's address lies on the stack meanwhile.
 */
const DRIVER = `
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rdi
    push rsi
    push qword [rdi+${FLAGS_AT}]
    popfq
${REGISTERS.filter((name) => name !== 'rdi')
  .map((name) => `    mov ${name}, [rdi+${REGISTERS.indexOf(name) * 8}]`)
  .join('\n')}
    mov rdi, [rdi+${REGISTERS.indexOf('rdi') * 8}]
    call qword [rsp]
    push rdi
    mov rdi, [rsp+16]
${REGISTERS.filter((name) => name !== 'rdi')
  .map((name) => `    mov [rdi+${REGISTERS.indexOf(name) * 8}], ${name}`)
  .join('\n')}
    pop rax
    mov [rdi+${REGISTERS.indexOf('rdi') * 8}], rax
    pushfq
    pop rax
    mov [rdi+${FLAGS_AT}], rax
    cld
    pop rsi
    pop rdi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret`;

/** A record as it stands in a ring; `cell` is what it stands for. */
export interface RawRecord {
  readonly tsc: bigint;
  readonly kind: number;
  readonly functionIndex: number;
  readonly slot: number;
}

/** A function of which nothing is left but what its sites have displaced: stub after stub. */
export interface StubPlan {
  readonly functionIndex: number;
  readonly begins: Recording['begins'];
  readonly depth?: number;
  readonly code: () => DisplacedCode;
  readonly exits: Recording['exits'];
}

export class OwnRecorder {
  readonly geometry: AgentGeometry;
  readonly places: DataPlaces;
  readonly control: DataView;
  readonly data: OwnMapping;
  readonly shared: OwnMapping;
  readonly region: CodeRegion;
  readonly #driver = placeOwnCode(assemble(DRIVER, 0n).bytes);
  readonly #file = mapOwn(4096, PROT.read | PROT.write, MAP.private | MAP.anonymous, -1);

  /** `onPlace` is told where the first stub will be. */
  constructor(
    plans: readonly StubPlan[],
    {
      lanes = 4,
      ringBytes = 1 << 16,
      onPlace,
    }: { lanes?: number; ringBytes?: number; onPlace?: (address: number) => void } = {},
  ) {
    this.geometry = planGeometry(lanes, ringBytes);
    const anonymous = MAP.private | MAP.anonymous | MAP.noReserve;
    const both = PROT.read | PROT.write;
    const control = mapOwn(CONTROL.size, both, anonymous, -1);
    this.control = new DataView(control.bytes);
    this.data = mapOwn(this.geometry.dataBytes, both, anonymous, -1);
    this.shared = mapOwn(this.geometry.sharedBytes, both, anonymous, -1);
    this.places = { data: Number(this.data.address), shared: Number(this.shared.address) };
    const { geometry, places } = this;
    const data = new Uint8Array(this.data.bytes);
    data.set(encodeDataHeader(places, geometry, { tidOffset: 0, mayAskTid: false }));
    data.set(encodeQueue(geometry), geometry.queue);
    for (let lane = 0; lane < lanes; lane++)
      data.set(encodeLane(places, geometry, lane, geometry.ringLimit), geometry.laneTable + lane * LANE.size);
    this.enable(true);

    const STUB_BYTES = 128;
    const sites: StubSite[] = plans.map(({ functionIndex, begins, depth = 0, code, exits }) => ({
      functionIndex,
      stubBytes: STUB_BYTES,
      stubShift: 0,
      emitStub: (address, into, at, call) => {
        if (functionIndex === plans[0].functionIndex) onPlace?.(address);
        return emitSite(code(), address, 0, into, at, undefined, { begins, depth, exits, call });
      },
    }));
    const size = regionBytes(sites);
    const code = mapOwn(size, both, anonymous, -1);
    const where = { control: control.address, data: this.data.address };
    this.region = emitRegion(code.address, size, sites, 0, where, geometry);
    new Uint8Array(code.bytes).set(this.region.bytes);
    if (systemCall(SYS.mprotect, code.address, size, PROT.read | PROT.exec) < 0) throw new Error('mprotect');
  }

  enable(wanted: boolean): void {
    this.control.setBigUint64(CONTROL.enabled, wanted ? 1n : 0n, true);
  }

  /** Calls a stub with these registers and flags; returns those that it left. */
  call(stub: number, file = new BigUint64Array(FILE_BYTES / 8)): BigUint64Array {
    const own = new BigUint64Array(this.#file.bytes, 0, FILE_BYTES / 8);
    own.set(file);
    this.#driver.call(0, this.#file.address, BigInt(this.region.stubs[stub]));
    return own.slice();
  }

  /** A word of a lane. */
  lane(lane: number): DataView {
    return new DataView(this.data.bytes, this.geometry.laneTable + lane * LANE.size, LANE.size);
  }

  header(lane: number): DataView {
    return new DataView(this.shared.bytes, SHARED.headers + lane * HEADER.size, HEADER.size);
  }

  laneAddress(lane: number): number {
    return laneAddress(this.places, this.geometry, lane);
  }

  dropped(lane: number): number {
    return Number(this.header(lane).getBigUint64(HEADER.dropped, true));
  }

  /** Takes all records of a lane, as the tracer does: cells have become functions and kinds. */
  take(lane: number): RawRecord[] {
    const header = this.header(lane);
    const head = Number(header.getBigUint64(HEADER.head, true));
    const records: RawRecord[] = [];
    for (let at = Number(header.getBigUint64(HEADER.tail, true)); at < head; at += RECORD_BYTES) {
      const offset = this.geometry.rings + lane * this.geometry.ringBytes + (at % this.geometry.ringBytes);
      const view = new DataView(this.shared.bytes, offset, RECORD_BYTES);
      const raw = view.getUint32(RECORD_WHAT_OFFSET, true);
      const what = (raw & KIND_MASK) === KIND_PLACE ? this.region.cells[raw >>> KIND_BITS] : raw;
      const kind = what & KIND_MASK;
      records.push({
        tsc: view.getBigUint64(RECORD_TSC_OFFSET, true),
        kind,
        functionIndex: kind === KIND_LOST ? 0 : what >>> KIND_BITS,
        slot: view.getUint32(RECORD_SLOT_OFFSET, true),
      });
    }
    header.setBigUint64(HEADER.tail, BigInt(head), true);
    return records;
  }
}
