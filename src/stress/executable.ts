import { PF_R, PF_W, PF_X, writeExecutable } from '../elf/index.js';
import { assemble, lowerProtocol } from '../x86/index.js';
import type { Protocol } from '../protocol/index.js';
import {
  CHANGE_SIZE,
  CODE,
  CODE_BUFFER_SIZE,
  DATA,
  MAX_THREADS,
  SITES,
  STACKS,
  STACK_SIZE,
  TABLES,
} from './layout.js';
import { handledSignals, stressListing } from './listing.js';
import type { Patching, StressProgram, TextWriting } from './listing.js';
import { makeSitePages } from './sites.js';

const SIGNAL_ACTION_SIZE = 32;

/** One change that is asked for again and again. */
export interface Change {
  readonly site: number;
  readonly oldCode: Uint8Array;
  readonly newCode: Uint8Array;
}

/** A program under stress: the file to execute, and what its reader must know. */
export interface StressExecutable {
  readonly file: Uint8Array;
  readonly program: StressProgram;
  /** In the order in which they are made, round and round. */
  readonly changes: readonly Change[];
}

/** Writes the program for a protocol, from which steps may have been left out. */
export function makeExecutable(
  protocol: Protocol,
  patching: Patching,
  writing: TextWriting,
): StressExecutable {
  const pages = makeSitePages();
  const lowered = lowerProtocol(protocol);
  const program: StressProgram = { protocol, lowered, patching, writing, functions: pages.functions };
  const code = assemble(stressListing(program), BigInt(CODE));
  const changes = [
    ...pages.functions.map((f) => ({ site: f.site, oldCode: f.codes[0], newCode: f.codes[1] })),
    ...pages.functions.map((f) => ({ site: f.site, oldCode: f.codes[1], newCode: f.codes[0] })),
  ];
  const data = makeData(changes, program, (label) => CODE + (code.labels.get(label) ?? 0));
  const file = writeExecutable(BigInt(CODE), [
    { address: BigInt(CODE), bytes: code.bytes, memorySize: code.bytes.length, flags: PF_R | PF_X },
    { address: BigInt(SITES), bytes: pages.bytes, memorySize: pages.bytes.length, flags: PF_R | PF_X },
    { address: BigInt(DATA), bytes: data, memorySize: data.length, flags: PF_R | PF_W },
    {
      address: BigInt(STACKS),
      bytes: new Uint8Array(),
      memorySize: (MAX_THREADS + 1) * STACK_SIZE,
      flags: PF_R | PF_W,
    },
  ]);
  return { file, program, changes };
}

function makeData(
  changes: readonly Change[],
  { protocol }: StressProgram,
  addressOfLabel: (label: string) => number,
): Uint8Array {
  const data = new Uint8Array(TABLES.size);
  const view = new DataView(data.buffer);
  handledSignals(protocol).forEach(({ handler, flags, mask }, index) => {
    const at = TABLES.actions + index * SIGNAL_ACTION_SIZE;
    view.setBigUint64(at, BigInt(addressOfLabel(handler)), true);
    view.setBigUint64(at + 8, BigInt(flags), true);
    view.setBigUint64(at + 16, BigInt(addressOfLabel('restorer')), true);
    view.setBigUint64(at + 24, mask, true);
  });
  data.set(new TextEncoder().encode('/proc/self/mem\0'), TABLES.memoryPath);
  let buffers = TABLES.codeBuffers;
  const bufferOf = (bytes: Uint8Array): bigint => {
    const at = buffers;
    data.set(bytes, at);
    buffers += CODE_BUFFER_SIZE;
    return BigInt(DATA + at);
  };
  changes.forEach(({ site, oldCode, newCode }, index) => {
    const at = TABLES.changes + index * CHANGE_SIZE;
    view.setBigUint64(at, BigInt(site), true);
    view.setBigUint64(at + 8, bufferOf(oldCode), true);
    view.setBigUint64(at + 16, bufferOf(newCode), true);
  });
  return data;
}
