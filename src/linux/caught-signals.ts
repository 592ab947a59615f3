// Signals as bits in memory. Node has no handlers for real-time signals, and runs those that it has between two turns of its event
// loop: a session that waits in a system call, or works for seconds without a pause, would not learn that it is to end.
import { ACTION_WORDS, MAP, PAGE, PROT, SA_RESTORER, SIGNAL_SET_BYTES } from './abi.js';
import { SYS, addressOf, mapOwn, placeOwnCode, systemCall, type OwnMapping } from './system-call.js';

const RESTORER_OFFSET = 16;
const FLAGS_WORD = 1;
const RESTORER_WORD = 2;
const MAX_SIGNAL = 64;
/** include/uapi/asm-generic/signal-defs.h: waits for threads of a target go on; poll(2) alone does not. */
const SA_RESTART = 0x1000_0000;
/** The same: the next one does what it does by default. */
const SA_RESETHAND = 0x8000_0000;

/** `mov rax, WORDS; lock bts [rax], rdi; ret`, and behind it `mov eax, rt_sigreturn; syscall`. */
function handlerCode(words: bigint): Uint8Array {
  const code = new Uint8Array(RESTORER_OFFSET + 7).fill(0xcc);
  code.set([0x48, 0xb8]);
  new DataView(code.buffer).setBigUint64(2, words, true);
  code.set([0xf0, 0x48, 0x0f, 0xab, 0x38], 10);
  code.set([0xc3], 15);
  code.set([0xb8, SYS.rt_sigreturn, 0, 0, 0, 0x0f, 0x05], RESTORER_OFFSET);
  return code;
}

let handler:
  { readonly address: bigint; readonly mapping: OwnMapping; readonly words: Int32Array } | undefined;

/** One for all: a signal may still be on its way to it when nobody wants to know any more. */
function ownHandler(): NonNullable<typeof handler> {
  if (handler !== undefined) return handler;
  const mapping = mapOwn(PAGE, PROT.read | PROT.write, MAP.private | MAP.anonymous, -1);
  const { address } = placeOwnCode(handlerCode(mapping.address));
  handler = { address, mapping, words: new Int32Array(mapping.bytes) };
  return handler;
}

/**
 * Catches signals of this process from its making until `close`.
 */
export class CaughtSignals {
  readonly #former = new Map<number, Uint8Array>();
  readonly #words: Int32Array;

  constructor(signals: Iterable<number>) {
    const { address, words } = ownHandler();
    this.#words = words;
    const action = new BigUint64Array(ACTION_WORDS);
    action[0] = address;
    action[RESTORER_WORD] = address + BigInt(RESTORER_OFFSET);
    const actionAddress = addressOf(new Uint8Array(action.buffer));
    for (const signal of signals) {
      const flags = SA_RESTORER | SA_RESTART | (FAULTS.has(signal) ? SA_RESETHAND : 0);
      action[FLAGS_WORD] = BigInt(flags >>> 0);
      const former = new Uint8Array(ACTION_WORDS * 8);
      if (systemCall(SYS.rt_sigaction, signal, actionAddress, addressOf(former), SIGNAL_SET_BYTES) === 0)
        this.#former.set(signal, former);
    }
  }

  /** A signal that has come since it was last taken, one after the other; undefined if there is none. */
  take(): number | undefined {
    for (const signal of this.#former.keys()) {
      const bit = 1 << (signal % 32);
      if ((Atomics.and(this.#words, signal >> 5, ~bit) & bit) !== 0) return signal;
    }
    return undefined;
  }

  /** True if one has come that was not taken. */
  has(signals: ReadonlySet<number>): boolean {
    for (const signal of signals)
      if ((Atomics.load(this.#words, signal >> 5) & (1 << (signal % 32))) !== 0) return true;
    return false;
  }

  /** What these signals did before they do again. */
  close(): void {
    for (const [signal, former] of this.#former)
      systemCall(SYS.rt_sigaction, signal, addressOf(former), 0, SIGNAL_SET_BYTES);
    this.#former.clear();
  }
}

/** ILL TRAP BUS FPE SYS: sent by somebody, or a fault of our own. Each is caught once: who goes on behind a fault faults again, and dies of it. */
const FAULTS: ReadonlySet<number> = new Set([4, 5, 7, 8, 31]);

/**
 * Signals that end a process by default. SIGSEGV is not among them, as V8 needs it for WebAssembly. SIGPIPE and SIGXFSZ are ignored by Node,
 * and the write fails.
 */
export const ENDING_SIGNALS: ReadonlySet<number> = new Set([
  ...FAULTS,
  // HUP INT QUIT ABRT USR1 USR2 ALRM TERM STKFLT XCPU VTALRM PROF IO PWR, and real-time signals
  ...[1, 2, 3, 6, 10, 12, 14, 15, 16, 24, 26, 27, 29, 30],
  ...Array.from({ length: MAX_SIGNAL - 31 }, (_, i) => 32 + i),
]);

/** True once a descriptor can be written to, or never will be; false if it cannot be within so many milliseconds, or a signal has come. */
export function awaitWritable(fd: number, ms: number): boolean {
  const POLLOUT = 4;
  const wanted = new Int32Array([fd, POLLOUT]);
  return systemCall(SYS.poll, addressOf(new Uint8Array(wanted.buffer)), 1, ms) > 0;
}
