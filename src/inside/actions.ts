// Handlers that the program installs by system calls of its own, past the wrappers: the kernel calls them without a shim, so they run
// uncounted while code changes. When all threads stand in the rendezvous the agent's thread asks the kernel for all actions, and gives
// each handler that has none a stub, as the wrappers would have done. Nobody can install anything then but handlers that run on top
// of the rendezvous:
//
//   - One may install an action between the question and the answer to it. The kernel tells what an installation replaces, in one
//     atomic step: where that is not what was seen, it is what the program wants last, and goes in instead.
//   - One that is counted may install another while code changes, and that may come at once, uncounted. So a handler that ran while
//     threads stood looks at all actions before it is taken out of the count (the lowest of a thread does: those on top need not). If it finds one without a shim it leaves a count
//     behind: no flag rises before the agent's thread has seen to it, in the next rendezvous. In the span whose flag is up the
//     handler has written the new code before it installed anything: what comes then finds the new code as well.
//   - One without a shim may be running on a thread that stands, at that moment. So where something has been adopted the threads
//     are let go and called once more: they come from below, where no handler runs but as code that is looked at as any other.
//
// The two signals of the C library are left out: the rendezvous has them masked.
import { SIGNAL_SET_BYTES, SYS } from '../linux/index.js';
import {
  BLOCK,
  HANDLERS_MAX,
  KERNEL_ACTION,
  PRIVATE,
  RENDEZVOUS_SIGNAL,
  STUBS,
  STUB_SIZE,
  loadBlock,
} from './layout.js';
import { RENDEZVOUS_ALONE } from './signal-mask.js';

/** As the kernel numbers them: cancellation, and what makes all threads take the same user (nptl). */
const C_LIBRARY_SIGNALS = [32, 33] as const;
/** Handlers are above SIG_DFL and SIG_IGN, and nothing is mapped in the first page. */
const NO_HANDLER = 4095;
/** A handler that installs actions without a pause loses to us at some time, or it never ends. */
const SWAPS = 1000;

/** How often a handler looks, while others come on top of it, before it takes it that there is one without a shim. */
const WATCHES = 8;
/** In our thread-local storage (listing.ts): handlers that the thread has ever begun. */
const THREAD_BEGUN = 4;

const WORDS = Array.from({ length: KERNEL_ACTION.size / 8 }, (_, word) => word * 8);

/** On the stack while a handler is adopted: the action that is thought to stand, what is to stand, what stood. */
const ADOPT = { thought: 0, wanted: KERNEL_ACTION.size, stood: 2 * KERNEL_ACTION.size, size: 96 } as const;

const copyAction = (from: number, to: number): string =>
  WORDS.map((word) => `    mov rax, [rsp+${from + word}]\n    mov [rsp+${to + word}], rax`).join('\n');

/** r12d the signal; jumps to `past` where it has none of the program's handlers. The action goes to [rsp]. */
const askFor = (past: string, refused: string): string => `
${C_LIBRARY_SIGNALS.map((signal) => `    cmp r12d, ${signal}\n    je ${past}`).join('\n')}
    mov eax, ${SYS.rt_sigaction}
    mov edi, r12d
    xor esi, esi
    mov rdx, rsp
    mov r10d, ${SIGNAL_SET_BYTES}
    syscall
    test eax, eax
    jne ${refused}
    mov rax, [rsp+${KERNEL_ACTION.handler}]
    call lacks_stub
    test eax, eax
    je ${past}`;

/** Called by the agent's thread, with the block in rbx; and, after a handler, by the shim. */
export function actionsListing(): string {
  return `
adopt_handlers:                             ; all threads stand
    push r14
    sub rsp, ${ADOPT.size}
    mov dword [rbx+${BLOCK.adopted}], 0
    mov dword [rbx+${BLOCK.unadopted}], 0
    mov dword [rbx+${BLOCK.adoptStatus}], 0
    lea r15, [rel ${PRIVATE.protocol}]
adopt_release:                              ; what handlers have left behind in a rendezvous before
    cmp dword [rbx+${BLOCK.left}], 0
    je adopt_begin
    lock add dword [rbx+${BLOCK.left}], -1
    call ftrace_nmi_exit
    jmp adopt_release
adopt_begin:
    mov r12d, ${RENDEZVOUS_SIGNAL - 1}
adopt_next:
${askFor('adopt_past', 'adopt_refused')}
    mov r13d, ${SWAPS}
${copyAction(ADOPT.thought, ADOPT.stood)}
adopt_swap:                                 ; what stood is what the program wants: with a stub, and the rendezvous masked
    mov rax, [rsp+${ADOPT.stood + KERNEL_ACTION.handler}]
    call stub_of
    mov [rsp+${ADOPT.wanted + KERNEL_ACTION.handler}], rax
${WORDS.slice(1)
  .map((word) => `    mov rcx, [rsp+${ADOPT.stood + word}]\n    mov [rsp+${ADOPT.wanted + word}], rcx`)
  .join('\n')}
    cmp rax, ${NO_HANDLER}
    jbe adopt_install
    mov r10, ${RENDEZVOUS_ALONE}
    or [rsp+${ADOPT.wanted + KERNEL_ACTION.mask}], r10
adopt_install:
    mov eax, ${SYS.rt_sigaction}
    mov edi, r12d
    lea rsi, [rsp+${ADOPT.wanted}]
    lea rdx, [rsp+${ADOPT.stood}]
    mov r10d, ${SIGNAL_SET_BYTES}
    syscall
    test eax, eax
    jne adopt_refused
${WORDS.map(
  (word) => `    mov rax, [rsp+${ADOPT.thought + word}]
    cmp rax, [rsp+${ADOPT.stood + word}]
    jne adopt_overtaken`,
).join('\n')}
    mov rax, [rsp+${ADOPT.wanted + KERNEL_ACTION.handler}]
    call lacks_stub
    test eax, eax
    jne adopt_not                           ; there is no room for a further one
    add dword [rbx+${BLOCK.adopted}], 1
    jmp adopt_past
adopt_overtaken:                            ; a handler has installed what stood just now, over which ours went
${copyAction(ADOPT.wanted, ADOPT.thought)}
    sub r13d, 1
    jne adopt_swap
adopt_not:
    mov [rbx+${BLOCK.unadopted}], r12d
adopt_past:
    sub r12d, 1
    jne adopt_next
adopt_end:
    add rsp, ${ADOPT.size}
    pop r14
    jmp served
adopt_refused:
    mov [rbx+${BLOCK.adoptStatus}], eax
    jmp adopt_end

; After a handler, which is still counted: rbp and r15 are the protocol's. Without a rendezvous it costs nothing.
watch_actions:
${loadBlock('rdx')}
    mov eax, [rdx+${BLOCK.generation}]
    test eax, 1
    je watch_over
    cmp dword [rdx+${BLOCK.left}], 0
    jne watch_over
    mov eax, ${SYS.getpid}
    syscall
    cmp eax, [rel ${PRIVATE.owner}]
    jne watch_over                          ; a forked child
    push r12
    push r13
    push r14
    sub rsp, ${KERNEL_ACTION.size}
    mov r13d, ${WATCHES}
watch_again:
    xor r14d, r14d
    call thread_local
    test rax, rax
    je watch_begin
    mov r14d, [rax+${THREAD_BEGUN}]
watch_begin:
    mov r12d, ${RENDEZVOUS_SIGNAL - 1}
watch_next:
${askFor('watch_past', 'watch_end')}
watch_leave:
    call ftrace_nmi_enter                   ; in this order: too high a count harms nobody
${loadBlock('rdx')}
    lock add dword [rdx+${BLOCK.left}], 1
    jmp watch_end
watch_past:
    sub r12d, 1
    jne watch_next
    call thread_local
    test rax, rax
    je watch_end
    cmp [rax+${THREAD_BEGUN}], r14d
    je watch_end
    sub r13d, 1                             ; a handler has run on top, and may have installed what we have looked at
    jne watch_again
    jmp watch_leave
watch_end:
    add rsp, ${KERNEL_ACTION.size}
    pop r14
    pop r13
    pop r12
watch_over:
    ret

lacks_stub:                                 ; rax an action's handler -> eax 1: the program's own
    cmp rax, ${NO_HANDLER}
    jbe lacks_nothing
    lea r10, [rel ${STUBS}]
    sub rax, r10
    cmp rax, ${HANDLERS_MAX * STUB_SIZE}
    jb lacks_nothing
    mov eax, 1
    ret
lacks_nothing:
    xor eax, eax
    ret
`;
}
