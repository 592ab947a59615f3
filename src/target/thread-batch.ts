// The steps of a hold, for many threads at once: a loop of system calls as machine code in safepoke's own process. Holding a thousand
// threads takes four thousand system calls, and while they are made threads stand still: from JavaScript each would cost some times
// what the kernel takes for it.
import {
  PTRACE_REQUEST,
  REGISTER_NAMES,
  Registers,
  SYS,
  WAIT_ALL,
  WNOHANG,
  addressOf,
  decodeWaitStatus,
  faultPoint,
  isFaultWanted,
  placeOwnCode,
  type OwnCode,
} from '../linux/index.js';
import { assemble } from '../x86/index.js';

/** A call in the table: number, four arguments, the result, and the time-stamp counter before and behind it. */
const ENTRY = { number: 0, arguments: 8, result: 40, began: 48, ended: 56, size: 64 } as const;
const ENTRY_WORDS = ENTRY.size / 4;
const ARGUMENTS = 4;

/** rdi: the table, rsi: number of entries. All of them are made, whatever each returns. */
const LOOP = `
    push rbx
    push r12
    mov rbx, rdi
    mov r12, rsi
next:
    test r12, r12
    je done
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rbx+${ENTRY.began}], rax
    mov rax, [rbx+${ENTRY.number}]
    mov rdi, [rbx+${ENTRY.arguments}]
    mov rsi, [rbx+${ENTRY.arguments + 8}]
    mov rdx, [rbx+${ENTRY.arguments + 16}]
    mov r10, [rbx+${ENTRY.arguments + 24}]
    syscall
    mov [rbx+${ENTRY.result}], rax
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [rbx+${ENTRY.ended}], rax
    add rbx, ${ENTRY.size}
    sub r12, 1
    jmp next
done:
    pop r12
    pop rbx
    ret
`;

const TWO_TO_32 = 2 ** 32;
const REGISTER_WORDS = REGISTER_NAMES.length;

/** A thread that has stopped: what wait4 says of it, and its registers. */
export interface Stopped {
  readonly kind: 'stopped';
  readonly signal: number;
  readonly event: number;
  readonly registers: Registers;
}

/** What a look at a thread that was asked to stop has found. */
export type Look =
  | Stopped
  /** It goes; `at`: performance.now() when it was looked at. */
  | { readonly kind: 'late'; readonly at: number }
  | { readonly kind: 'gone' };

let loop: OwnCode | undefined;

/** System calls that are made one right after the other. Arguments are whole numbers below 2^53. */
class Calls {
  readonly #table: Uint32Array;
  readonly #count: number;
  #before = 0;
  #after = 0;

  constructor(count: number) {
    this.#count = count;
    this.#table = new Uint32Array(count * ENTRY_WORDS);
  }

  put(i: number, number: number, ...values: readonly number[]): void {
    const at = i * ENTRY_WORDS;
    this.#table[at] = number;
    for (let k = 0; k < ARGUMENTS; k++) {
      const value = values.at(k) ?? 0;
      const word = at + ENTRY.arguments / 4 + k * 2;
      this.#table[word] = value % TWO_TO_32;
      this.#table[word + 1] = Math.floor(value / TWO_TO_32);
    }
  }

  /** `changesTarget`: between two of them stands a fault point. */
  make(changesTarget: boolean): this {
    if (this.#count === 0) return this;
    loop ??= placeOwnCode(assemble(LOOP, 0n).bytes);
    const address = addressOf(new Uint8Array(this.#table.buffer));
    this.#before = performance.now();
    if (changesTarget && isFaultWanted()) {
      for (let i = 0; i < this.#count; i++) {
        faultPoint();
        loop.call(0, address + BigInt(i * ENTRY.size), 1);
      }
    } else {
      loop.call(0, address, this.#count);
    }
    this.#after = performance.now();
    return this;
  }

  /** What the kernel returned: below 2^31, or -errno. */
  result(i: number): number {
    return this.#table[i * ENTRY_WORDS + ENTRY.result / 4] | 0;
  }

  /** performance.now() when call `i` began. */
  began(i: number): number {
    return this.#time(i, ENTRY.began);
  }

  /** performance.now() when call `i` had been made. */
  ended(i: number): number {
    return this.#time(i, ENTRY.ended);
  }

  /** The counter goes evenly from the beginning of the first to the end of the last. */
  #time(i: number, field: number): number {
    const whole = this.#ticks(this.#count - 1, ENTRY.ended);
    const part = whole > 0 ? this.#ticks(i, field) / whole : 1;
    return this.#before + part * (this.#after - this.#before);
  }

  /** Ticks since the first call began. */
  #ticks(i: number, field: number): number {
    const at = i * ENTRY_WORDS + field / 4;
    const from = ENTRY.began / 4;
    return (this.#table[at + 1] - this.#table[from + 1]) * TWO_TO_32 + this.#table[at] - this.#table[from];
  }
}

function callsFor(tids: readonly number[], request: number, data = 0): Calls {
  const calls = new Calls(tids.length);
  tids.forEach((tid, i) => {
    calls.put(i, SYS.ptrace, request, tid, 0, data);
  });
  return calls;
}

/** ptrace(2) for many threads. Each list has a result for each thread, in their order. */
export const threadBatch = {
  /** 0, or -errno. */
  seize(tids: readonly number[], options: number): number[] {
    const calls = callsFor(tids, PTRACE_REQUEST.seize, options).make(false);
    return tids.map((_, i) => calls.result(i));
  },

  /** performance.now() at which each was asked to stop. */
  interrupt(tids: readonly number[]): number[] {
    const calls = callsFor(tids, PTRACE_REQUEST.interrupt).make(false);
    return tids.map((_, i) => calls.began(i));
  },

  /** Looks which have stopped, and at the registers of those. */
  look(tids: readonly number[]): Look[] {
    const statuses = new Int32Array(tids.length);
    const statusAddress = Number(addressOf(new Uint8Array(statuses.buffer)));
    const waits = new Calls(tids.length);
    tids.forEach((tid, i) => {
      waits.put(i, SYS.wait4, tid, statusAddress + i * 4, WNOHANG | WAIT_ALL);
    });
    waits.make(false);
    const stopped: number[] = [];
    const looks = tids.map((tid, i): Look | undefined => {
      const result = waits.result(i);
      if (result === 0) return { kind: 'late', at: waits.began(i) };
      if (result < 0 || decodeWaitStatus(tid, statuses[i]).kind !== 'stopped') return { kind: 'gone' };
      stopped.push(i);
      return undefined;
    });
    const words = new BigUint64Array(Math.max(stopped.length, 1) * REGISTER_WORDS);
    const wordsAddress = Number(addressOf(new Uint8Array(words.buffer)));
    const gets = new Calls(stopped.length);
    stopped.forEach((i, k) => {
      gets.put(k, SYS.ptrace, PTRACE_REQUEST.getRegs, tids[i], 0, wordsAddress + k * REGISTER_WORDS * 8);
    });
    gets.make(false);
    stopped.forEach((i, k) => {
      const stop = decodeWaitStatus(tids[i], statuses[i]);
      if (gets.result(k) < 0 || stop.kind !== 'stopped') {
        looks[i] = { kind: 'gone' };
      } else {
        const registers = new Registers(words, k * REGISTER_WORDS);
        looks[i] = { kind: 'stopped', signal: stop.signal, event: stop.event, registers };
      }
    });
    return looks.map((look) => look ?? { kind: 'gone' });
  },

  /** Lets threads go, each with a signal (0: none). performance.now() at which each had been let go. */
  detach(threads: readonly { readonly tid: number; readonly pendingSignal: number }[]): number[] {
    const calls = new Calls(threads.length);
    threads.forEach(({ tid, pendingSignal }, i) => {
      calls.put(i, SYS.ptrace, PTRACE_REQUEST.detach, tid, 0, pendingSignal);
    });
    calls.make(true);
    return threads.map((_, i) => calls.ended(i));
  },
};
