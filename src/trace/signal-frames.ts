// Finds signal frames on stacks. All threads stand still meanwhile, and of a thousand threads there are megabytes to look through: it
// is done by machine code in safepoke's own process.
import { addressOf, placeOwnCode, type OwnCode } from '../linux/index.js';
import { assemble } from '../x86/index.js';

/**
 * Byte offsets from the saved rip in struct sigcontext (arch/x86/include/uapi/asm/sigcontext.h): behind eflags cs, gs, fs and ss as
 * 16-bit fields. User code segments of Linux are 0x33 and 0x2b.
 */
const CS = 16;
const SS = 22;
/** The saved rsp stands before the saved rip. */
const RSP = -8;
const USER_CS = 0x33;
const USER_SS = 0x2b;
const WORD = 8;

/** rdi: a word, rsi: the last at which a frame may begin, rdx: where the addresses of found words go, rcx: behind the last place. rax: where the next would go. */
const LISTING = `
    mov rax, rdx
next:
    cmp rdi, rsi
    ja done
    cmp word [rdi+${CS}], ${USER_CS}
    jne on
    cmp word [rdi+${SS}], ${USER_SS}
    jne on
    cmp rax, rcx
    jae done
    mov [rax], rdi
    add rax, ${WORD}
on:
    add rdi, ${WORD}
    jmp next
done:
    ret
`;

/** Frames in one look. Handlers of a process seldom nest; whoever has so many is looked at again with more room. */
const ROOM = 4096;

let code: OwnCode | undefined;

/** Assembles the code: to be called before threads are held. */
export function prepareToFindFrames(): OwnCode {
  code ??= placeOwnCode(assemble(LISTING, 0n).bytes);
  return code;
}

/** A frame that a signal has left, to be gone back to when its handler returns. */
export interface SignalFrame {
  /** Of its saved rip, counted from the beginning of what was looked through. */
  readonly offset: number;
  readonly instructionPointer: number;
  readonly stackPointer: number;
}

/**
 * The signal frames in pieces of stacks that lie one behind the other, each a whole number of words. Where a piece ends in what looks
 * like the beginning of a frame and the next goes on like it, there may be one too many.
 */
export function signalFrames(bytes: Uint8Array, room = ROOM): SignalFrame[] {
  if (bytes.length < SS + 2) return [];
  const found = new BigUint64Array(room);
  const from = addressOf(bytes);
  const to = addressOf(new Uint8Array(found.buffer));
  const last = from + BigInt(bytes.length - (SS + 2));
  const end = prepareToFindFrames().call(0, from, last, to, to + BigInt(room * WORD));
  const count = Number(end - to) / WORD;
  // Full: there may be more.
  if (count === room) return signalFrames(bytes, room * 4);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const wordAt = (offset: number): number => (offset < 0 ? 0 : Number(view.getBigUint64(offset, true)));
  return Array.from(found.subarray(0, count), (address) => {
    const offset = Number(address - from);
    return { offset, instructionPointer: wordAt(offset), stackPointer: wordAt(offset + RSP) };
  });
}
