// Signal masks in emitted code. The rendezvous is signal 64, whose bit is the last.
import { SIGNAL_SET_BYTES, SYS } from '../linux/index.js';

/** The rendezvous alone, and all but it. */
export const RENDEZVOUS_ALONE = '0x8000000000000000';
export const ALL_BUT_RENDEZVOUS = '0x7fffffffffffffff';
export const ALL_SIGNALS = -1;

export const SIG_BLOCK = 0;
export const SIG_SETMASK = 2;

/** rt_sigprocmask with the set at an address on the stack; the former mask goes to another, or nowhere. */
export const changeMask = (how: number, set: string, former?: string): string => `
    mov eax, ${SYS.rt_sigprocmask}
    mov edi, ${how}
    ${set === 'rsp' ? 'mov rsi, rsp' : `lea rsi, [${set}]`}
    ${former === undefined ? 'xor edx, edx' : `lea rdx, [${former}]`}
    mov r10d, ${SIGNAL_SET_BYTES}
    syscall`;
