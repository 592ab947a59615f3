// The shared object that is loaded with a program: the listing assembled, the stubs of handlers, the private data.
import { writeSharedObject } from '../elf/index.js';
import { nmiSpan } from '../protocol/index.js';
import { assemble, lowerProtocol, type Assembly, type LoweredProtocol } from '../x86/index.js';
import {
  HANDLERS_MAX,
  OBJECT_DATA,
  PRIVATE,
  PRIVATE_SIZE,
  STUBS,
  STUB_SIZE,
  TEXT,
  privateOffset,
} from './layout.js';
import { THREAD_LOCAL, WHILE_WAITING, insideListing } from './listing.js';
import { wrapped } from './wrappers.js';

const SONAME = 'safepoke-inside.so';
const MOV_EAX = 0xb8;
const JMP_REL32 = 0xe9;
const INSTRUCTION_BYTES = 5;
/** How long the program waits before it looks whether the tracer still lives. */
const PATIENCE_NS = 50_000_000n;
/** SA_SIGINFO | SA_RESTORER | SA_RESTART. The signals of the C library (cancellation, setuid) wait until the thread goes on. */
const RENDEZVOUS_FLAGS = 4n | 0x0400_0000n | 0x1000_0000n;
const SIGCANCEL = 32n;
const SIGSETXID = 33n;

interface Code {
  readonly assembly: Assembly;
  readonly lowered: LoweredProtocol;
}

let code: Code | undefined;

/** The checker finds this form safe with overlapping NMIs; it is lowered and assembled once. */
function insideCode(): Code {
  if (code === undefined) {
    const lowered = lowerProtocol(nmiSpan, WHILE_WAITING);
    code = { lowered, assembly: assemble(insideListing(nmiSpan, lowered), BigInt(TEXT)) };
  }
  return code;
}

/** Address of a label in the object. */
export function addressOfLabel(label: string): number {
  const offset = insideCode().assembly.labels.get(label);
  if (offset === undefined) throw new Error(`the object has no ${label}`);
  return TEXT + offset;
}

/** Address of one of the protocol's words in the object's data. */
export function addressOfWord(name: string): number {
  const place = insideCode().lowered.words.get(name);
  if (place === undefined) throw new Error(`the protocol has no word ${name}`);
  return PRIVATE.protocol + place.offset;
}

/** `mov eax, number; jmp shim` for each handler that there may be. */
function stubBytes(shim: number): Uint8Array {
  const bytes = new Uint8Array(HANDLERS_MAX * STUB_SIZE);
  const view = new DataView(bytes.buffer);
  for (let number = 0; number < HANDLERS_MAX; number++) {
    const at = number * STUB_SIZE;
    bytes[at] = MOV_EAX;
    view.setUint32(at + 1, number, true);
    bytes[at + INSTRUCTION_BYTES] = JMP_REL32;
    view.setInt32(at + INSTRUCTION_BYTES + 1, shim - (STUBS + at + 2 * INSTRUCTION_BYTES), true);
  }
  return bytes;
}

/** How the variable begins by which the dynamic loader comes to load the object. */
export function preloadVariable(objectFile: number): string {
  return `LD_PRELOAD=/proc/self/fd/${objectFile}`;
}

/** How the object of one program differs from that of another. */
export interface ObjectFacts {
  /** Descriptors that the program inherits, of the block's file and of the object itself. */
  readonly blockFile: number;
  readonly objectFile: number;
  /** Where the block begins in its file. */
  readonly blockOffset: number;
  readonly isSuccessor: boolean;
}

/** The file. What the facts change lies in PRIVATE_HEAD, at that place of the file too. */
export function makeSharedObject(facts: ObjectFacts): Uint8Array {
  const { blockFile, objectFile, blockOffset, isSuccessor } = facts;
  const { assembly, lowered } = insideCode();
  const text = new Uint8Array(OBJECT_DATA - TEXT);
  if (assembly.bytes.length > STUBS - TEXT) throw new Error('the code of the object reaches into the stubs');
  text.set(assembly.bytes);
  text.set(stubBytes(addressOfLabel('shim')), STUBS - TEXT);
  const data = new Uint8Array(PRIVATE_SIZE);
  const view = new DataView(data.buffer);
  const encode = (string: string): Uint8Array => new TextEncoder().encode(`${string}\0`);
  view.setUint32(privateOffset(PRIVATE.blockFile), blockFile, true);
  view.setUint32(privateOffset(PRIVATE.objectFile), objectFile, true);
  view.setBigUint64(privateOffset(PRIVATE.blockOffset), BigInt(blockOffset), true);
  view.setUint32(privateOffset(PRIVATE.isSuccessor), isSuccessor ? 1 : 0, true);
  view.setBigUint64(privateOffset(PRIVATE.patience) + 8, PATIENCE_NS, true);
  view.setBigUint64(privateOffset(PRIVATE.action) + 8, RENDEZVOUS_FLAGS, true);
  view.setBigUint64(
    privateOffset(PRIVATE.action) + 24,
    (1n << (SIGCANCEL - 1n)) | (1n << (SIGSETXID - 1n)),
    true,
  );
  data.set(encode('/proc/self/mem'), privateOffset(PRIVATE.memoryPath));
  data.set(lowered.block, privateOffset(PRIVATE.protocol));
  for (const { name, nameAddress } of wrapped) data.set(encode(name), privateOffset(nameAddress));
  data.set(encode(preloadVariable(objectFile)), privateOffset(PRIVATE.preload));
  const places = ['shim', 'unwind_wrappers', 'rendezvous', 'unwind_end'].map(addressOfLabel);
  const [shim, wrappers, rendezvous, end] = places;
  return writeSharedObject({
    soname: SONAME,
    text: { address: TEXT, bytes: text },
    data: { address: OBJECT_DATA, bytes: data },
    exports: wrapped.map(({ name }) => ({
      name,
      address: addressOfLabel(name),
      size: addressOfLabel(`${name}.size`) - addressOfLabel(name),
    })),
    imports: [
      { name: 'dlsym', slot: PRIVATE.dlsym },
      { name: '__errno_location', slot: PRIVATE.errnoLocation },
      { name: 'environ', slot: PRIVATE.environ },
    ],
    threadLocal: { size: THREAD_LOCAL.size, slot: PRIVATE.threadLocal },
    init: addressOfLabel('init'),
    unwind: [
      { address: shim, length: wrappers - shim, hasFrame: true, personality: addressOfLabel('shim_is_left') },
      { address: wrappers, length: rendezvous - wrappers, hasFrame: true },
      { address: rendezvous, length: end - rendezvous, hasFrame: true },
      // A thread may be called together at the first instruction of a handler's stub, before the handler is counted.
      { address: STUBS, length: HANDLERS_MAX * STUB_SIZE, hasFrame: false },
    ],
  });
}
