// Whether user code may execute rdfsbase, which the recorder does. The kernel tells where it manages the base by these instructions
// itself. Where it does not say so the processor may execute them all the same: a kernel in a paravirtual machine (PVM) has no say
// in that. Reading is right then too, as nothing but arch_prctl sets the base; so it is tried, here, before it is done anywhere else.
import {
  ACTION_WORDS,
  SA_RESTORER,
  SA_SIGINFO,
  SIGNAL_SET_BYTES,
  SYS,
  UCONTEXT_REGISTERS,
  addressOf,
  placeOwnCode,
  readAuxiliaryVector,
} from '../linux/index.js';
import { assemble } from '../x86/index.js';

/** AT_HWCAP2 and its bit for these instructions in user mode (arch/x86/include/uapi/asm/hwcap2.h). */
const AT_HWCAP2 = 26;
const HWCAP2_FSGSBASE = 2n;

const SIGILL = 4;
const RDFSBASE_LENGTH = 5;

const READ_BASE = 'rdfsbase rax';

/** rdi: an action for SIGILL, rsi: room for the former one -> 1 if the base could be read, and is what the thread block says. */
const listing = (readBase: string): string => `
    push rbx
    push r12
    mov rbx, rsi
    mov rsi, rdi
    mov edi, ${SIGILL}
    mov rdx, rbx
    mov r10d, ${SIGNAL_SET_BYTES}
    mov eax, ${SYS.rt_sigaction}
    syscall
    xor r12d, r12d
    test rax, rax
    jne done
    ${readBase}                        ; 0 behind it if the handler ran
    mov rcx, fs:[0]
    cmp rax, rcx
    jne put_back
    add r12d, 1
put_back:
    mov edi, ${SIGILL}
    mov rsi, rbx
    xor edx, edx
    mov r10d, ${SIGNAL_SET_BYTES}
    mov eax, ${SYS.rt_sigaction}
    syscall
done:
    mov rax, r12
    pop r12
    pop rbx
    ret
handler:                                ; rdx struct ucontext
    add qword [rdx + ${UCONTEXT_REGISTERS.rip}], ${RDFSBASE_LENGTH}
    mov qword [rdx + ${UCONTEXT_REGISTERS.rax}], 0
    ret
restorer:
    mov eax, ${SYS.rt_sigreturn}
    syscall
`;

/** `readBase`: instructions as long as rdfsbase that put the base into rax. */
export function canReadBase(readBase = READ_BASE): boolean {
  const { bytes, labels } = assemble(listing(readBase), 0n);
  const code = placeOwnCode(bytes);
  const at = (label: string): bigint => code.address + BigInt(labels.get(label) ?? 0);
  const action = BigUint64Array.of(at('handler'), BigInt(SA_SIGINFO | SA_RESTORER), at('restorer'), 0n);
  const former = new BigUint64Array(ACTION_WORDS);
  return (
    code.call(0, addressOf(new Uint8Array(action.buffer)), addressOf(new Uint8Array(former.buffer))) === 1n
  );
}

let found: boolean | undefined;

/** True if user code may execute rdfsbase, which the recorder needs. */
export function hasFsgsbase(): boolean {
  found ??= ((readAuxiliaryVector('self')?.get(AT_HWCAP2) ?? 0n) & HWCAP2_FSGSBASE) !== 0n || canReadBase();
  return found;
}
