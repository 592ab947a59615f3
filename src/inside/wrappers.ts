// What stands before the C library's functions by which a program installs handlers, changes masks, jumps out of handlers and executes other
// programs. Handlers go in as their
// stubs and come back as themselves; the signal of the rendezvous is dropped from masks without a word, as the C library does
// with its own two signals. Whatever else these functions do is left to the C library.
import { SYS } from '../linux/index.js';
import { EXECUTING, executeListing, type Executing } from './executing.js';
import { KERNEL_ACTION, PRIVATE, RENDEZVOUS_SIGNAL } from './layout.js';
import { ALL_BUT_RENDEZVOUS, RENDEZVOUS_ALONE } from './signal-mask.js';

const ARGUMENTS = ['rdi', 'rsi', 'rdx', 'rcx', 'r8', 'r9'] as const;

type Wrapping =
  /** (signal, struct sigaction *, struct sigaction *) */
  | { readonly kind: 'action' }
  /** (signal, handler) -> handler */
  | { readonly kind: 'handler' }
  /** One argument points to a mask; another, perhaps, to where the former one goes. */
  | { readonly kind: 'mask'; readonly argument: number; readonly former?: number }
  /** (mask): filled by the C library. */
  | { readonly kind: 'fill' }
  /** (number, ...) */
  | { readonly kind: 'system-call' }
  /** (jmp_buf, value): does not return. */
  | { readonly kind: 'jump' }
  /** The last signal that is the program's. */
  | { readonly kind: 'last-signal' }
  /** Executes another program in this process: see executing.ts. */
  | { readonly kind: 'execute'; readonly as: Executing };

const WRAPPINGS: readonly (readonly [string, Wrapping])[] = [
  ['sigaction', { kind: 'action' }],
  ['__sigaction', { kind: 'action' }],
  ['signal', { kind: 'handler' }],
  ['bsd_signal', { kind: 'handler' }],
  ['ssignal', { kind: 'handler' }],
  ['sysv_signal', { kind: 'handler' }],
  ['__sysv_signal', { kind: 'handler' }],
  ['sigset', { kind: 'handler' }],
  ['sigprocmask', { kind: 'mask', argument: 1, former: 2 }],
  ['pthread_sigmask', { kind: 'mask', argument: 1, former: 2 }],
  ['pthread_attr_setsigmask_np', { kind: 'mask', argument: 1 }],
  ['sigsuspend', { kind: 'mask', argument: 0 }],
  ['sigwait', { kind: 'mask', argument: 0 }],
  ['sigwaitinfo', { kind: 'mask', argument: 0 }],
  ['sigtimedwait', { kind: 'mask', argument: 0 }],
  ['signalfd', { kind: 'mask', argument: 1 }],
  ['ppoll', { kind: 'mask', argument: 3 }],
  ['__ppoll_chk', { kind: 'mask', argument: 3 }],
  ['pselect', { kind: 'mask', argument: 5 }],
  ['epoll_pwait', { kind: 'mask', argument: 4 }],
  ['epoll_pwait2', { kind: 'mask', argument: 4 }],
  ['sigfillset', { kind: 'fill' }],
  ['syscall', { kind: 'system-call' }],
  ['longjmp', { kind: 'jump' }],
  ['_longjmp', { kind: 'jump' }],
  ['siglongjmp', { kind: 'jump' }],
  ['__longjmp_chk', { kind: 'jump' }],
  ['__libc_current_sigrtmax', { kind: 'last-signal' }],
  ...EXECUTING.map((name): readonly [string, Wrapping] => [name, { kind: 'execute', as: name }]),
];

const NAMES = WRAPPINGS.map(([name]) => name);

/** Functions that are wrapped, and where the name of each lies. */
export const wrapped: readonly { readonly name: string; readonly nameAddress: number }[] = NAMES.map(
  (name, index) => ({
    name,
    nameAddress: PRIVATE.names + NAMES.slice(0, index).reduce((sum, { length }) => sum + length + 1, 0),
  }),
);

/** Where the address of the C library's function is kept. */
export function realSlot(name: string): number {
  return PRIVATE.real + NAMES.indexOf(name) * 8;
}

const EINVAL = 22;
/** struct sigaction of the C library: handler, mask of 128 bytes, flags, restorer. */
const ACTION = { handler: 0, mask: 8, flags: 136, restorer: 144, size: 152 } as const;
/** struct __jmp_buf_tag of the C library: eight registers, whether a mask was saved, the mask. */
const JUMP = { isMaskSaved: 64, mask: 72 } as const;

const RETURN = `
    mov rsp, rbp
    pop rbp
    ret`;

/** Sets errno, and returns -1: SIG_ERR too. */
const invalid = (name: string): string => `
${name}.invalid:
    call qword [rel ${PRIVATE.errnoLocation}]
    mov dword [rax], ${EINVAL}
    mov rax, -1${RETURN}`;

/** The handler in rax becomes a stub, and the mask at `mask` fits it. Changes rcx, r10 and r11. */
const takeIn = (name: string, handler: string, mask: string): string => `
    call stub_of
    mov ${handler}, rax
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and ${mask}, r10
    cmp rax, 4095
    jbe ${name}.taken
    mov r10, ${RENDEZVOUS_ALONE}
    or ${mask}, r10
${name}.taken:`;

/** The action at rdx, if there is one, is told as the program gave it. */
const giveBack = (name: string, handler: number, mask: number): string => `
    test rdx, rdx
    je ${name}.given
    mov rax, [rdx+${handler}]
    call handler_of
    mov [rdx+${handler}], rax
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and [rdx+${mask}], r10
${name}.given:`;

function actionListing(name: string): string {
  const copy = 176;
  const words = [ACTION.handler, ACTION.mask, ACTION.flags, ACTION.restorer];
  return `
    sub rsp, ${copy}
    mov [rbp-8], rdx
    cmp edi, ${RENDEZVOUS_SIGNAL}
    je ${name}.invalid
    test rsi, rsi
    je ${name}.call
${words.map((word) => `    mov rax, [rsi+${word}]\n    mov [rbp${word - copy}], rax`).join('\n')}
    mov rax, [rsi]
${takeIn(name, `[rbp${ACTION.handler - copy}]`, `[rbp${ACTION.mask - copy}]`)}
    lea rsi, [rbp-${copy}]
${name}.call:
    call qword [rel ${realSlot(name)}]
    test eax, eax
    jne ${name}.end
    mov rdx, [rbp-8]
${giveBack(name, ACTION.handler, ACTION.mask)}
    xor eax, eax
${name}.end:${RETURN}
${invalid(name)}`;
}

function handlerListing(name: string): string {
  return `
    sub rsp, 48
    cmp edi, ${RENDEZVOUS_SIGNAL}
    je ${name}.invalid
    mov [rbp-8], rdi
    mov rax, rsi
    call stub_of
    mov rsi, rax
    call qword [rel ${realSlot(name)}]
    call handler_of
    mov [rbp-16], rax
    ; the rendezvous is masked while the handler runs: what the C library has installed is installed once more, with that
    mov eax, ${SYS.rt_sigaction}
    mov rdi, [rbp-8]
    xor esi, esi
    lea rdx, [rbp-48]
    mov r10d, 8
    syscall
    test eax, eax
    jne ${name}.end
    mov rax, [rbp-48]
    cmp rax, 4095
    jbe ${name}.end
    mov r10, ${RENDEZVOUS_ALONE}
    or [rbp${KERNEL_ACTION.mask - 48}], r10
    mov eax, ${SYS.rt_sigaction}
    mov rdi, [rbp-8]
    lea rsi, [rbp-48]
    xor edx, edx
    mov r10d, 8
    syscall
${name}.end:
    mov rax, [rbp-16]${RETURN}
${invalid(name)}`;
}

function maskListing(name: string, argument: number, former: number | undefined): string {
  const register = ARGUMENTS[argument];
  const back =
    former === undefined
      ? ''
      : `
    mov rdx, [rbp-16]
    test rdx, rdx
    je ${name}.end
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and [rdx], r10
${name}.end:`;
  // The C library may copy all of a mask: what lies behind our eight bytes is our stack, and it looks at none of it.
  return `
    sub rsp, 160
${former === undefined ? '' : `    mov [rbp-16], ${ARGUMENTS[former]}`}
    test ${register}, ${register}
    je ${name}.call
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and r10, [${register}]
    mov [rbp-152], r10
    lea ${register}, [rbp-152]
${name}.call:
    call qword [rel ${realSlot(name)}]
${back}${RETURN}`;
}

function fillListing(name: string): string {
  return `
    sub rsp, 16
    mov [rbp-8], rdi
    call qword [rel ${realSlot(name)}]
    mov rdx, [rbp-8]
    test rdx, rdx
    je ${name}.end
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and [rdx], r10
${name}.end:${RETURN}`;
}

/** Calls that return twice, or not at all: clone, fork, vfork, clone3, rt_sigreturn. */
const LEFT_ALONE = [56, 57, 58, 435, 15] as const;

/** Some calls are looked at; the others are made as they are. */
function systemCallListing(name: string): string {
  const copy = 64;
  return `
    cmp rdi, ${SYS.rt_sigaction}
    je ${name}.action
    cmp rdi, ${SYS.rt_sigprocmask}
    je ${name}.mask
    cmp rdi, ${SYS.exit}
    je ${name}.exit
    cmp rdi, ${SYS.execve}
    je ${name}.execve
    cmp rdi, ${SYS.execveat}
    je ${name}.execveat
${name}.make:
${LEFT_ALONE.map((n) => `    cmp rdi, ${n}\n    je ${name}.real`).join('\n')}
    ; made here, so that one which the rendezvous interrupts can be told by its place: its number is on the stack
    mov rax, rdi
    push rdi
    mov rdi, rsi
    mov rsi, rdx
    mov rdx, rcx
    mov r10, r8
    mov r8, r9
    mov r9, [rbp+16]
    syscall
${name}.made:
    cmp rax, -4095
    jae ${name}.failed${RETURN}
${name}.failed:
    mov [rsp], rax
    sub rsp, 8
    call qword [rel ${PRIVATE.errnoLocation}]
    xor ecx, ecx
    sub ecx, [rsp+8]
    mov [rax], ecx
    mov rax, -1${RETURN}
${name}.exit:                                ; all handlers of the thread end with it
    push rdi
    push rsi
    call leave_handlers
    pop rsi
    pop rdi
    jmp ${name}.make
${name}.execveat:
    mov rax, r9
    call ${name}.shift
    mov r8, rax
    pop rbp
    jmp execveat
${name}.execve:
    call ${name}.shift
    pop rbp
    jmp execve
${name}.shift:                               ; the arguments, without the number
    mov rdi, rsi
    mov rsi, rdx
    mov rdx, rcx
    mov rcx, r8
    ret
${name}.real:
    pop rbp
    jmp qword [rel ${realSlot(name)}]
${name}.mask:
    sub rsp, ${copy}
    mov [rbp-16], rcx
    test rdx, rdx
    je ${name}.mask_call
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and r10, [rdx]
    mov [rbp-8], r10
    lea rdx, [rbp-8]
${name}.mask_call:
    call qword [rel ${realSlot(name)}]
    mov rdx, [rbp-16]
    test rdx, rdx
    je ${name}.end
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and [rdx], r10
    jmp ${name}.end
${name}.action:
    sub rsp, ${copy}
    mov [rbp-16], rcx
    cmp esi, ${RENDEZVOUS_SIGNAL}
    je ${name}.invalid
    test rdx, rdx
    je ${name}.action_call
${[0, 8, 16, 24].map((word) => `    mov rax, [rdx+${word}]\n    mov [rbp${word - copy}], rax`).join('\n')}
    mov rax, [rdx]
${takeIn(name, `[rbp${KERNEL_ACTION.handler - copy}]`, `[rbp${KERNEL_ACTION.mask - copy}]`)}
    lea rdx, [rbp-${copy}]
    mov rcx, [rbp-16]
${name}.action_call:
    call qword [rel ${realSlot(name)}]
    test rax, rax
    jne ${name}.end
    mov rdx, [rbp-16]
${giveBack(name, KERNEL_ACTION.handler, KERNEL_ACTION.mask)}
    xor eax, eax
${name}.end:${RETURN}
${invalid(name)}`;
}

/** Nothing else can tell that handlers are left; the stack is as it was at the call when the C library's function begins. */
function jumpListing(name: string): string {
  return `
    push rdi
    push rsi
    call leave_handlers
    pop rsi
    pop rdi
    cmp dword [rdi+${JUMP.isMaskSaved}], 0
    je ${name}.jump
    mov r10, ${ALL_BUT_RENDEZVOUS}
    and [rdi+${JUMP.mask}], r10
${name}.jump:
    pop rbp
    jmp qword [rel ${realSlot(name)}]`;
}

function bodyOf(name: string, wrapping: Wrapping): string {
  switch (wrapping.kind) {
    case 'action':
      return actionListing(name);
    case 'handler':
      return handlerListing(name);
    case 'mask':
      return maskListing(name, wrapping.argument, wrapping.former);
    case 'fill':
      return fillListing(name);
    case 'system-call':
      return systemCallListing(name);
    case 'jump':
      return jumpListing(name);
    case 'execute':
      return executeListing(wrapping.as);
    case 'last-signal':
      return `
    mov eax, ${RENDEZVOUS_SIGNAL - 1}${RETURN}`;
  }
}

/** All wrappers: a label of the function's name at the start of each, and one of its name and `.size` behind it. */
export function wrappersListing(): string {
  return WRAPPINGS.map(
    ([name, wrapping]) => `
${name}:
    push rbp
    mov rbp, rsp${bodyOf(name, wrapping)}
${name}.size:`,
  ).join('\n');
}
